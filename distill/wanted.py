"""Which samples are wanted, and which of them the pool lacks.

Pure functions of problems, sampling and pool: the place of the sampling policy.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

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
    """One trace to buy; with `before`, a cut-off trace to go on from."""

    problem: Problem
    index: int
    before: Trace | None = None

    @property
    def key(self) -> TraceKey:
        segment = 0 if self.before is None else self.before.segment + 1
        return (self.problem.id, self.index, segment)

    def request(self, sampling: Sampling, seed: int) -> Request:
        """What the teacher is asked for. A continuation asks for the tokens that are left."""
        done = self.before.completion_tokens if self.before else 0
        problem_id, index, segment = self.key
        return Request(
            key=f"{problem_id}/{index}/{segment}",
            prompt=self.problem.messages,
            params=SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_tokens - done,
                stop=tuple(sampling.stop),
            ),
            seed=request_seed(seed, problem_id, index, segment),
            prefix_ids=self.before.token_ids if self.before else None,
        )


def wanted(problems: Sequence[Problem], n: int) -> Iterator[tuple[Problem, int]]:
    """The samples to have, in the order of buying: index 0 of all problems, then 1, ...

    A policy that stops early or adapts n decides here.
    """
    return ((problem, index) for index in range(n) for problem in problems)


@dataclass(slots=True)
class Lack:
    """What the pool lacks.

    `groups` are the jobs in the order of buying and `keys` those that are new. `kept_cut`
    counts traces cut off below the present limit that the engine cannot go on with, `full`
    those that fill its context.
    """

    groups: list[list[Job]] = field(default_factory=list)
    keys: list[TraceKey] = field(default_factory=list)
    kept_cut: int = 0
    full: int = 0


def lack(
    problems: Sequence[Problem],
    sampling: Sampling,
    pool: TracePool,
    can: Capabilities,
    batch_size: int | None,
) -> Lack:
    """What is wanted and not in the pool.

    With `batch_size` a group is whole or absent: its members depend on the problems and on
    nothing that an interruption could change. Groups end with their index, so that a higher n
    adds groups and changes none.
    """
    found = Lack()
    for _, same in itertools.groupby(wanted(problems, sampling.n), lambda pair: pair[1]):
        pairs = list(same)
        size = batch_size or len(pairs)
        for start in range(0, len(pairs), size):
            some = pairs[start : start + size]
            begun = [(p, i, _unfinished(p.id, i, sampling, pool, can, found)) for p, i in some]
            for jobs in (
                [Job(p, i) for p, i in some],
                [Job(p, i, before) for p, i, before in begun if before],
            ):
                new = [job for job in jobs if job.key not in pool]
                found.keys += [job.key for job in new]
                if new:
                    found.groups.append(jobs if batch_size else new)
    return found


def latest(pool: TracePool, problem_id: str, index: int) -> Trace | None:
    """The last segment of a sample, which holds the whole of it."""
    segment = 0
    while (problem_id, index, segment + 1) in pool:
        segment += 1
    return pool.get((problem_id, index, segment))


def _unfinished(
    problem_id: str, index: int, sampling: Sampling, pool: TracePool, can: Capabilities, found: Lack
) -> Trace | None:
    """The stored trace that was cut off below the present limit and can be gone on with."""
    last, segment = None, 0
    while pool.is_cut((problem_id, index, segment)):
        trace = pool.get((problem_id, index, segment))
        assert trace is not None
        if max(trace.max_tokens or 0, trace.completion_tokens) >= sampling.max_tokens:
            break
        last, segment = trace, segment + 1
    if last is None:
        return None
    if CONTEXT in last.flags:
        found.full += 1
        return None
    if not can.prefix or last.token_ids is None:
        found.kept_cut += 1
        return None
    return last
