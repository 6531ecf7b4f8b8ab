"""The grade step: one judgement for every trace, in the order of the traces.

The rules are asked by `service.Judge`, judge models about what the rules left open.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill import child
from distill.errors import UsageError
from distill.grade import judge
from distill.grade.golds import check_ready
from distill.grade.majority import votes_of, with_answer
from distill.grade.parts import build_all, judges_of, rules_of, specs_of
from distill.grade.service import Judge
from distill.grade.tally import Graded, Tally
from distill.records import (
    Problem,
    Trace,
    from_row,
    read_jsonl,
    read_records,
    write_jsonl,
)
from distill.schema import Grading

log = logging.getLogger(__name__)

BATCH, HEAVY_BATCH = 4096, 100_000
"""Traces put to a judge at a time: a served one, and one that is loaded anew each time."""


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
    check_ready(list(problems.values()), config, folder)
    tally = Tally(judges)
    with contextlib.ExitStack() as stack:
        rules = stack.enter_context(Judge(config, folder))
        votes = votes_of(rules.graders, config, folder)
        graded = _graded(rules, problems, Path(payload["traces"]))
        if votes is None:
            judged = _judged(graded, judges)
        else:
            stack.enter_context(votes)
            judged = votes.over(_judged((with_answer(g, votes) for g in graded), judges))
        write_jsonl(out / "grades.jsonl", tally.over(judged))
        summary = tally.summary(rules.graders, rules.pool.killed)
    if votes is not None:
        summary["majority"] = votes.summary()
        summary["notes"] += votes.notes()
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
