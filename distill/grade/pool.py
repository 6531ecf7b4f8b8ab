"""Grading workers that can be killed one by one.

Each worker is a fresh interpreter that imports no more than a grader needs. It gets a chunk of
checks and answers them one at a time, so that the pool always knows which check a worker is at
and since when. A check past its deadline costs its worker's life and is an `error`; the rest of
the chunk goes to another worker. Time that a worker waits for a processor is not counted, so that
a busy machine does not change grades.

Not multiprocessing or pebble: their spawned workers import the caller's `__main__` (a script
without a guard starts itself again, a notebook's imports torch), and a deadline there holds for a
whole chunk.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from socket import socketpair
from typing import Any

from distill.errors import DistillError
from distill.grade.parts import GraderSpec
from distill.grade.worker import Job, waited
from distill.records import Grade

LOAD_S = 120.0
"""Time that a worker has to start and to import what a grader needs, in seconds."""

MEMORY = 2 << 30
"""Address space of a worker, in bytes. math-verify with reasoning-gym takes 0.25 GiB."""

CHUNK = 16
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[3]); "
    "from distill.grade.worker import main; main(int(sys.argv[1]), int(sys.argv[2]))"
)


def default_workers() -> int:
    """One worker for each processor that this process may use, 32 at most."""
    return min(len(os.sched_getaffinity(0)), 32)


class _Member:
    """One worker process, what it was given, and since when it is at the first of it."""

    def __init__(self, specs: Sequence[GraderSpec], memory: int) -> None:
        ours, theirs = socketpair()
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        path = json.dumps([entry or os.getcwd() for entry in sys.path])
        with theirs:
            descriptor = theirs.fileno()
            self.process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, str(descriptor), str(os.getpid()), path],
                pass_fds=(descriptor,),
                stdin=subprocess.DEVNULL,
                stdout=2,
                env=environment,
                start_new_session=True,
            )
        self.pipe = Connection(ours.detach())
        self.pipe.send((list(specs), memory))
        self.jobs: deque[Job] = deque()
        self.loaded: set[tuple[int, str]] = set()
        self.since, self.waited = time.monotonic(), 0.0
        self.grace = 0.0

    def give(self, jobs: list[Job]) -> None:
        self.jobs.extend(jobs)
        self.since, self.grace = time.monotonic(), 0.0
        self.pipe.send(jobs)

    def deadline(self, timeout_s: float) -> float:
        """When the first job is overdue; loading a grader is not counted against it."""
        _, index, part, _ = self.jobs[0]
        loaded = (index, part) in self.loaded
        return self.since + self.grace + (timeout_s if loaded else max(LOAD_S, timeout_s))

    def overdue(self, timeout_s: float) -> bool:
        """True if the first job has had its time; what it waited for a processor is put on top."""
        if not self.jobs or time.monotonic() < self.deadline(timeout_s):
            return False
        self.grace = max(self.grace, waited(self.process.pid) - self.waited)
        return time.monotonic() >= self.deadline(timeout_s)

    def stop(self) -> int:
        """Kill the worker and what it started. Returns its exit code."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.pipe.close()
        return self.process.wait()


class GraderPool:
    """`submit` checks, `collect` grades; both in the caller's thread. A context manager."""

    def __init__(
        self,
        specs: Sequence[GraderSpec],
        *,
        workers: int | None = None,
        timeout_s: float = 5.0,
        memory: int = MEMORY,
    ) -> None:
        self.specs = list(specs)
        self.workers = workers or default_workers()
        self.timeout_s = timeout_s
        self.memory = memory if sys.platform.startswith("linux") else 0
        self.killed = 0
        self._members: list[_Member] = []
        self._queue: deque[Job] = deque()
        self._done: deque[tuple[int, Grade]] = deque()
        self._tickets = 0
        self._open = 0
        self._early_deaths = 0

    def __enter__(self) -> GraderPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers at once; unfinished checks are forgotten."""
        for member in self._members:
            member.stop()
        self._members.clear()

    @property
    def open(self) -> int:
        """Checks that were submitted and not yet collected."""
        return self._open

    def submit(self, grader: int, part: str, args: tuple[Any, ...]) -> int:
        """Queue one check of the grader with this index. Returns its ticket."""
        self._tickets += 1
        self._open += 1
        self._queue.append((self._tickets, grader, part, args))
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
            ends = [m.deadline(self.timeout_s) for m in self._members if m.jobs]
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
                idle = _Member(self.specs, self.memory)
                self._members.append(idle)
            size = max(1, min(CHUNK, len(self._queue) // self.workers))
            chunk = [self._queue.popleft() for _ in range(size)]
            try:
                idle.give(chunk)
            except (BrokenPipeError, ConnectionResetError):
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
            (member.since, member.waited), member.grace = when, 0.0
            _, index, part, _ = member.jobs[0]
            member.loaded.add((index, part))
            self._early_deaths = 0
            if grade is not None:
                member.jobs.popleft()
                self._done.append((ticket, grade))

    def _expire(self) -> None:
        for member in list(self._members):
            if member.overdue(self.timeout_s):
                _, index, part, _ = member.jobs[0]
                limit = self.timeout_s if (index, part) in member.loaded else LOAD_S
                self._bury(member, f"took longer than {limit:g} s and was killed")

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
            ticket, index, _, _ = member.jobs.popleft()
            detail = why or f"the grader ended its process (exit code {code})"
            name = self.specs[index].name
            self._done.append((ticket, Grade(outcome="error", grader=name, detail=detail)))
        self._queue.extendleft(reversed(member.jobs))
