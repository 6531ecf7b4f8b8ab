"""One grading worker: reads chunks of checks from a pipe, sends each grade back as it is done.

Started by `distill.grade.pool` as a fresh interpreter, so it holds nothing of the caller (no
torch, no `__main__`). It dies with its parent, has a memory limit, and may be killed at any time.
"""

from __future__ import annotations

import resource
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

from distill.child import die_with_parent
from distill.grade.base import StagedGrader
from distill.grade.parts import GraderSpec, build
from distill.records import Grade

Job = tuple[int, int, str, tuple[Any, ...]]
"""(ticket, index of the grader, part of the grader, arguments of its `check`)."""

Clock = tuple[float, float]
"""Monotonic time, and the time that the worker has waited for a processor, in seconds."""

Reply = tuple[int, Grade | None, Clock]
"""(ticket, grade, when it was done); without a grade: the check begins now."""


def main(descriptor: int, parent: int) -> None:
    """Serve until the pipe is closed."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Connection(descriptor) as pipe:
        specs, memory = pipe.recv()
        if memory:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        worker = Worker(specs, memory)
        while True:
            try:
                chunk: list[Job] = pipe.recv()
            except EOFError:
                return
            for job in chunk:
                grade: Grade | None = None
                try:
                    if worker.load(job):
                        pipe.send((job[0], None, clock()))
                except Exception as error:
                    detail = f"cannot be loaded: {type(error).__name__}: {error}"[:300]
                    grade = Grade(outcome="error", grader=specs[job[1]].name, detail=detail)
                pipe.send((job[0], grade or worker.grade(job), clock()))


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

    def __init__(self, specs: list[GraderSpec], memory: int) -> None:
        self.specs, self.memory = specs, memory
        self.graders: dict[int, StagedGrader] = {}
        self.warm: set[tuple[int, str]] = set()

    def load(self, job: Job) -> bool:
        """Import what the job needs; True if that was not done before."""
        _, index, part, _ = job
        if (index, part) in self.warm:
            return False
        if index not in self.graders:
            self.graders[index] = build(self.specs[index])
        self.graders[index].warm(part)
        self.warm.add((index, part))
        return True

    def grade(self, job: Job) -> Grade:
        """The grade of one check; an exception is an `error` grade."""
        _, index, _, args = job
        grader = self.graders[index]
        try:
            return grader.check(*args)
        except MemoryError:
            return grader.grade("error", detail=f"more than {self.memory >> 20} MiB of memory")
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # SystemExit too: a grader that calls exit() must not take its neighbours along.
            return grader.grade("error", detail=f"{type(error).__name__}: {error}"[:300])
