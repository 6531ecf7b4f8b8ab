"""Which samples are wanted, and which of them the pool lacks.

Pure functions of problems, sampling and pool: the place of the sampling policy.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from distill.protocols import Capabilities, Request, SamplingParams
from distill.records import Problem, Trace, TraceKey
from distill.schema import Sampling
from distill.store import TracePool

CONTEXT = "context"
"""The flag of an engine whose context was full, so that going on is of no use."""


def request_seed(seed: int, problem_id: str, index: int, segment: int = 0) -> int:
    """The seed of one request: 31 bits that depend on nothing else in the run."""
    text = f"{seed}/{problem_id}/{index}" + (f"/{segment}" if segment else "")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True, slots=True)
class Job:
    """One trace to buy under a limit of tokens; with `before`, a cut-off trace to go on from."""

    problem: Problem
    index: int
    limit: int
    before: Trace | None = None

    @property
    def key(self) -> TraceKey:
        segment = 0 if self.before is None else self.before.segment + 1
        return (self.problem.id, self.index, segment)

    def request(self, sampling: Sampling, seed: int) -> Request:
        """What the teacher is asked for. A continuation asks for the tokens that are left."""
        before = self.before
        done = before.completion_tokens if before else 0
        problem_id, index, segment = self.key
        return Request(
            key=f"{problem_id}/{index}/{segment}",
            prompt=self.problem.messages,
            params=SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=self.limit - done,
                stop=tuple(sampling.stop),
            ),
            seed=request_seed(seed, problem_id, index, segment),
            prefix_ids=before.token_ids if before else None,
            prefix_text=before.text if before else None,
            prompt_ids=before.prompt_ids if before else None,
        )


def wanted(problems: Sequence[Problem], n: int) -> Iterator[tuple[Problem, int]]:
    """The samples to have, in the order of buying: index 0 of all problems, then 1, ...

    A policy that stops early or adapts n decides here.
    """
    return ((problem, index) for index in range(n) for problem in problems)


def stages(sampling: Sampling) -> list[int]:
    """The growing limits of tokens, the last of them `max_tokens`."""
    return [*sampling.limits, sampling.max_tokens]


Bar = Literal["full", "engine"]
"""Why a cut-off trace stays so: the teacher's context is full, or the engine cannot go on."""


def barred(trace: Trace, can: Capabilities) -> Bar | None:
    """What keeps a cut-off trace from being continued; None where nothing does."""
    if CONTEXT in trace.flags:
        return "full"
    if can.prefix and trace.token_ids is not None:
        return None
    return None if can.prefill and trace.text else "engine"


def next_limit(trace: Trace, sampling: Sampling) -> int | None:
    """The limit to continue a cut-off trace under; None where it had the highest already."""
    had = max(trace.max_tokens or 0, trace.completion_tokens)
    return next((limit for limit in stages(sampling) if limit > had), None)


@dataclass(slots=True)
class Jobs(Sequence[Job]):
    """Jobs under one limit of tokens, each made when it is taken.

    What a job goes on from is a whole trace: those of all jobs would not fit into memory.
    `places` are problem, index and segment.
    """

    places: list[tuple[Problem, int, int]]
    limit: int
    pool: TracePool

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return Jobs(self.places[at], self.limit, self.pool)
        problem, index, segment = self.places[at]
        before = self.pool.get((problem.id, index, segment - 1)) if segment else None
        return Job(problem, index, self.limit, before)


@dataclass(slots=True)
class Lack:
    """What the pool lacks: jobs in the order of buying, and the keys of those that are new."""

    groups: list[Jobs] = field(default_factory=list)
    keys: list[TraceKey] = field(default_factory=list)


def lack(
    problems: Sequence[Problem],
    sampling: Sampling,
    pool: TracePool,
    can: Capabilities,
    batch_size: int | None,
    limit: int,
) -> Lack:
    """What is wanted under a limit of tokens and not in the pool.

    With `batch_size` a group is whole or absent: its members depend on the problems and on
    nothing that an interruption could change. Groups end with their index, so that a higher n
    adds groups and changes none. Without it there is one group of all.
    """
    found, every = Lack(), list[tuple[Problem, int, int]]()
    for _, same in itertools.groupby(wanted(problems, sampling.n), lambda pair: pair[1]):
        pairs = list(same)
        size = batch_size or len(pairs)
        for start in range(0, len(pairs), size):
            some = pairs[start : start + size]
            begun = [(p, i, _unfinished(p.id, i, limit, pool, can)) for p, i in some]
            for places in (
                [(p, i, 0) for p, i in some],
                [(p, i, segment) for p, i, segment in begun if segment],
            ):
                new = [place for place in places if (place[0].id, *place[1:]) not in pool]
                found.keys += [(p.id, i, segment) for p, i, segment in new]
                if not batch_size:
                    every += new
                elif new:
                    found.groups.append(Jobs(places, limit, pool))
    if every:
        found.groups.append(Jobs(every, limit, pool))
    return found


def last_segment(pool: TracePool, problem_id: str, index: int) -> int:
    """The number of a sample's last segment, which holds the whole of it."""
    segment = 0
    while (problem_id, index, segment + 1) in pool:
        segment += 1
    return segment


def _unfinished(problem_id: str, index: int, limit: int, pool: TracePool, can: Capabilities) -> int:
    """The segment that goes on from a stored trace cut off below the present limit; 0: none."""
    last, segment = None, 0
    while pool.is_cut((problem_id, index, segment)):
        trace = pool.get((problem_id, index, segment))
        assert trace is not None
        if max(trace.max_tokens or 0, trace.completion_tokens) >= limit:
            break
        last, segment = trace, segment + 1
    return segment if last is not None and barred(last, can) is None else 0
