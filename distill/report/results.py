"""What the evaluation found: rows of models, paired differences, groups, and problem by problem.

Rates and intervals are the evaluation's own (`distill/scores.py`). What it does not write, the
paired difference within a group and the problems that got better or worse, is computed here from
its samples by the same statistics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.report.changes import (
    Labels,
    Rates,
    changed,
    labels_of,
    name_problems,
    pairs,
    read_rates,
)
from distill.report.reading import STRICT, Reader
from distill.statistics import paired_difference

BASES = ("base", "base-best")
ROLES = ("base", "base-best", "student", "teacher")
KINDS = ("source", "subject", "difficulty")
"""What problems are grouped by."""


def read_results(
    results: Mapping[str, Any],
    folder: Path,
    task_files: Sequence[Path],
    seed: int = 0,
    read: Reader = STRICT,
) -> dict[str, Any]:
    """All that the report says of the evaluation, from `results.json` and `samples.jsonl`.

    `task_files` are JSONL files of problems; `seed` draws the intervals of the groups.
    """
    samples = folder / "samples.jsonl"
    rates = read_rates(samples, read)
    tasks = {}
    for name, task in (results.get("tasks") or {}).items():
        models = task.get("models") or {}
        files = [f for f in task_files if f.stem == name] + list(task_files)
        mine = rates.get(name, {})
        against = _stronger_base(models, task.get("differences") or {})
        changes = changed(mine, against)
        tasks[name] = {
            "problems": task.get("problems"),
            "judged": task.get("judged", task.get("problems")),
            "samples": task.get("samples"),
            "max_tokens": task.get("max_tokens"),
            "models": [_model(role, models[role]) for role in _ordered(models)],
            "differences": _differences(task.get("differences") or {}),
            "against": against,
            "contamination": _contamination(task.get("contamination")),
            "groups": _groups(models, mine, against, labels_of(files, mine, read), seed),
            "changes": changes,
            "pairs": pairs(samples, name, against, changes, files, read),
        }
        name_problems(changes, files, read)
    settings = dict(results.get("settings") or {})
    asked = {
        role: str(model.get("asked") or "")
        for role, model in (settings.pop("models", None) or {}).items()
    }
    return {
        "settings": settings,
        "asked": asked,
        "tasks": tasks,
        "lm_eval": _foreign(results.get("lm_eval") or {}, results.get("lm_eval_settings") or {}),
    }


def headline(results: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """The one comparison of the first screen: the student against the stronger row of the base.

    The task is the one that the evaluation names. None without a student or a base.
    """
    tasks = evaluation.get("tasks") or {}
    named = (results.get("headline") or {}).get("task")
    order = ([named] if named in tasks else []) + list(tasks)
    for name in order:
        against, differences = tasks[name]["against"], tasks[name]["differences"]
        if against is None:
            continue
        rates = {m["role"]: m.get("pass@1") for m in tasks[name]["models"]}
        found = differences[f"student-{against}"]
        keys = ["interval", "p", "p_adjusted", "detectable", "format", "reasoning"]
        keys += ["better", "worse", "same"]
        return {
            "task": name,
            "problems": found.get("problems", tasks[name]["judged"]),
            "samples": tasks[name]["samples"],
            "against": against,
            "base": rates[against],
            "student": rates["student"],
            "gain": found.get("difference"),
            **_pick(found, keys),
            "overlapping": (tasks[name]["contamination"] or {}).get("overlapping"),
            "rows": [_pick(m, ("role", "pass@1", "interval")) for m in tasks[name]["models"]],
            "others": {
                other: _pick(differences[f"student-{other}"], ("difference", "interval"))
                for other in BASES
                if other != against and f"student-{other}" in differences
            },
        }
    return None


def _stronger_base(models: Mapping[str, Any], differences: Mapping[str, Any]) -> str | None:
    """The row of the base to be compared with: the one that does better, or the student's gain
    would partly be the base's bad prompt."""
    rates = {role: (models.get(role) or {}).get("pass@1") for role in (*BASES, "student")}
    known = [b for b in BASES if rates[b] is not None and f"student-{b}" in differences]
    if rates["student"] is None or not known:
        return None
    return max(known, key=lambda role: rates[role] or 0.0)


def _foreign(found: Mapping[str, Any], told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """lm-eval's own tasks: one row for each metric, a value and its standard error by role.

    `told` says how each task was asked.
    """
    rows: list[dict[str, Any]] = []
    for task, roles in found.items():
        metrics = dict.fromkeys(
            name
            for numbers in roles.values()
            for name, value in numbers.items()
            if isinstance(value, int | float) and "_stderr" not in name
        )
        for metric in metrics:
            name, _, kind = metric.partition(",")
            error = f"{name}_stderr,{kind}" if kind else f"{name}_stderr"
            values = {role: numbers.get(metric) for role, numbers in roles.items()}
            errors = {role: numbers.get(error) for role, numbers in roles.items()}
            row = {"task": task, "metric": name, "values": values, "stderr": errors}
            rows.append({**row, "settings": told.get(task) or {}})
    return rows


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
    left_out = {f"by_{kind}" for kind in KINDS}
    return {"role": role, **{k: v for k, v in model.items() if k not in left_out}}


def _contamination(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """How many problems were trained on, and the scores without them; None if nobody looked."""
    if not found:
        return None
    models, differences = found.get("models") or {}, found.get("differences") or {}
    return {
        **_pick(found, ("overlapping", "problems")),
        "models": [{"role": role, **models[role]} for role in _ordered(models)],
        "differences": differences,
    }


def _groups(
    models: Mapping[str, Any], rates: Rates, against: str | None, labels: Labels, seed: int
) -> list[dict[str, Any]]:
    """Base and student by source, subject and difficulty, where there is more than one group."""
    base, student = models.get(against or "") or {}, models.get("student") or {}
    rows = []
    for kind in KINDS:
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
                    **_gap(members, rates, against, seed),
                }
            )
    return rows


def _gap(members: Sequence[str], rates: Rates, against: str | None, seed: int) -> dict[str, Any]:
    """Student minus base on the problems of one group, with the interval of the evaluation."""
    base, student = rates.get(against or "", {}), rates.get("student", {})
    both = [p for p in members if p in base and p in student]
    if not both:
        return {"difference": None, "interval": None}
    found = paired_difference(
        np.array([student[p] for p in both]), np.array([base[p] for p in both]), seed=seed
    )
    return {"difference": found.value, "interval": found.interval.as_list()}
