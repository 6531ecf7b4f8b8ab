"""What the evaluation found: rows of models, paired differences, groups, and problem by problem.

Rates and intervals are the evaluation's own (`distill/evaluate.py`); only what it does not
write, which problems got better or worse, is counted here from its samples.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.records import read_jsonl
from distill.report.traces import questions, take_apart

ROLES = ("base", "base-best", "student", "teacher")
SHOWN_CHANGES = 5
PAIRS = {"gained": 2, "lost": 2, "neither": 1}

Rates = dict[str, dict[str, float]]
"""role -> problem id -> share of correct samples."""


def read_results(
    results: Mapping[str, Any], folder: Path, task_files: Sequence[Path]
) -> dict[str, Any]:
    """All that the report says of the evaluation, from `results.json` and `samples.jsonl`."""
    rates = _read_rates(folder / "samples.jsonl")
    tasks = {}
    for name, task in (results.get("tasks") or {}).items():
        models = task.get("models") or {}
        changes = _changes(rates.get(name, {}))
        files = [f for f in task_files if f.stem == name] + list(task_files)
        tasks[name] = {
            "problems": task.get("problems"),
            "samples": task.get("samples"),
            "models": [_model(role, models[role]) for role in _ordered(models)],
            "differences": {k: dict(d) for k, d in (task.get("differences") or {}).items() if d},
            "groups": _groups(models),
            "changes": changes,
            "pairs": _pairs(folder / "samples.jsonl", name, changes, files),
        }
        _name_problems(changes, files)
    return {"settings": dict(results.get("settings") or {}), "tasks": tasks}


def headline(results: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """The one comparison of the first screen: the student against the base, same settings.

    The task is the one the evaluation names, or the first. None without student and base.
    """
    tasks = evaluation.get("tasks") or {}
    named = (results.get("headline") or {}).get("task")
    order = ([named] if named in tasks else []) + list(tasks)
    for name in order:
        models = {m["role"]: m for m in tasks[name]["models"]}
        difference = tasks[name]["differences"].get("student-base")
        if difference is None or "student" not in models or "base" not in models:
            continue
        return {
            "task": name,
            "problems": tasks[name]["problems"],
            "samples": tasks[name]["samples"],
            "gain": difference.get("difference"),
            "interval": difference.get("interval"),
            "p": difference.get("p"),
            "rows": [
                {k: m.get(k) for k in ("role", "pass@1", "interval")} for m in models.values()
            ],
            "against_best": tasks[name]["differences"].get("student-base-best"),
        }
    return None


def _ordered(models: Iterable[str]) -> list[str]:
    known = [role for role in ROLES if role in models]
    return known + [role for role in models if role not in ROLES]


def _model(role: str, model: Mapping[str, Any]) -> dict[str, Any]:
    left_out = ("by_source", "by_difficulty")
    return {"role": role, **{k: v for k, v in model.items() if k not in left_out}}


def _groups(models: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Base and student by source and by difficulty, where there is more than one group."""
    base, student = models.get("base") or {}, models.get("student") or {}
    rows = []
    for kind in ("source", "difficulty"):
        before, after = base.get(f"by_{kind}") or {}, student.get(f"by_{kind}") or {}
        names = [name for name in after if name in before]
        if len(names) < 2:
            continue
        for name in names:
            b, s = _rate(before[name]), _rate(after[name])
            rows.append(
                {
                    "kind": kind,
                    "name": name,
                    "problems": _problems(after[name]),
                    "base": b,
                    "student": s,
                    "difference": s - b if b is not None and s is not None else None,
                }
            )
    return rows


def _rate(group: Any) -> float | None:
    if isinstance(group, Mapping):
        group = group.get("pass@1")
    return float(group) if isinstance(group, int | float) else None


def _problems(group: Any) -> int | None:
    if isinstance(group, Mapping):
        found = group.get("problems", group.get("n"))
        return int(found) if found is not None else None
    return None


def _read_rates(samples: Path) -> dict[str, Rates]:
    seen: dict[str, dict[str, dict[str, list[bool]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    if samples.is_file():
        for row in read_jsonl(samples):
            of = seen[str(row.get("task"))][str(row.get("role"))]
            of[str(row.get("problem_id"))].append(row.get("outcome") == "correct")
    return {
        task: {
            role: {problem: sum(right) / len(right) for problem, right in problems.items()}
            for role, problems in roles.items()
        }
        for task, roles in seen.items()
    }


def _changes(rates: Rates) -> dict[str, Any] | None:
    """Problems the student answers more or less often than the base, and the extreme ones."""
    if "base" not in rates or "student" not in rates:
        return None
    base, student = rates["base"], rates["student"]
    rows = [{"problem_id": p, "base": base[p], "student": student[p]} for p in base if p in student]
    gained = [r for r in rows if r["student"] > r["base"]]
    lost = [r for r in rows if r["student"] < r["base"]]
    neither = [r for r in rows if r["student"] == r["base"] == 0]

    def extreme(side: list[dict[str, Any]]) -> list[dict[str, Any]]:
        by_size = sorted(side, key=lambda r: (-abs(r["student"] - r["base"]), _lot(r)))
        return by_size[:SHOWN_CHANGES]

    return {
        "better": len(gained),
        "worse": len(lost),
        "same": len(rows) - len(gained) - len(lost),
        "gained": extreme(gained),
        "lost": extreme(lost),
        "neither": sorted(neither, key=_lot)[: PAIRS["neither"]],
    }


def _lot(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(str(row["problem_id"]).encode()).hexdigest()


def _name_problems(changes: dict[str, Any] | None, files: Sequence[Path]) -> None:
    if changes is None:
        return
    rows = [row for kind in PAIRS for row in changes[kind]]
    asked = questions(files, {row["problem_id"] for row in rows})
    for row in rows:
        row.update(asked.get(row["problem_id"], {"question": "", "gold": None}))


def _pairs(
    samples: Path, task: str, changes: Mapping[str, Any] | None, files: Sequence[Path]
) -> list[dict[str, Any]]:
    """Base and student on the same problem: as many losses as gains, and one that both missed."""
    if changes is None:
        return []
    wanted = {
        row["problem_id"]: kind for kind, many in PAIRS.items() for row in changes[kind][:many]
    }
    answers: dict[tuple[str, str], tuple[bool, dict[str, Any]]] = {}
    for row in read_jsonl(samples):
        problem, role = str(row.get("problem_id")), str(row.get("role"))
        if row.get("task") != task or problem not in wanted or role not in ("base", "student"):
            continue
        winner = {"gained": "student", "lost": "base"}.get(wanted[problem])
        telling = (row.get("outcome") == "correct") == (role == winner)
        if (problem, role) not in answers or (telling and not answers[problem, role][0]):
            answers[problem, role] = (telling, _answer(row))
    asked = questions(files, set(wanted))
    return [
        {
            "kind": kind,
            "problem_id": problem,
            **asked.get(problem, {"question": "", "gold": None}),
            "base": answers[problem, "base"][1],
            "student": answers[problem, "student"][1],
        }
        for problem, kind in wanted.items()
        if (problem, "base") in answers and (problem, "student") in answers
    ]


def _answer(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "index": row.get("index", 0),
        "outcome": str(row.get("outcome", "ungraded")),
        "extracted": row.get("extracted"),
        "length": row.get("completion_tokens"),
        "finish_reason": row.get("finish_reason"),
        **take_apart(str(row.get("text") or "")),
    }
