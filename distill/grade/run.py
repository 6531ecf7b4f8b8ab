"""The grade step: one judgement for every trace, in the order of the traces.

`Judge` is the service that asks the rules (the evaluation uses it too); `grade_traces` is the step
around it, in which judge models are asked about what the rules left open.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill import child
from distill.errors import UsageError
from distill.grade import judge
from distill.grade.base import UNDECIDED, Check, Custom, StagedGrader
from distill.grade.parts import build_all, judges_of, rules_of, specs_of
from distill.grade.pool import GraderPool, default_workers
from distill.grade.tally import Graded, Tally
from distill.records import (
    Grade,
    Problem,
    Trace,
    from_row,
    read_jsonl,
    read_records,
    write_jsonl,
)
from distill.schema import Grading

log = logging.getLogger(__name__)

RANK = {"ungraded": 0, "unparsed": 1, "error": 2}
"""Which undecided grade is reported where no grader of a list decides."""

WINDOW = 128
"""Traces per worker that are looked at ahead of the one that is due."""

CACHE = 100_000

BATCH, HEAVY_BATCH = 4096, 100_000
"""Traces put to a judge at a time: a served one, and one that is loaded anew each time."""


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
    config: Grading,
    problems_file: Path,
    traces_file: Path,
    out: Path,
    *,
    folder: Path,
    pool_root: Path | None = None,
    seed: int = 0,
) -> None:
    """Write `grades.jsonl` (`{problem_id, index, segment, ...Grade}`) and `summary.json`.

    Reads the traces as a stream; holds all problems. `folder` is where the paths of a user's
    graders start. Judge models keep their replies in `pool_root`, sampled with `seed`; one that
    is held in memory works in a child process.
    """
    specs = [judge.JudgeSpec.of(part) for part in judges_of(config)]
    if specs and pool_root is None:
        raise UsageError("a judge model needs a trace pool for its replies", "pass pool_root")
    payload = {
        "grading": config.model_dump(mode="json"),
        "problems": str(problems_file),
        "traces": str(traces_file),
        "out": str(out),
        "folder": str(folder),
        "pool": str(pool_root or ""),
        "seed": seed,
    }
    if any(judge.embedded(spec) for spec in specs):
        child.call("distill.grade.run:with_model", payload)
    else:
        main(payload)


def with_model(payload: Mapping[str, Any]) -> None:
    """The step in a child that may hold a model."""
    parts = judges_of(Grading.model_validate(payload["grading"]))
    if any(judge.engine_of(judge.JudgeSpec.of(part)) in judge.EMBEDDED for part in parts):
        from transformers.utils import logging as bars

        bars.disable_progress_bar()  # it would tear our own progress line
    main(payload)


def main(payload: Mapping[str, Any]) -> None:
    """The step from a plain payload, in this process."""
    started = time.monotonic()
    config, folder = Grading.model_validate(payload["grading"]), Path(payload["folder"])
    out, pool, seed = Path(payload["out"]), Path(payload["pool"]), payload["seed"]
    problems = {p.id: p for p in read_records(Problem, Path(payload["problems"]))}
    judges = [
        judge.ModelJudge(judge.JudgeSpec.of(part), folder, pool_root=pool, seed=seed)
        for part in judges_of(config)
    ]
    tally = Tally(judges)
    with Judge(config, folder) as rules:
        graded = _graded(rules, problems, Path(payload["traces"]))
        write_jsonl(out / "grades.jsonl", tally.over(_judged(graded, judges)))
        summary = tally.summary(rules.graders, rules.pool.killed)
    summary["seconds"] = round(time.monotonic() - started, 3)
    text = json.dumps(summary, ensure_ascii=False, indent=1)
    (out / "summary.json").write_text(text + "\n", encoding="utf-8")


def _graded(rules: Judge, problems: dict[str, Problem], traces_file: Path) -> Iterator[Graded]:
    """Every trace with what the rules say of it, in the order of the file."""
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
        for grade in rules.grade_many(pairs()):
            problem, trace = ahead.popleft()
            head = {"problem_id": trace.problem_id, "index": trace.index, "segment": trace.segment}
            progress.update(1)
            if problem.id in problems:
                yield Graded(problem, head, grade, trace)
            else:
                grade = dataclasses.replace(grade, outcome="error", detail="no such problem")
                yield Graded(problem, head, grade)


def _judged(graded: Iterable[Graded], judges: Sequence[judge.ModelJudge]) -> Iterator[Graded]:
    """The same in the same order, once the judges were asked about what the rules left open.

    They are asked in batches; an engine that is loaded for each batch gets larger ones.
    """
    heavy = any(judge.embedded(one.spec) for one in judges)
    most = HEAVY_BATCH if heavy else BATCH
    held: list[Graded] = []
    waiting = 0
    for item in graded:
        if item.trace is not None and any(one.wants(item.grade) for one in judges):
            waiting += 1
        else:
            item.trace = None  # thousands of whole traces would not fit
        held.append(item)
        if waiting >= most or len(held) >= 8 * most or not judges:
            yield from _asked(held, judges)
            held, waiting = [], 0
    yield from _asked(held, judges)


def _asked(held: list[Graded], judges: Sequence[judge.ModelJudge]) -> list[Graded]:
    for one in judges:
        chosen = [item for item in held if item.trace is not None and one.wants(item.grade)]
        pairs = [(item.problem, item.trace) for item in chosen if item.trace is not None]
        for item, grade in zip(chosen, one.grade_many(pairs), strict=True):
            item.grade = grade
    return held


def grading_identity(config: Grading, folder: Path, hashes: Path | None = None) -> dict[str, Any]:
    """What a grade depends on: the section of the recipe, and every grader's version.

    `hashes` is where the hashes of a local judge's weights are remembered.
    """
    rules = rules_of(config)
    versions = [grader.version for grader in build_all(specs_of(config, folder))]
    identity = {**rules.identity(), "versions": versions}
    specs = [judge.JudgeSpec.of(part) for part in judges_of(config)]
    if specs:
        identity["judges"] = [judge.judge_identity(spec, folder, hashes) for spec in specs]
    return identity
