"""The grading service: `Judge` asks a recipe's graders, with what may hang in killable workers.

Which graders judge a problem: its own (`metadata["grader"]`), else its source's
(`grading.by_source`), else the recipe's (`grading.graders`). The grade step uses it (`run.py`),
and so do the evaluation and adaptive sampling.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.errors import MissingExtra, UsageError
from distill.grade.base import Check, Custom, StagedGrader, bounded
from distill.grade.combine import combined, decides
from distill.grade.parts import (
    OWN,
    GraderSpec,
    build,
    own_specs,
    rules_specs,
    source_specs,
    specs_of,
)
from distill.grade.pool import GraderPool, default_workers
from distill.records import Grade, Problem, Trace
from distill.schema import Grading

WINDOW = 128
"""Traces per worker that are looked at ahead of the one that is due."""

LOOK_S = 0.02
"""How long deadlines may go unwatched while cheap parts are asked, in seconds."""

CACHE = 100_000
"""Grades of checks that are kept for equal ones."""

OWN_CACHE = 1024
"""Graders named by problems themselves that are kept."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """A grader, and what it is called by in a worker."""

    spec: GraderSpec
    grader: StagedGrader


@dataclass(slots=True)
class _Item:
    """A trace on its way through the graders."""

    problem: Problem
    trace: Trace
    rules: Sequence[_Rule]
    grades: list[Grade] = field(default_factory=list)
    done: bool = False


class Judge:
    """Judges traces by the recipe's graders; `with Judge(config, folder) as judge: ...`.

    `graders` are objects to use for every problem instead of the recipe's names; those that are not
    ours are called in this process, without a time limit, because they may live in a notebook.
    Raises UsageError for a wrong grader. One thread uses it at a time.
    """

    def __init__(self, config: Grading, folder: Path, graders: Sequence[Any] | None = None) -> None:
        self.how = config.combine
        self.local = graders is not None
        self._sources: dict[str, list[_Rule]] = {}
        self._own: OrderedDict[str, list[_Rule] | Grade] = OrderedDict()
        if graders is None:
            made = {spec.key: _Rule(spec, build(spec)) for spec in specs_of(config, folder)}
            self._rules = [made[spec.key] for spec in rules_specs(config, folder)]
            for source, specs in source_specs(config, folder).items():
                self._sources[source] = [made[spec.key] for spec in specs]
            self.graders = [rule.grader for rule in made.values()]
        else:
            self.graders = [
                g if isinstance(g, StagedGrader) else Custom(g, getattr(g, "__name__", "own"), "")
                for g in graders
            ]
            self._rules = [
                _Rule(GraderSpec(grader.name, {}, f"object {place}"), grader)
                for place, grader in enumerate(self.graders)
            ]
        workers = config.workers or default_workers()
        self.window = WINDOW * workers
        self.pool = GraderPool(workers=workers, timeout_s=config.timeout_s)
        self.first_error = ""
        self._look = 0.0
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
            item = self._item(problem, trace)
            self._advance(item)
            line.append(item)
            if self.pool.open and time.monotonic() > self._look:
                self._collect(0)
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

    def _item(self, problem: Problem, trace: Trace) -> _Item:
        rules: Sequence[_Rule] | Grade = self._rules
        if not self.local:
            if problem.metadata.get(OWN):
                rules = self._own_rules(problem)
            else:
                rules = self._sources.get(problem.source, self._rules)
        if isinstance(rules, Grade):  # what the problem names cannot be had
            return _Item(problem, trace, (), [rules], done=True)
        return _Item(problem, trace, rules)

    def _own_rules(self, problem: Problem) -> list[_Rule] | Grade:
        named = repr(problem.metadata[OWN])
        rules = self._own.get(named)
        if rules is None:
            try:
                rules = [_Rule(spec, build(spec)) for spec in own_specs(problem) or ()]
            except UsageError as error:
                rules = Grade(outcome="error", grader="metadata", detail=error.message)
            self._own[named] = rules
            if len(self._own) > OWN_CACHE:
                self._own.popitem(last=False)
        if isinstance(rules, Grade):
            self.first_error = self.first_error or rules.detail
        return rules

    def _advance(self, item: _Item) -> None:
        """Ask one grader after another until one settles it or has to be waited for."""
        while not item.done:
            if len(item.grades) >= len(item.rules):
                item.done = True
                break
            rule = item.rules[len(item.grades)]
            try:
                result = rule.grader.quick(item.problem, item.trace)
                if isinstance(result, Check):
                    hash(result.key)
            except (UsageError, MissingExtra):
                raise  # no sandbox, no package: the machine's fault, the same for every trace
            except Exception as error:
                # Our own cheap parts meet whatever a model wrote and a data set holds.
                result = _failed(rule, error)
            if isinstance(result, Check) and not self._look_up(item, rule, result):
                return
            if isinstance(result, Grade):
                self._settle(item, result)

    def _look_up(self, item: _Item, rule: _Rule, check: Check) -> bool:
        """Settle a check that was made before (True), or have it made."""
        key = None if check.key is None else (rule.spec.key, check.key)
        if key is not None and key in self._known:
            self._known.move_to_end(key)
            self._settle(item, self._known[key])
            return True
        if self.local:
            self._settle(item, _called(rule, check))
            return True
        if key is not None and key in self._tickets:
            self._waiting[self._tickets[key]].append(item)
            return False
        limit = rule.grader.limit(check, self.pool.timeout_s)
        ticket = self.pool.submit(rule.spec, check.part, check.args, timeout_s=limit)
        self._waiting[ticket] = [item]
        if key is not None:
            self._tickets[key], self._keys[ticket] = ticket, key
        return False

    def _collect(self, timeout_s: float | None = None) -> None:
        # Whoever is busy with cheap parts must look up now and then, or a stuck check outlives
        # its deadline.
        done = self.pool.collect(timeout_s)
        self._look = time.monotonic() + LOOK_S
        for ticket, grade in done:
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
        item.grades.append(bounded(grade))
        item.done = decides(self.how, grade)

    def _result(self, item: _Item) -> Grade:
        return combined(self.how, item.grades)


def _called(rule: _Rule, check: Check) -> Grade:
    try:
        return rule.grader.check(*check.args)
    except Exception as error:
        return _failed(rule, error)


def _failed(rule: _Rule, error: Exception) -> Grade:
    return rule.grader.grade("error", detail=f"{type(error).__name__}: {error}"[:300])
