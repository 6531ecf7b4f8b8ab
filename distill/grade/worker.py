"""One grading worker: reads chunks of checks from a pipe, sends each grade back as it is done.

Started by `distill.grade.pool` as a fresh interpreter, so it holds nothing of the caller (no
torch, no `__main__`). It dies with its parent, has a memory limit, and may be killed at any time.
"""

from __future__ import annotations

import pickle
import resource
import signal
import time
from collections import OrderedDict
from collections.abc import Hashable
from multiprocessing.connection import Connection
from typing import NamedTuple

from distill.child import die_with_parent
from distill.grade.base import StagedGrader, bounded
from distill.grade.parts import GraderSpec, build
from distill.records import Grade

GRADERS = 256
"""Graders that a worker keeps: data may bring each problem's own."""


class Job(NamedTuple):
    """One check: `check(*args)` of a grader, to be done in `timeout_s` seconds."""

    ticket: int
    spec: GraderSpec
    part: str
    args: bytes
    """The arguments, pickled: what cannot be read again is an error of this check alone."""
    timeout_s: float


Clock = tuple[float, float]
"""Monotonic time, and the time that the worker has waited for a processor, in seconds."""

Reply = tuple[int, Grade | None, Clock]
"""(ticket, grade, when it was done); without a grade: the check begins now, or, with the ticket
LEAVING, the worker ends here and what it has not answered is for another."""

LEAVING = 0


def main(descriptor: int, parent: int, memory: int) -> None:
    """Serve until the pipe is closed. `memory` limits the address space, in bytes; 0 does not."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Connection(descriptor) as pipe:
        if memory:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        worker = Worker(memory)
        while True:
            try:
                chunk: list[Job] = pipe.recv()
            except EOFError:
                return
            for job in chunk:
                grade: Grade | None = None
                try:
                    if worker.load(job):
                        pipe.send((job.ticket, None, clock()))
                except Exception as error:
                    detail = f"cannot be loaded: {type(error).__name__}: {error}"[:300]
                    grade = Grade(outcome="error", grader=job.spec.name, detail=detail)
                pipe.send((job.ticket, grade or worker.grade(job), clock()))
                if worker.bloated():
                    pipe.send((LEAVING, None, clock()))
                    return


def waited(process: int | str) -> float:
    """Seconds that a process was ready to run and had no processor; 0 where nobody counts them."""
    try:
        with open(f"/proc/{process}/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def clock() -> Clock:
    """This process's Clock."""
    return time.monotonic(), waited("self")


class Worker:
    """Builds graders when they are first needed and turns whatever they do into a Grade."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.graders: OrderedDict[Hashable, tuple[StagedGrader, set[str]]] = OrderedDict()
        """By their spec's key, with the parts that are warm."""

    def load(self, job: Job) -> bool:
        """Import what the job needs; True if that was not done before."""
        held = self.graders.get(job.spec.key)
        if held is None:
            held = self.graders[job.spec.key] = build(job.spec), set()
            if len(self.graders) > GRADERS:
                self.graders.popitem(last=False)
        self.graders.move_to_end(job.spec.key)
        grader, warm = held
        if job.part in warm:
            return False
        grader.warm(job.part)
        warm.add(job.part)
        return True

    def bloated(self) -> bool:
        """True once it has used half of its memory: the next check should not run short of it."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        return 0 < self.memory < 2 * peak

    def grade(self, job: Job) -> Grade:
        """The grade of one check; an exception is an `error` grade."""
        grader, _ = self.graders[job.spec.key]
        try:
            return bounded(grader.check(*pickle.loads(job.args)))
        except MemoryError:
            return grader.grade("error", detail=f"more than {self.memory >> 20} MiB of memory")
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # SystemExit too: a grader that calls exit() must not take its neighbours along.
            return grader.grade("error", detail=f"{type(error).__name__}: {error}"[:300])
