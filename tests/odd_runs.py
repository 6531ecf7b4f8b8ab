"""Runs as nobody wants them: evaluations without answers, and folders that something damaged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill import scores
from distill.records import Problem, read_records, write_jsonl
from distill.report.words import clean
from tests.make_run import STEPS, make_run

Outcome = Callable[[str, int, int], str]
"""role, number of the problem, number of the sample -> outcome."""
ROLES = ("base", "base-best", "student")
SUBJECTS = ("algebra", "geometry")


def evaluated(
    runs: Path,
    outcome: Outcome,
    *,
    problems: int = 8,
    k: int = 2,
    seen: int | None = 0,
    tasks: Sequence[str] = ("heldout",),
    tokens: int = 90,
    recipe: Mapping[str, Any] | None = None,
) -> Path:
    """A run of make_run whose evaluation came out as `outcome` says; `seen` problems of it were
    trained on (None: nobody looked)."""
    run = make_run(runs, problems=8, roles=dict.fromkeys(ROLES, 0.5))
    folder = runs / "steps" / "evaluate-pock00000000"
    heldout = runs / "steps" / "tasks-pock00000000" / "heldout.jsonl"
    asked = [*read_records(Problem, heldout)][:problems]
    for place, problem in enumerate(asked):
        problem.metadata["subject"] = SUBJECTS[place % 2]
    write_jsonl(heldout, asked)
    found, every = {}, []
    for task in tasks:
        rows = {role: _rows(task, role, asked, k, outcome, tokens) for role in ROLES}
        every += [row for mine in rows.values() for row in mine]
        found[task] = scores.score_task(asked, rows, samples=k, seed=0)
        overlapping = None if seen is None else dict.fromkeys((p.id for p in asked[:seen]), "x")
        found[task]["contamination"] = scores.without_seen(
            asked, rows, overlapping, samples=k, seed=0
        )
        found[task]["max_tokens"] = 2048
    scores.adjust(found)
    write_jsonl(folder / "samples.jsonl", every)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    results |= {"tasks": found, "headline": scores.headline(found), "lm_eval": {}}
    (folder / "results.json").write_text(json.dumps(clean(results)), encoding="utf-8")
    if recipe:
        content = json.loads((run / "run.json").read_text(encoding="utf-8"))
        for part, keys in recipe.items():
            content["recipe"][part] = {**content["recipe"][part], **keys}
        (run / "run.json").write_text(json.dumps(content), encoding="utf-8")
    return run


def _rows(
    task: str, role: str, asked: Sequence[Problem], k: int, outcome: Outcome, tokens: int
) -> list[dict[str, Any]]:
    return [
        {
            "role": role,
            "task": task,
            "problem_id": problem.id,
            "index": index,
            "outcome": (found := outcome(role, place, index)),
            "score": float(found == "correct"),
            "extracted": "7" if found in scores.PARSED else None,
            "finish_reason": "length" if found == "truncated" else "stop",
            "completion_tokens": 0 if found == "unparsed" else tokens + 30 * place,
            "text": "" if found == "unparsed" else f"<think>\nhm\n</think>\n\n{found} {index}",
        }
        for place, problem in enumerate(asked)
        for index in range(k)
    ]


def _silent_base(role: str, place: int, index: int) -> str:
    return "unparsed" if role != "student" else "correct"


def _silent_student(role: str, place: int, index: int) -> str:
    return "unparsed" if role == "student" else "correct"


def _mixed(role: str, place: int, index: int) -> str:
    right = place % 2 if role == "student" else place % 4 == index % 2
    return "correct" if right else "truncated" if place % 3 == 0 else "wrong"


EVALUATIONS: dict[str, Callable[[Path], Path]] = {
    "without gold": lambda runs: evaluated(runs, lambda *_: "ungraded"),
    "half without gold": lambda runs: evaluated(
        runs, lambda role, place, index: "ungraded" if place < 4 else _mixed(role, place, index)
    ),
    "a base that says nothing": lambda runs: evaluated(runs, _silent_base),
    "a student that says nothing": lambda runs: evaluated(runs, _silent_student),
    "nobody says anything": lambda runs: evaluated(runs, lambda *_: "unparsed"),
    "never finished": lambda runs: evaluated(runs, lambda *_: "truncated"),
    "could not be had": lambda runs: evaluated(runs, lambda *_: "error"),
    "all wrong": lambda runs: evaluated(runs, lambda *_: "wrong"),
    "all right": lambda runs: evaluated(runs, lambda *_: "correct"),
    "k is 1": lambda runs: evaluated(runs, _mixed, k=1),
    "one problem": lambda runs: evaluated(runs, _mixed, problems=1),
    "one problem and one sample": lambda runs: evaluated(runs, _mixed, problems=1, k=1),
    "no problems": lambda runs: _emptied(evaluated(runs, _mixed)),
    "some trained on": lambda runs: evaluated(runs, _mixed, seen=3),
    "all trained on": lambda runs: evaluated(runs, _mixed, seen=8),
    "nobody looked": lambda runs: evaluated(runs, _mixed, seen=None),
    "two tasks": lambda runs: evaluated(runs, _mixed, tasks=("heldout", "aime24")),
}


def _emptied(run: Path) -> Path:
    path = run.parent / "steps" / "evaluate-pock00000000" / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    empty = {"problems": 0, "judged": 0, "samples": 2, "models": {}, "differences": {}}
    results |= {"tasks": {"heldout": empty}, "headline": {}}
    path.write_text(json.dumps(results), encoding="utf-8")
    (path.parent / "samples.jsonl").write_bytes(b"")
    return run


def damaged(runs: Path, name: str, how: str) -> Path:
    """A run whose file `step/name` is `torn` in its middle, `zeroed`, `emptied` or `gone`."""
    run = make_run(runs, problems=8)
    step, _, file = name.partition("/")
    path = runs / "steps" / f"{step}-pock00000000" / file if file else run / name
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        half = len(content) // 2
        new = {"torn": content[:half], "zeroed": content[:half] + bytes(half), "emptied": b""}
        path.write_bytes(new[how])
    return run


FILES = (
    "problems/problems.jsonl",
    "problems/heldout.jsonl",
    "sample/traces.jsonl",
    "sample/summary.json",
    "grade/grades.jsonl",
    "filter/summary.json",
    "select/verdicts.jsonl",
    "select/summary.json",
    "train/log.jsonl",
    "train/preflight.json",
    "train/summary.json",
    "evaluate/results.json",
    "evaluate/samples.jsonl",
)


def unfinished(runs: Path, status: str, steps: int) -> Path:
    """A run that has its first `steps` steps and this status."""
    run = make_run(runs, problems=8, steps=STEPS[:steps])
    content = json.loads((run / "run.json").read_text(encoding="utf-8"))
    content["status"] = status
    (run / "run.json").write_text(json.dumps(content), encoding="utf-8")
    return run
