"""Fixed n: exactly `sampling.n` traces of every problem, judged afterwards. The reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from distill.protocols import Capabilities
from distill.records import Problem, TraceKey
from distill.schema import Sampling
from distill.store import TracePool
from distill.wanted import Job, lack, last_segment, stages


class Fixed:
    """What fixed n asks for, one growing limit after the other. `keys`: what the pool lacked."""

    def __init__(
        self,
        problems: Sequence[Problem],
        sampling: Sampling,
        pool: TracePool,
        can: Capabilities,
        batch_size: int | None,
    ) -> None:
        self.problems, self.sampling, self.pool = problems, sampling, pool
        self.can, self.batch_size = can, batch_size
        self.keys: list[TraceKey] = []

    @property
    def wanted(self) -> int:
        return len(self.problems) * self.sampling.n

    def rounds(self) -> Iterator[Sequence[Sequence[Job]]]:
        """Groups of jobs to buy; after each limit, what was cut off at it is known."""
        for limit in stages(self.sampling):
            found = lack(self.problems, self.sampling, self.pool, self.can, self.batch_size, limit)
            self.keys += found.keys
            yield found.groups

    def listed(self) -> Iterator[TraceKey]:
        """Every wanted trace there is, by problem and index, its last segment."""
        for problem in self.problems:
            for index in range(self.sampling.n):
                if (problem.id, index, 0) in self.pool:
                    yield (problem.id, index, last_segment(self.pool, problem.id, index))
