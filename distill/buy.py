"""Buys the traces that the pool lacks: concurrency, retries, fixed groups and the spending cap.

Whatever arrives is in the pool before anything else happens, so a stop at any moment loses
only what is under way.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from distill.answers import ModelWatch, TeacherFault, classified, trace_of
from distill.errors import DistillError, TeacherError
from distill.meter import Meter
from distill.protocols import BatchTeacher, Completion, Request, Teacher
from distill.records import Trace
from distill.schema import Sampling
from distill.store import TracePool
from distill.thinking import sanitise
from distill.wanted import Job

log = logging.getLogger(__name__)

BACKOFF_S, BACKOFF_MOST_S = 1.0, 60.0
PRIOR_WEIGHT = 8
GIVE_UP_AFTER = 32
ERROR_LENGTH = 1000


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that was given up, after `attempts`."""

    problem_id: str
    index: int
    segment: int
    error: str
    attempts: int


@dataclass(slots=True)
class Budget:
    """The spending cap: `fits` says whether another request may start.

    What a request will cost is taken from those that came back, together with the worst case
    counted PRIOR_WEIGHT times: the first to come back are the short ones, and a whole window
    of requests would be sent on their word. `spent` and `returned` begin with the wanted traces
    that the pool has, so that an interrupted run and its continuation share one cap; `new` is
    what this run spent.
    """

    cap: float | None
    worst: float
    spent: float = 0.0
    returned: int = 0
    new: float = 0.0
    under_way: int = 0

    @property
    def expected(self) -> float:
        return (PRIOR_WEIGHT * self.worst + self.spent) / (PRIOR_WEIGHT + self.returned)

    def fits(self, count: int = 1) -> bool:
        """Whether `count` more requests fit beside those under way.

        With nothing under way only their likely cost counts, so that a small cap is used up
        rather than refused for its worst case.
        """
        if self.cap is None:
            return True
        if self.under_way:
            return self.spent + (self.under_way + count) * self.expected <= self.cap
        likely = self.spent / self.returned if self.returned else 0.0
        return self.spent < self.cap and self.spent + count * likely <= self.cap

    def add(self, cost: float) -> None:
        """A request came back."""
        self.spent += cost
        self.new += cost
        self.returned += 1

    def exceeded(self) -> DistillError:
        return DistillError(
            f"the spending cap is reached: {self.spent:.4g} spent"
            + (f" ({self.spent - self.new:.4g} of it before)" if self.spent > self.new else "")
            + f", sampling.max_cost is {self.cap:.4g}",
            "everything bought is kept in the pool; raise sampling.max_cost, or ask for fewer"
            " samples or problems, and run the same command again",
        )


