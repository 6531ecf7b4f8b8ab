"""Grading workers that can be killed one by one.

Each worker is a fresh interpreter that imports no more than a grader needs. It gets a chunk of
checks and answers them one at a time, so that the pool always knows which check a worker is at
and since when. A check past its deadline costs its worker's life and is an `error`; the rest of
the chunk goes to another worker. Time that a worker waits for a processor is not counted, so that
a busy machine does not change grades.

Not pebble: its deadline holds for a whole chunk, and its workers import the caller's `__main__`.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import time
from collections import deque
from collections.abc import Hashable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from distill.errors import DistillError
from distill.grade.parts import GraderSpec
from distill.grade.worker import LEAVING, Job, waited
from distill.records import Grade
from distill.spawn import spawn

LOAD_S = 120.0
"""Time that a worker has to start and to import what a grader needs, in seconds."""

MEMORY = 2 << 30
"""Address space of a worker, in bytes. math-verify with reasoning-gym takes 0.25 GiB."""

CHUNK = 16


def default_workers() -> int:
    """One worker for each processor that this process may use, 32 at most."""
    return min(len(os.sched_getaffinity(0)), 32)


class _Member:
    """One worker process, what it was given, and since when it is at the first of it."""

    def __init__(self, memory: int) -> None:
        self.process, self.pipe = spawn("distill.grade.worker", memory)
        self.jobs: deque[Job] = deque()
        self.loaded: set[Hashable] = set()
        self.since, self.waited = time.monotonic(), 0.0
        self.grace = 0.0

    def give(self, jobs: list[Job]) -> None:
        self.pipe.send(jobs)
        self.jobs.extend(jobs)
        self.since, self.grace = time.monotonic(), 0.0

    @property
    def limit(self) -> float:
        """Seconds that the first job has; loading a grader is not counted against it."""
        job = self.jobs[0]
        return job.timeout_s if _loading(job) in self.loaded else max(LOAD_S, job.timeout_s)

    @property
    def deadline(self) -> float:
        """When the first job is overdue."""
        return self.since + self.grace + self.limit

    @property
    def overdue(self) -> bool:
        """True if the first job has had its time; what it waited for a processor is put on top."""
        if not self.jobs or time.monotonic() < self.deadline:
            return False
        self.grace = max(self.grace, waited(self.process.pid) - self.waited)
        return time.monotonic() >= self.deadline

    def stop(self) -> int:
        """Kill the worker and what it started. Returns its exit code."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.pipe.close()
        return self.process.wait()


def _loading(job: Job) -> Hashable:
    """Equal for jobs whose graders import the same. Data may bring our graders in many settings."""
    return (job.spec.key if ":" in job.spec.name else job.spec.name), job.part


