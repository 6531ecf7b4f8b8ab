"""What the evaluation found: rows of models, paired differences, groups, and problem by problem.

Rates and intervals are the evaluation's own (`distill/scores.py`). What it does not write, the
paired difference within a group and the problems that got better or worse, is computed here from
its samples by the same statistics.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.records import Problem, read_jsonl, read_records
from distill.report.traces import questions, take_apart
from distill.statistics import paired_difference

ROLES = ("base", "base-best", "student", "teacher")
SHOWN_CHANGES = 5
PAIRS = {"gained": 2, "lost": 2, "neither": 1}

Rates = dict[str, dict[str, float]]
"""role -> problem id -> share of correct samples."""


def read_results(
    results: Mapping[str, Any], folder: Path, task_files: Sequence[Path], seed: int = 0
) -> dict[str, Any]:
    """All that the report says of the evaluation, from `results.json` and `samples.jsonl`.

    `task_files` are JSONL files of problems; `seed` draws the intervals of the groups.
    """
    rates = _read_rates(folder / "samples.jsonl")
    tasks = {}
    for name, task in (results.get("tasks") or {}).items():
        models = task.get("models") or {}
        files = [f for f in task_files if f.stem == name] + list(task_files)
        mine = rates.get(name, {})
        changes = _changes(mine)
        tasks[name] = {
            "problems": task.get("problems"),
            "judged": task.get("judged", task.get("problems")),
            "samples": task.get("samples"),
            "models": [_model(role, models[role]) for role in _ordered(models)],
            "differences": _differences(task.get("differences") or {}),
            "groups": _groups(
                models, rates.get(name, {}), _labels(files, rates.get(name, {})), seed
            ),
            "changes": changes,
            "pairs": _pairs(folder / "samples.jsonl", name, changes, files),
        }
        _name_problems(changes, files)
    return {"settings": dict(results.get("settings") or {}), "tasks": tasks}


def headline(results: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """The one comparison of the first screen: the student against the stronger row of the base.

    The evaluation names task and row; without its word, the first task and the higher pass@1.
    None without a student or a base.
    """
    tasks = evaluation.get("tasks") or {}
    named = results.get("headline") or {}
    order = ([named["task"]] if named.get("task") in tasks else []) + list(tasks)
    for name in order:
        rates = {m["role"]: m.get("pass@1") for m in tasks[name]["models"]}
        differences = tasks[name]["differences"]
        bases = [
            role
            for role in ("base", "base-best")
            if rates.get(role) is not None and f"student-{role}" in differences
        ]
        if rates.get("student") is None or not bases:
            continue
        role = named.get("base_role") if named.get("task") == name else None
        against = role if role in bases else max(bases, key=lambda r: rates[r])
        found = differences[f"student-{against}"]
        keys = ("interval", "p", "format", "reasoning", "better", "worse", "same")
        return {
            "task": name,
            "problems": found.get("problems", tasks[name]["judged"]),
            "samples": tasks[name]["samples"],
            "against": against,
            "base": rates[against],
            "student": rates["student"],
            "gain": found.get("difference"),
            **{key: found.get(key) for key in keys},
            "rows": [
                {k: m.get(k) for k in ("role", "pass@1", "interval")} for m in tasks[name]["models"]
            ],
            "others": {
                other: {
                    k: differences[f"student-{other}"].get(k) for k in ("difference", "interval")
                }
                for other in bases
                if other != against
            },
        }
    return None


def _pick(data: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: data.get(key) for key in keys}


def _differences(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    # The evaluation's own list of regressions is of one pair of models; ours has both directions.
    return {
        name: {k: v for k, v in d.items() if k != "regressions"} for name, d in found.items() if d
    }


def _ordered(models: Iterable[str]) -> list[str]:
    known = [role for role in ROLES if role in models]
    return known + [role for role in models if role not in ROLES]


def _model(role: str, model: Mapping[str, Any]) -> dict[str, Any]:
    left_out = ("by_source", "by_difficulty")
    return {"role": role, **{k: v for k, v in model.items() if k not in left_out}}


Labels = dict[str, dict[str, str]]
"""kind (source, difficulty) -> problem id -> name of its group."""


def _labels(files: Sequence[Path], rates: Rates) -> Labels:
    wanted = {problem for of in rates.values() for problem in of}
    labels: Labels = {"source": {}, "difficulty": {}}
    for path in files:
        if not path.is_file() or not wanted - labels["source"].keys():
            continue
        for problem in read_records(Problem, path):
            if problem.id in wanted and problem.id not in labels["source"]:
                labels["source"][problem.id] = problem.source or "unnamed"
                if problem.metadata.get("difficulty") is not None:
                    labels["difficulty"][problem.id] = str(problem.metadata["difficulty"])
    return labels


def _groups(
    models: Mapping[str, Any], rates: Rates, labels: Labels, seed: int
) -> list[dict[str, Any]]:
    """Base and student by source and by difficulty, where there is more than one group."""
    base, student = models.get("base") or {}, models.get("student") or {}
    rows = []
    for kind in ("source", "difficulty"):
        before, after = base.get(f"by_{kind}") or {}, student.get(f"by_{kind}") or {}
        names = [name for name in after if name in before]
        if len(names) < 2:
            continue
        for name in names:
            members = [p for p, label in labels[kind].items() if label == name]
            rows.append(
                {
                    "kind": kind,
                    "name": name,
                    "problems": after[name].get("problems"),
                    "base": before[name].get("pass@1"),
                    "base_interval": before[name].get("interval"),
                    "student": after[name].get("pass@1"),
                    "student_interval": after[name].get("interval"),
                    **_gap(members, rates, seed),
                }
            )
    return rows


def _gap(members: Sequence[str], rates: Rates, seed: int) -> dict[str, Any]:
    """Student minus base on the problems of one group, with the interval of the evaluation."""
    base, student = rates.get("base", {}), rates.get("student", {})
    both = [p for p in members if p in base and p in student]
    if not both:
        return {"difference": None, "interval": None}
    found = paired_difference(
        np.array([student[p] for p in both]), np.array([base[p] for p in both]), seed=seed
    )
    return {"difference": found.value, "interval": found.interval.as_list()}


def _read_rates(samples: Path) -> dict[str, Rates]:
    seen: dict[str, dict[str, dict[str, list[bool]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    if samples.is_file():
        for row in read_jsonl(samples):
            of = seen[str(row.get("task"))][str(row.get("role"))]
            if row.get("outcome") != "ungraded":
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
