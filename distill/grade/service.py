"""The grading service: `Judge` asks a recipe's graders, with what may hang in killable workers.

The grade step uses it (`run.py`), and so do the evaluation and adaptive sampling.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.grade.base import UNDECIDED, Check, Custom, StagedGrader
from distill.grade.parts import build_all, specs_of
from distill.grade.pool import GraderPool, default_workers
from distill.records import Grade, Problem, Trace
from distill.schema import Grading

RANK = {"ungraded": 0, "unparsed": 1, "error": 2}
"""Which undecided grade is reported where no grader of a list decides."""

WINDOW = 128
"""Traces per worker that are looked at ahead of the one that is due."""

CACHE = 100_000


@dataclass(slots=True)
class _Item:
    """A trace on its way through the graders."""

    problem: Problem
    trace: Trace
    position: int = 0
    best: Grade | None = None
    done: bool = False


class Judge:
    """Judges traces by the recipe's graders; `with Judge(config, folder) as judge: ...`.

    `graders` are objects to use instead of the recipe's names; those that are not ours are called
    in this process, without a time limit, because they may live in a notebook. Raises UsageError
    for a wrong grader.
    """

    def __init__(self, config: Grading, folder: Path, graders: Sequence[Any] | None = None) -> None:
        specs = specs_of(config, folder)
        self.local = graders is not None
        if graders is None:
            self.graders = build_all(specs)
        else:
            self.graders = [
                g if isinstance(g, StagedGrader) else Custom(g, getattr(g, "__name__", "own"), "")
                for g in graders
            ]
        workers = config.workers or default_workers()
        self.window = WINDOW * workers
        self.specs = specs
        self.pool = GraderPool(workers=workers, timeout_s=config.timeout_s)
        self.first_error = ""
        self._known: OrderedDict[Hashable, Grade] = OrderedDict()
        self._waiting: dict[int, list[_Item]] = {}
        self._tickets: dict[Hashable, int] = {}
        self._keys: dict[int, Hashable] = {}

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *exc: object) -> None:
        self.pool.close()

    def grade_many(self, pairs: Iterable[tuple[Problem, Trace]]) -> Iterator[Grade]:
        """One grade for each pair, in order. Holds a bounded number of pairs in memory."""
        line: deque[_Item] = deque()
        for problem, trace in pairs:
            item = _Item(problem, trace)
            self._advance(item)
            line.append(item)
            while line and line[0].done:
                yield self._result(line.popleft())
            while len(line) >= self.window:
                self._collect()
                while line and line[0].done:
                    yield self._result(line.popleft())
        while line:
            while not line[0].done:
                self._collect()
            yield self._result(line.popleft())

    def grade(self, problem: Problem, trace: Trace) -> Grade:
        """The grade of one trace."""
        return next(self.grade_many([(problem, trace)]))

    def _advance(self, item: _Item) -> None:
        """Ask one grader after another until one decides or has to be waited for."""
        while not item.done:
            if item.position >= len(self.graders):
                item.done = True
                break
            grader = self.graders[item.position]
            try:
                result = grader.quick(item.problem, item.trace)
            except Exception as error:
                # Our own cheap parts meet whatever a model wrote and a data set holds.
                result = grader.grade("error", detail=f"{type(error).__name__}: {error}"[:300])
            if isinstance(result, Check) and not self._look_up(item, result):
                return
            if isinstance(result, Grade):
                self._settle(item, result)

    def _look_up(self, item: _Item, check: Check) -> bool:
        """Settle a check that was made before (True), or have it made."""
        key = None if check.key is None else (item.position, check.key)
        if key is not None and key in self._known:
            self._known.move_to_end(key)
            self._settle(item, self._known[key])
            return True
        if self.local:
            self._settle(item, self._call(item.position, check))
            return True
        if key is not None and key in self._tickets:
            self._waiting[self._tickets[key]].append(item)
            return False
        limit = self.graders[item.position].limit(check, self.pool.timeout_s)
        spec = self.specs[item.position]
        ticket = self.pool.submit(spec, check.part, check.args, timeout_s=limit)
        self._waiting[ticket] = [item]
        if key is not None:
            self._tickets[key], self._keys[ticket] = ticket, key
        return False

    def _call(self, position: int, check: Check) -> Grade:
        grader = self.graders[position]
        try:
            return grader.check(*check.args)
        except Exception as error:
            return grader.grade("error", detail=f"{type(error).__name__}: {error}"[:300])

    def _collect(self) -> None:
        for ticket, grade in self.pool.collect():
            key = self._keys.pop(ticket, None)
            if key is not None:
                del self._tickets[key]
                self._known[key] = grade
                if len(self._known) > CACHE:
                    self._known.popitem(last=False)
            for item in self._waiting.pop(ticket):
                self._settle(item, grade)
                self._advance(item)

    def _settle(self, item: _Item, grade: Grade) -> None:
        if grade.outcome == "error":
            self.first_error = self.first_error or f"{grade.grader}: {grade.detail}"
        if grade.outcome not in UNDECIDED:
            item.best, item.done = grade, True
        elif item.best is None or RANK[grade.outcome] > RANK[item.best.outcome]:
            item.best = grade
        item.position += 1

    def _result(self, item: _Item) -> Grade:
        return item.best or Grade(outcome="ungraded", detail="no grader was named")