@dataclass(slots=True)
class Buyer:
    """Buys jobs from a teacher into a pool, and counts.

    `prices` are money per million prompt and completion tokens. `backoff_s` is the first
    upper bound of the wait between two attempts.
    """

    teacher: Teacher | BatchTeacher
    sampling: Sampling
    pool: TracePool
    seed: int
    prices: tuple[float, float]
    budget: Budget
    meter: Meter | None = None
    watch: ModelWatch = field(default_factory=ModelWatch)
    backoff_s: float = BACKOFF_S
    bought: int = 0
    tokens: int = 0
    retried: int = 0
    failures: list[Failure] = field(default_factory=list)
    first_error: TeacherError | None = None
    _streak: int = 0
    _room: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def buy(self, jobs: Sequence[Job]) -> None:
        """Buy one by one, `sampling.concurrency` at a time.

        Raises what ends the whole run: a fatal TeacherError, any other DistillError, the cap.
        """
        rest = iter(jobs)
        count = min(self.sampling.concurrency, len(jobs))
        workers = [asyncio.create_task(self._work(rest)) for _ in range(count)]
        try:
            done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
            for worker in done:
                worker.result()
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, rest: Iterator[Job]) -> None:
        for job in rest:
            await self.buy_one(job)

    async def buy_one(self, job: Job) -> Trace | None:
        """Buy one trace, as soon as the cap leaves room for it.

        It is in the pool then; None if it is among the failures. Raises what ends the whole run.
        """
        async with self._room:
            while not self.budget.fits():
                if not self.budget.under_way:
                    raise self.budget.exceeded()
                await self._room.wait()
            self.budget.under_way += 1
        try:
            return await self._buy_one(job)
        finally:
            self.budget.under_way -= 1
            async with self._room:
                self._room.notify_all()

    async def _buy_one(self, job: Job) -> Trace | None:
        teacher = cast(Teacher, self.teacher)
        request = job.request(self.sampling, self.seed)
        attempt = 0
        while True:
            attempt, begin = attempt + 1, time.monotonic()
            try:
                completion = await self._answer(teacher, request)
                trace = self._trace(job, request, completion, time.monotonic() - begin)
            except Exception as raised:
                error = classified(raised)
                if not error.retry or attempt > self.sampling.retries:
                    self._fail(job, error, attempt)
                    return None
                await asyncio.sleep(self._again(error, attempt))
            else:
                self._store([trace])
                return trace

    async def _answer(self, teacher: Teacher, request: Request) -> Completion:
        told, kept = 0, False

        def streamed(count: int) -> None:
            nonlocal told
            told += count
            self._streamed(count)

        try:
            done = await teacher.complete(request, streamed)
            kept = True
            return done
        except asyncio.CancelledError as raised:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Not we were cancelled but what the teacher waited for: a task of a library's.
            raise TeacherError("the teacher cancelled the request", retry=True) from raised
        finally:
            if told and not kept and self.meter:
                self.meter.broke_off(told)

    def buy_group(self, group: Sequence[Job]) -> None:
        """Buy a group in one call of the engine and store it in one write.

        After a failure that may pass, the group is run again whole: its members' texts may
        depend on one another.
        """
        if not self.budget.fits(len(group)):
            raise self.budget.exceeded()
        requests = [job.request(self.sampling, self.seed) for job in group]
        for attempt in itertools.count(1):
            results = self._complete_batch(group, requests)
            errors = [r for r in results if isinstance(r, TeacherError)]
            again = any(e.retry for e in errors) and attempt <= self.sampling.retries
            if not again or any(e.fatal for e in errors):
                break
            time.sleep(max(self._again(e, attempt) for e in errors if e.retry))
        self._store([r for r in results if isinstance(r, Trace)])
        for job, result in zip(group, results, strict=True):
            if isinstance(result, TeacherError):
                if result.fatal:
                    raise result
                self._fail(job, result, attempt)

    def _complete_batch(
        self, group: Sequence[Job], requests: Sequence[Request]
    ) -> list[Trace | TeacherError]:
        teacher = cast(BatchTeacher, self.teacher)
        begin = time.monotonic()
        try:
            results: list[Any] = list(teacher.complete_batch(requests, self._streamed))
        except Exception as raised:
            return [classified(raised)] * len(requests)
        seconds = time.monotonic() - begin
        if len(results) != len(requests):
            raise DistillError(
                f"complete_batch of {teacher.identity} returned {len(results)} results"
                f" for {len(requests)} requests",
                "return one Completion or TeacherError for each request, in order",
            )
        traces: list[Trace | TeacherError] = []
        for job, request, result in zip(group, requests, results, strict=True):
            try:
                traces.append(self._trace(job, request, result, seconds))
            except TeacherError as error:
                traces.append(error)
            except Exception as raised:
                traces.append(classified(raised))
        return traces

    def _store(self, traces: Sequence[Trace]) -> None:
        fresh = {trace.key for trace in traces if trace.key not in self.pool}
        self.bought += self.pool.append(traces)
        if traces:
            self._streak = 0
        for trace in traces:
            # A first segment has none before it, and must cost no look into the files.
            place = (trace.problem_id, trace.index, trace.segment - 1)
            before = self.pool.get(place) if trace.segment else None
            tokens = trace.completion_tokens - (before.completion_tokens if before else 0)
            cost = trace.cost - (before.cost if before else 0.0)
            self.tokens += tokens
            self.budget.add(cost)
            if self.meter and trace.key in fresh:
                self.meter.bought(trace, tokens=tokens, cost=cost)

    def _fail(self, job: Job, error: TeacherError, attempts: int) -> None:
        problem_id, index, segment = job.key
        # A proxy's error page can be long, and may hold what no UTF-8 file can.
        text = sanitise(error.message)[0][:ERROR_LENGTH]
        self.failures.append(Failure(problem_id, index, segment, text, attempts))
        self.first_error = self.first_error or error
        if self.meter:
            self.meter.failed()
        # A refusal may be this request's own (a prompt too long). Whatever else fails says
        # something about the teacher, and hours or money are not spent on a broken one.
        if not error.retry and not isinstance(error, TeacherFault):
            return
        self._streak += 1
        if self._streak >= max(GIVE_UP_AFTER, self.sampling.concurrency):
            raise DistillError(
                f"{self._streak} requests in a row failed; the last: {text}",
                "what was bought is kept; repair the teacher and run the same command again",
            ) from error

    def _trace(self, job: Job, request: Request, done: Any, seconds: float) -> Trace:
        if isinstance(done, Exception):
            raise done
        if not isinstance(done, Completion) or not isinstance(done.text, str):
            raise TeacherFault(
                f"the teacher returned {type(done).__name__}, not a Completion with a text",
                "return distill.protocols.Completion(text=...)",
            )
        trace = trace_of(
            job,
            done,
            seed=request.seed,
            seconds=seconds,
            prices=self.prices,
            teacher=self.teacher.identity,
            by_tokens=self.teacher.capabilities.prefix,
        )
        self.watch.see(trace.served_model, trace.fingerprint or "")
        return trace

    def _again(self, error: TeacherError, attempt: int) -> float:
        """Count a retry; the seconds to wait before it, with full jitter."""
        if error.retry_after is not None:
            # Spread a little, or all that were refused together come back together.
            delay = max(0.0, error.retry_after) * random.uniform(1.0, 1.1)
        else:
            delay = random.uniform(0, min(BACKOFF_MOST_S, self.backoff_s * 2 ** (attempt - 1)))
        if not self.retried or delay > BACKOFF_MOST_S:
            log.warning("a request is tried again in %.1f s: %s", delay, error.message)
        self.retried += 1
        if self.meter:
            self.meter.retried()
        return delay

    def _streamed(self, count: int) -> None:
        if self.meter:
            self.meter.streamed(count)
