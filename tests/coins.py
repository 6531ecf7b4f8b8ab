"""Teachers that are right with a known chance, and who judges them: for adaptive sampling.

The answer to a request depends on the request alone, so that runs can be compared.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.accept import Acceptance
from distill.policy import Policy
from distill.protocols import Capabilities, Completion, OnTokens, Request, Usage
from distill.records import Grade, Problem, Trace
from distill.sample import SampleResult, request_seed, sample
from distill.schema import PartSpec, Sampling

FILTERS = [PartSpec(name=name) for name in ("truncated", "correct", "duplicates")]


def coins(rates: Sequence[float], start: int = 0) -> list[Problem]:
    """Problems of known difficulty; the rate is in the question."""
    return [
        Problem(messages=({"role": "user", "content": f"{rate} {i}"},), gold="yes")
        for i, rate in enumerate(rates, start)
    ]


def share(*parts: Any) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def lands(problem: Problem, index: int, seed: int = 0) -> bool:
    """Whether this sample of a problem is right."""
    rate = float(str(problem.messages[0]["content"]).split()[0])
    return share(request_seed(seed, problem.id, index)) < rate


class Coin:
    """Right with the chance that the question names; 20 tokens an answer."""

    identity = "coin@1"
    capabilities = Capabilities(deterministic=True)

    def __init__(self, delay: float = 0.0) -> None:
        self.asked: list[str] = []
        self.delay = delay

    async def complete(self, request: Request, on_tokens: OnTokens | None = None) -> Completion:
        self.asked.append(request.key)
        await asyncio.sleep(self.delay * share(request.key, "wait"))
        return self.answer(request)

    def answer(self, request: Request) -> Completion:
        rate = float(str(request.prompt[0]["content"]).split()[0])  # type: ignore[index, call-overload]
        word = "yes" if share(request.seed) < rate else "no"
        text = f"<think>\n{request.key}\n</think>\n\n{word}"
        return Completion(text=text, usage=Usage(prompt_tokens=5, completion_tokens=20))


class CoinBatch(Coin):
    """The same answers in groups of eight."""

    capabilities = Capabilities(deterministic=True, batch_size=8)

    def complete_batch(
        self, requests: Sequence[Request], on_tokens: OnTokens | None = None
    ) -> list[Any]:
        self.asked += [request.key for request in requests]
        return [self.answer(request) for request in requests]


def yes(problem: Problem, trace: Trace) -> Grade:
    """A grader: the answer begins with yes."""
    right = trace.answer.startswith("yes")
    return Grade(outcome="correct" if right else "wrong", score=float(right))


def judge(filters: Sequence[PartSpec] = FILTERS, grader: Any = yes) -> Acceptance:
    return Acceptance(filters=filters, folder=Path(), graders=[grader])


def toss(
    problems: Sequence[Problem], teacher: Any, root: Path, *, accept: Any = None, **asked: Any
) -> SampleResult:
    """Sample adaptively; `prices` and `seed` beside the keys of `sampling`."""
    more = {k: asked.pop(k) for k in ("prices", "progress") if k in asked}
    return sample(
        problems,
        teacher,
        Sampling(**{"want": 2, "max": 12, "concurrency": 8, **asked}),
        seed=0,
        pool_root=root,
        accept=accept or judge(),
        **more,
    )


def naive(problems: Sequence[Problem], want: int, most: int, give_up: float) -> dict[str, int]:
    """The reference: one sample after the other, until the policy says stop. Tries by problem."""
    policy = Policy(want, most, give_up)
    found = {}
    for problem in problems:
        stopped = policy.stopped_at(lands(problem, index) for index in range(most))
        assert stopped is not None
        found[problem.id] = stopped[0]
    return found
