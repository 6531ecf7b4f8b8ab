"""Adaptive sampling without barriers: each problem goes on as soon as its own grade is here."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from distill.accept import Judged
from distill.adaptive import Adaptive, At
from distill.buy import Buyer
from distill.course import Course, Result
from distill.records import Problem, Trace

BACKLOG = 256
"""So many traces (`concurrency`, if that is more) wait for their grade before no more are asked."""


class Turns:
    """Whose turn it is: what is needed in any case, in the order of the problems; then the
    likeliest. Problems enter one by one, so that the earlier ones are done first."""

    def __init__(self, courses: Sequence[Course], least: float) -> None:
        self._courses, self._least = courses, least
        self._heap: list[tuple[float, int]] = []
        self._ranks: dict[int, float] = {}
        self._next = 0

    def again(self, at: int) -> None:
        """This problem may have something to ask."""
        if at < self._next:
            self._push(at)

    def pop(self) -> At | None:
        """The next request, counted as asked; None while nobody has one."""
        found = self._best()
        if found is not None:
            self._courses[found[0]].asked.append(found[1])
        return found

    def _best(self) -> At | None:
        while self._heap or self._enter():
            if not self._heap:
                continue  # the one that entered has nothing to ask
            rank, at = self._heap[0]
            found = self._courses[at].ask(self._least) if self._ranks.get(at) == rank else None
            if found is None:
                heapq.heappop(self._heap)
                if self._ranks.get(at) == rank:
                    del self._ranks[at]
            elif (now := _rank(found[0])) != rank:
                self._ranks[at] = now
                heapq.heapreplace(self._heap, (now, at))
            elif not (rank > 0 and self._enter()):
                return at, found[1]
        return None

    def _enter(self) -> bool:
        """Let the next problem in. False if all are."""
        while self._next < len(self._courses):
            self._next += 1
            if self._courses[self._next - 1].reason is None:
                self._push(self._next - 1)
                return True
        return False

    def _push(self, at: int) -> None:
        found = self._courses[at].ask(self._least)
        # A grade may raise a problem's rank: it is listed anew, and the old entry is passed over.
        if found is not None and _rank(found[0]) < self._ranks.get(at, math.inf):
            self._ranks[at] = _rank(found[0])
            heapq.heappush(self._heap, (self._ranks[at], at))


class Stream:
    """Buys what the courses ask for, `sampling.concurrency` at a time, and has it graded.

    What the pool has is taken from there; `open_teacher` is awaited before anything is bought.
    """

    def __init__(
        self, plan: Adaptive, buyer: Buyer, open_teacher: Callable[[], Awaitable[None]]
    ) -> None:
        self.plan, self.buyer, self.open_teacher = plan, buyer, open_teacher
        self.slots = buyer.sampling.concurrency
        self.backlog = max(BACKLOG, self.slots)
        self._turns = Turns(plan.courses, plan.least)
        self._under_way: set[asyncio.Task[None]] = set()
        self._arrived: list[tuple[At, Trace]] = []
        self._in_grading = 0
        self._grading: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._fault: BaseException | None = None
        self._stopping = False

    async def run(self) -> None:
        """Until no problem has anything to ask. Raises what ends the whole run."""
        with ThreadPoolExecutor(1, "distill-grade") as thread:
            try:
                while True:
                    self._send()
                    if self._arrived and self._grading is None:
                        self._grading = self._start(self._grade(thread))
                    if not self._under_way:
                        return
                    await self._wake.wait()
                    self._wake.clear()
                    if self._fault is not None:
                        raise self._fault
            finally:
                self._stopping = True
                for task in self._under_way:
                    task.cancel()
                await asyncio.gather(*self._under_way, return_exceptions=True)

    def _send(self) -> None:
        while (
            len(self._under_way) - (self._grading is not None) < self.slots
            and len(self._arrived) + self._in_grading < self.backlog
            and (found := self._turns.pop()) is not None
        ):
            trace = self.plan.pool.get(self.plan.key(*found))
            if trace is None:
                self.plan.count_fresh(found)
                self._start(self._buy(found))
            else:
                self._arrived.append((found, trace))
                self.plan.count_reused(trace)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if task is self._grading:
            self._grading = None
        if not task.cancelled() and task.exception() is not None:
            self._fault = self._fault or task.exception()
        self._wake.set()

    async def _buy(self, found: At) -> None:
        await self.open_teacher()
        trace = await self.buyer.buy_one(self.plan.job(*found))
        if trace is None:
            self._tell(found, Result(lost=True))
        else:
            self._arrived.append((found, trace))

    async def _grade(self, thread: ThreadPoolExecutor) -> None:
        """Judge all that arrived in a thread, so that no stream waits for a slow grader."""
        batch, self._arrived = self._arrived, []
        self._in_grading = len(batch)
        pairs = [(self.plan.problems[at], trace) for (at, _), trace in batch]
        judged = await asyncio.get_running_loop().run_in_executor(thread, self._judge, pairs)
        for (found, trace), judgement in zip(batch, judged, strict=True):
            self._tell(found, self.plan.result(found, trace, judgement))
        self._in_grading = 0

    def _judge(self, pairs: Sequence[tuple[Problem, Trace]]) -> list[Judged]:
        found = []
        for judged in self.plan.accept.judge(pairs):
            found.append(judged)
            if self._stopping:
                break
        return found

    def _tell(self, found: At, result: Result) -> None:
        self.plan.tell(found, result)
        self._turns.again(found[0])


def _rank(chance: float) -> float:
    return round(1 - chance, 6)
