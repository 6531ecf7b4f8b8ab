"""The grade step: one judgement for every trace, in the order of the traces.

`Judge` is the service (the evaluation uses it too); `grade_traces` is the step around it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.grade.base import UNDECIDED, Check, Custom, StagedGrader
from distill.grade.parts import build_all, specs_of
from distill.grade.pool import GraderPool, default_workers
from distill.records import (
    OUTCOMES,
    Grade,
    Problem,
    Trace,
    from_row,
    read_jsonl,
    read_records,
    to_row,
    write_jsonl,
)
from distill.schema import Grading

log = logging.getLogger(__name__)

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
        self.pool = GraderPool(specs, workers=workers, timeout_s=config.timeout_s)
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
        ticket = self.pool.submit(item.position, check.part, check.args)
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


def grade_traces(
    config: Grading, problems_file: Path, traces_file: Path, out: Path, *, folder: Path
) -> None:
    """Write `grades.jsonl` (`{problem_id, index, segment, ...Grade}`) and `summary.json`.

    Reads the traces as a stream; holds all problems. `folder` is where the paths of a user's
    graders start.
    """
    started = time.monotonic()
    problems = {problem.id: problem for problem in read_records(Problem, problems_file)}
    tally = _Tally()
    with Judge(config, folder) as judge:
        rows = _rows(judge, problems, traces_file, tally)
        write_jsonl(out / "grades.jsonl", rows)
        summary = tally.summary(judge)
    summary["seconds"] = round(time.monotonic() - started, 3)
    text = json.dumps(summary, ensure_ascii=False, indent=1)
    (out / "summary.json").write_text(text + "\n", encoding="utf-8")


def _rows(
    judge: Judge, problems: dict[str, Problem], traces_file: Path, tally: _Tally
) -> Iterator[dict[str, Any]]:
    from distill.progress import Progress

    ahead: deque[tuple[Problem, Trace]] = deque()

    def pairs() -> Iterator[tuple[Problem, Trace]]:
        for row in read_jsonl(traces_file):
            trace = from_row(Trace, row)
            problem = problems.get(trace.problem_id) or Problem(messages=(), id=trace.problem_id)
            ahead.append((problem, trace))
            yield problem, trace

    with traces_file.open("rb") as file:
        total = sum(1 for _ in file)
    with Progress("grade", total, "traces") as progress:
        for grade in judge.grade_many(pairs()):
            problem, trace = ahead.popleft()
            if problem.id not in problems:
                grade = dataclasses.replace(grade, outcome="error", detail="no such problem")
            tally.add(problem, grade)
            progress.update(1)
            head = {"problem_id": trace.problem_id, "index": trace.index, "segment": trace.segment}
            yield {**head, **to_row(grade)}


class _Tally:
    """What the summary says; holds two numbers for each problem."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.by_source: dict[str, Counter[str]] = defaultdict(Counter)
        self.correct: Counter[str] = Counter()
        self.judged: Counter[str] = Counter()

    def add(self, problem: Problem, grade: Grade) -> None:
        self.outcomes[grade.outcome] += 1
        self.by_source[problem.source][grade.outcome] += 1
        if grade.outcome != "ungraded":
            self.judged[problem.id] += 1
            self.correct[problem.id] += grade.correct

    def summary(self, judge: Judge) -> dict[str, Any]:
        total = sum(self.outcomes.values())
        return {
            "traces": total,
            "outcomes": {name: self.outcomes[name] for name in OUTCOMES},
            "by_source": {
                source: {name: counts[name] for name in OUTCOMES}
                for source, counts in sorted(self.by_source.items())
            },
            "pass_rate_histogram": self.histogram(),
            "problems_with_correct": sum(1 for count in self.correct.values() if count),
            "grader": ", ".join(grader.name for grader in judge.graders),
            "versions": {grader.name: grader.version for grader in judge.graders},
            "workers_killed": judge.pool.killed,
            "notes": self.notes(judge),
        }

    def histogram(self) -> list[int]:
        """Problems by pass rate 0, 0.1, ... 1; only 0 and 1 themselves are in the end bins."""
        bins = [0] * 11
        for problem, judged in self.judged.items():
            rate = self.correct[problem] / judged
            bins[round(rate * 10) if rate in (0, 1) else min(9, max(1, round(rate * 10)))] += 1
        return bins

    def notes(self, judge: Judge) -> list[str]:
        found = []
        if self.outcomes["error"]:
            found.append(
                f"{self.outcomes['error']} traces could not be judged; first: {judge.first_error}"
            )
        if self.outcomes["ungraded"]:
            found.append(f"{self.outcomes['ungraded']} traces had nothing to be judged by")
        for note in found:
            log.warning(note)
        return found


def grading_identity(config: Grading, folder: Path) -> dict[str, Any]:
    """What a grade depends on: the section of the recipe, and every grader's version."""
    versions = [grader.version for grader in build_all(specs_of(config, folder))]
    return {**config.identity(), "versions": versions}