class GraderPool:
    """`submit` checks, `collect` grades; by one thread at a time. A context manager.

    Workers start with the first check. A process that was forked off starts its own.
    """

    def __init__(
        self, *, workers: int | None = None, timeout_s: float = 5.0, memory: int = MEMORY
    ) -> None:
        self.workers = workers or default_workers()
        self.timeout_s = timeout_s
        self.memory = memory if sys.platform.startswith("linux") else 0
        self.killed = 0
        self.longest = 0.0
        """The longest that a check took, as a share of its deadline; killing it is counted."""
        self._members: list[_Member] = []
        self._queue: deque[Job] = deque()
        self._done: deque[tuple[int, Grade]] = deque()
        self._tickets = 0
        self._open = 0
        self._early_deaths = 0
        self._process = os.getpid()

    def __enter__(self) -> GraderPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers at once; unfinished checks are forgotten."""
        if self._process == os.getpid():  # a fork must leave its parent's workers alone
            for member in self._members:
                member.stop()
        self._members.clear()

    @property
    def open(self) -> int:
        """Checks that were submitted and not yet collected."""
        return self._open

    def submit(
        self,
        spec: GraderSpec,
        part: str,
        args: tuple[Any, ...],
        *,
        timeout_s: float | None = None,
    ) -> int:
        """Queue one check: `check(*args)` of the grader that `spec` names. Returns its ticket.

        `timeout_s` is its own deadline in seconds instead of the pool's.
        """
        if self._process != os.getpid():
            self._process, self._members = os.getpid(), []
        self._tickets += 1
        self._open += 1
        limit = self.timeout_s if timeout_s is None else timeout_s
        try:
            packed = pickle.dumps(args, pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # data may be nested deeper than anything can follow
            detail = f"cannot be sent to a worker: {type(error).__name__}: {error}"[:300]
            grade = Grade(outcome="error", grader=spec.name, detail=detail)
            self._done.append((self._tickets, grade))
        else:
            self._queue.append(Job(self._tickets, spec, part, packed, limit))
        return self._tickets

    def collect(self, timeout_s: float | None = None) -> list[tuple[int, Grade]]:
        """Grades that are ready, as (ticket, grade). Waits until there is one, if any is open.

        With `timeout_s`, may return nothing after that time.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._feed()
            self._receive(0)
            self._expire()
            if self._done or not self._open:
                break
            now = time.monotonic()
            if until is not None and now >= until:
                break
            ends = [m.deadline for m in self._members if m.jobs]
            if until is not None:
                ends.append(until)
            self._receive(max(0.0, min(ends, default=now + 1) - now))
        ready = list(self._done)
        self._done.clear()
        self._open -= len(ready)
        self._feed()
        return ready

    def _feed(self) -> None:
        while self._queue:
            idle = next((m for m in self._members if not m.jobs), None)
            if idle is None:
                if len(self._members) >= self.workers:
                    return
                idle = _Member(self.memory)
                self._members.append(idle)
            size = max(1, min(CHUNK, len(self._queue) // self.workers))
            chunk = [self._queue.popleft() for _ in range(size)]
            try:
                idle.give(chunk)
            except (BrokenPipeError, ConnectionResetError):
                # It died while it had nothing to do: no check is to blame.
                self._queue.extendleft(reversed(chunk))
                self._bury(idle, "")

    def _receive(self, timeout_s: float) -> None:
        pipes = {m.pipe: m for m in self._members if m.jobs}
        for pipe in wait(list(pipes), timeout_s) if pipes else ():
            member = pipes[pipe]  # type: ignore[index]
            try:
                self._read(member)
            except (EOFError, OSError):
                self._bury(member, "")

    def _read(self, member: _Member) -> None:
        while member.jobs and member.pipe.poll():
            ticket, grade, when = member.pipe.recv()
            if ticket == LEAVING:
                self._queue.extendleft(reversed(member.jobs))
                member.jobs.clear()
                self._bury(member, "")
                return
            if grade is not None:
                busy = when[0] - member.since - (when[1] - member.waited)
                self.longest = max(self.longest, busy / member.limit)
            (member.since, member.waited), member.grace = when, 0.0
            member.loaded.add(_loading(member.jobs[0]))
            self._early_deaths = 0
            if grade is not None:
                member.jobs.popleft()
                self._done.append((ticket, grade))

    def _expire(self) -> None:
        for member in list(self._members):
            if member.overdue:
                limit, begin = member.limit, member.since + member.grace
                self._bury(member, f"took longer than {limit:g} s and was killed")
                self.longest = max(self.longest, (time.monotonic() - begin) / limit)

    def _bury(self, member: _Member, why: str) -> None:
        """End a worker: its first job is an error, the others are queued again, in front."""
        code = member.stop()
        self._members.remove(member)
        self.killed += 1
        if not member.loaded:
            self._early_deaths += 1
            if self._early_deaths > 2 * self.workers:
                raise DistillError(
                    f"grading workers do not start (exit code {code})",
                    f"their messages are above; try: {Path(sys.executable).name} -m "
                    "distill.grade.worker",
                )
        if member.jobs:
            job = member.jobs.popleft()
            detail = why or f"the grader ended its process (exit code {code})"
            grade = Grade(outcome="error", grader=job.spec.name, detail=detail)
            self._done.append((job.ticket, grade))
        self._queue.extendleft(reversed(member.jobs))
