r"""One answer, one line: `grade_math(gold, response)` and `grade_code(tests, response)`.

For reward functions, notebooks and threads. What a grader cannot settle at once is checked in a
worker that is started on first use, shared by all callers and killed past the deadline, so that no
text hangs or crashes the caller: what cannot be judged is an `error`. For many answers use
`Judge`, which keeps all processors busy.
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
from collections.abc import Mapping
from typing import Any

from distill.errors import UsageError
from distill.grade.base import Check, StagedGrader, bounded
from distill.grade.parts import GraderSpec, build
from distill.grade.pool import GraderPool, default_workers
from distill.records import Grade, Problem, Trace

TIMEOUT_S = 5.0


def grade_math(gold: str, response: str, *, timeout_s: float = TIMEOUT_S) -> Grade:
    r"""Whether the final answer of `response` equals `gold` mathematically.

    `response` is a whole output: the answer is looked for after `</think>`, in the last
    `\boxed{...}` first (docs/grading.md). A check that takes longer than `timeout_s` is killed: an
    `error`. Safe in threads and forked processes; the first call that needs the worker starts it
    (1 to 2 s, not counted).
    """
    return _grade("math", {"gold": gold}, response, timeout_s)


def grade_code(tests: Any, response: str, *, timeout_s: float | None = None) -> Grade:
    """Whether the program in `response` passes `tests`, run in a sandbox (docs/grading-code.md).

    `tests` is what a problem has in `metadata["tests"]`. `timeout_s` is for all of them together;
    None: as much as the tests themselves allow. Raises UsageError where there is no sandbox.
    """
    return _grade("code", {"metadata": {"tests": tests}}, response, timeout_s)


def _grade(name: str, task: Mapping[str, Any], response: str, timeout_s: float | None) -> Grade:
    grader, spec = _grader(name)
    for what, text in (("gold", task.get("gold")), ("response", response)):
        if not isinstance(text, str) and (what == "response" or text is not None):
            detail = f"{what} is of type {type(text).__name__}, expected str"
            return grader.grade("error", detail=detail)
    try:
        result = grader.quick(
            Problem(messages=(), id="one", **task), Trace(problem_id="one", index=0, text=response)
        )
        if isinstance(result, Check):
            limit = grader.limit(result, TIMEOUT_S) if timeout_s is None else timeout_s
            result = _workers.check(spec, result, limit)
        return bounded(result)
    except UsageError:
        raise
    except Exception as error:
        # The contract of a reward function: whatever a model wrote, the caller goes on.
        return bounded(grader.grade("error", detail=f"{type(error).__name__}: {error}"))


@functools.cache
def _grader(name: str) -> tuple[StagedGrader, GraderSpec]:
    spec = GraderSpec(name, {}, os.getcwd())
    return build(spec), spec


class _Workers:
    """Pools of one worker each: as many as there are callers at a time, one for each processor."""

    def __init__(self, most: int | None = None) -> None:
        self._free = threading.Semaphore(most or default_workers())
        self._idle: list[GraderPool] = []  # append and pop are atomic

    def check(self, spec: GraderSpec, check: Check, timeout_s: float) -> Grade:
        with self._free:
            try:
                pool = self._idle.pop()
            except IndexError:
                pool = GraderPool(workers=1)
            try:
                pool.submit(spec, check.part, check.args, timeout_s=timeout_s)
                ((_, grade),) = pool.collect()
            except BaseException:
                pool.close()  # interrupted in the middle: its next answer would be another's
                raise
            self._idle.append(pool)
            return grade

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


_workers = _Workers()


def _forked() -> None:
    # The workers are our parent's, and one of its threads may have held a slot.
    global _workers
    _workers = _Workers()


os.register_at_fork(after_in_child=_forked)
atexit.register(lambda: _workers.close())
