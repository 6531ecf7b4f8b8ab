"""The filter step over all cores: blocks go to workers, answers come back in the order of traces.

Workers are fresh interpreters without torch that read their blocks themselves, so that only
numbers and reasons go through the pipes. A filter that takes longer than `DEADLINE_S` over one
trace, or that ends its process, costs its worker's life and is an error on that trace; the block is
asked again without that question. Time that a worker waits for a processor is not counted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path

from distill import errors
from distill.errors import DistillError
from distill.filter.asking import Answers
from distill.filter.parts import Part
from distill.filter.reading import Block
from distill.filter.worker import BEAT, IDLE, Job, Reply, Setting
from distill.grade.worker import waited
from distill.spawn import spawn

log = logging.getLogger(__name__)

DEADLINE_S = 60.0
"""Time of one filter for one trace, in seconds of its worker's own running time."""

POLL_S = 1.0
AHEAD = 4
"""Blocks per worker that may be finished before the one that is due."""


class _Member:
    """One worker process, the job it has, and what it was seen to be at."""

    def __init__(self, setting: Setting) -> None:
        setting.beat.write_bytes(BEAT.pack(*IDLE))
        self.beat = setting.beat
        self.process, self.pipe = spawn("distill.filter.worker")
        self.pipe.send(setting)
        self.job: Job | None = None
        self.seen, self.since, self.waited = IDLE, 0.0, 0.0

    def at(self) -> tuple[int, int]:
        """(place in the block, filter) of the question that it is at."""
        place, number = BEAT.unpack(self.beat.read_bytes())
        return int(place), int(number)

    def overdue(self, deadline_s: float) -> bool:
        """True if it has been at the same question for too long."""
        at = self.at()
        if at != self.seen or at[1] < 0:
            self.seen, self.since = at, time.monotonic()
            self.waited = waited(self.process.pid)
            return False
        spent = time.monotonic() - self.since - (waited(self.process.pid) - self.waited)
        return spent > deadline_s

    def stop(self) -> int:
        """Kill the worker and what it started. Returns its exit code."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.pipe.close()
        return self.process.wait()


class FilterPool:
    """Workers for one corpus; `ask` puts a pass to them. A context manager.

    `setting.beat` is a folder here: each worker gets a file in it. `most` is the number of traces
    that may end or hang a worker for one filter of `chain` before the run is stopped.
    """

    def __init__(
        self,
        setting: Setting,
        chain: Sequence[Part],
        *,
        workers: int,
        most: float,
        deadline_s: float | None = None,
    ) -> None:
        self.setting, self.chain = setting, chain
        self.workers, self.most = workers, most
        self.deadline_s = DEADLINE_S if deadline_s is None else deadline_s
        self.killed: Counter[int] = Counter()
        self._members: list[_Member] = []
        self._started = 0

    def __enter__(self) -> FilterPool:
        return self

    def __exit__(self, *exc: object) -> None:
        for member in self._members:
            member.stop()
        self._members.clear()

    def ask(
        self,
        questions: Path,
        blocks: Sequence[Block],
        reached: Callable[[Block], bytes] | None = None,
    ) -> Iterator[tuple[Block, Answers]]:
        """The answers for all blocks in order. Raises what went wrong in a worker."""
        queue = deque(
            Job(at, questions, block, reached(block) if reached else None, {})
            for at, block in enumerate(blocks)
        )
        done: dict[int, Answers] = {}
        due = 0
        while due < len(blocks):
            self._feed(queue, due)
            self._collect(queue, done)
            while due in done:
                yield blocks[due], done.pop(due)
                due += 1

    def _feed(self, queue: deque[Job], due: int) -> None:
        while queue and queue[0].ticket < due + AHEAD * self.workers:
            idle = next((m for m in self._members if m.job is None), None)
            if idle is None:
                if len(self._members) >= self.workers:
                    return
                beat = self.setting.beat / f"beat-{self._started}"
                self._started += 1
                idle = _Member(replace(self.setting, beat=beat))
                self._members.append(idle)
            idle.job = queue.popleft()
            idle.seen = IDLE
            # A worker that is gone already is found by `_collect`, which reads from it.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                idle.pipe.send(idle.job)

    def _collect(self, queue: deque[Job], done: dict[int, Answers]) -> None:
        pipes = {member.pipe: member for member in self._members if member.job}
        for pipe in wait(list(pipes), POLL_S):
            member = pipes[pipe]  # type: ignore[index]
            try:
                answer: Reply = member.pipe.recv()
            except (EOFError, OSError):
                self._bury(member, queue, "")
                continue
            ticket, reply = answer
            if not isinstance(reply, Answers):
                raise _error_of(*reply)
            member.job = None
            done[ticket] = reply
        for member in list(self._members):
            if member.job and member.overdue(self.deadline_s):
                why = f"took longer than {self.deadline_s:g} s and was killed"
                self._bury(member, queue, why)

    def _bury(self, member: _Member, queue: deque[Job], why: str) -> None:
        """End a worker. Its job is queued again in front, without the question that ended it."""
        code, (place, number), job = member.stop(), member.at(), member.job
        self._members.remove(member)
        if job is None:
            return
        if number < 0:
            raise DistillError(
                f"a filtering worker ended while it was at no filter (exit code {code})",
                "its messages are above; if it was killed, most likely for want of memory",
            )
        why = why or f"ended its process (exit code {code})"
        label = self.chain[number].label
        log.warning("filter '%s' %s", label, why)
        self.killed[number] += 1
        if self.killed[number] > self.most:
            raise DistillError(
                f"filter '{label}' {why} on trace {job.block.first + place}, the "
                f"{self.killed[number]}. time",
                "mend the filter: it must return for any text",
            )
        queue.appendleft(replace(job, skips={**job.skips, (place, number): why}))


def _error_of(kind: str, message: str, hint: str) -> DistillError:
    error = DistillError(message, hint)
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, DistillError):
        # Rebuilt as its own class without its constructor, whose arguments differ by class.
        error.__class__ = found
    return error
