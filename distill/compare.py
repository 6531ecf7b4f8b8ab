"""Several runs side by side: what differed in recipe and data, and what that did to the results.

A comparison has *arms*: one run each, or the same recipe trained with several seeds. Arms are
compared with the first one, on the problems that all runs were asked, sample for sample under the
settings they were really asked with; where those differ the comparison says so before any number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from distill.errors import DataError
from distill.power import POWER, across_seeds, detectable, holm
from distill.records import read_jsonl
from distill.report.build import Source, read_run
from distill.report.changes import Rates, read_rates
from distill.statistics import Floats, mean_score, paired_difference, sign_flip_p

SETTINGS = ("temperature", "top_p", "max_tokens", "samples", "engine")
"""What has to be the same for two scores to be compared."""
UNTOLD = {"name", "about", "variants"}
"""Keys of a recipe that change no result."""


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone, under the name that tables give them."""

    label: str
    runs: Sequence[Path]


@dataclass
class _Side:
    """One run, read."""

    source: Source
    results: dict[str, Any]
    rates: dict[str, Rates]
    examples: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.source.run_dir.name

    @property
    def recipe(self) -> dict[str, Any]:
        return dict(self.source.run.get("recipe") or {})


def compare(arms: Sequence[Arm], *, seed: int = 0) -> dict[str, Any]:
    """Everything a page on these arms says, as a plain dict. The first arm is the reference.

    Raises DataError where a run cannot be read, or where no task was asked of all of them.
    """
    sides = [[_read(run) for run in arm.runs] for arm in arms]
    everyone = [side for group in sides for side in group]
    tasks, lonely = {}, []
    for task in dict.fromkeys(t for side in everyone for t in side.rates):
        if not all("student" in side.rates.get(task, {}) for side in everyone):
            lonely.append(f"{task} was not asked of all students")
        elif common := sorted(set.intersection(*(set(_student(s, task)) for s in everyone))):
            tasks[task] = _task(task, common, [a.label for a in arms], sides, seed)
        else:
            lonely.append(f"on {task} the runs have no problem in common")
    if not tasks:
        raise DataError(
            f"there is nothing to compare: {'; '.join(lonely) or 'no run was evaluated'}",
            "compare runs that were evaluated on the same task, with the same held-out problems",
        )
    adjusted = [d for task in tasks.values() for d in task["arms"] if d["difference"] is not None]
    for entry, p in zip(adjusted, holm([d["p"] for d in adjusted]), strict=True):
        entry["p_adjusted"] = p
    return {
        "schema": 1,
        "arms": [
            {
                "label": arm.label,
                "runs": [side.name for side in group],
                "seeds": len(group),
                **_facts(group),
            }
            for arm, group in zip(arms, sides, strict=True)
        ],
        "recipe": _recipe_differences([group[0] for group in sides]),
        "steps": _shared_steps(everyone),
        "tasks": tasks,
        "warnings": [*_warnings(everyone), *lonely],
    }


def _read(run: Path) -> _Side:
    source = read_run(run)
    folder = source.folder("evaluate")
    if folder is None:
        raise DataError(f"{run.name} was not evaluated", "distill evaluate RECIPE does it")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    side = _Side(source, results, read_rates(folder / "samples.jsonl"))
    for step in source.every("select"):
        for row in read_jsonl(step.folder / "dataset.jsonl"):
            key = str(row.get("problem_id") or row.get("id") or "")
            side.examples[key] = side.examples.get(key, 0) + 1
    return side


def _facts(group: Sequence[_Side]) -> dict[str, Any]:
    """What was trained on and how, of the first run of an arm."""
    side = group[0]
    select, train = side.source.summary("select"), side.source.summary("train")
    return {
        "examples": select.get("selected"),
        "problems": len(side.examples) or None,
        "tokens": train.get("tokens"),
        "updates": train.get("updates"),
        "method": train.get("method"),
        "loss": _mean([s.source.summary("train").get("final_loss") for s in group]),
        "train_seconds": _mean([s.source.summary("train").get("seconds") for s in group]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _student(side: _Side, task: str) -> dict[str, float]:
    return side.rates[task]["student"]


def _task(
    task: str,
    common: Sequence[str],
    labels: Sequence[str],
    sides: Sequence[Sequence[_Side]],
    seed: int,
) -> dict[str, Any]:
    everyone = [side for group in sides for side in group]
    base = next((s.rates[task]["base"] for s in everyone if "base" in s.rates[task]), {})
    rows = []
    reference = _values(sides[0], task, common)
    for place, (label, group) in enumerate(zip(labels, sides, strict=True)):
        values = _values(group, task, common)
        row = {"label": label, **_score(values, seed), **_no_difference()}
        if place:
            row |= _difference(values, reference, seed)
        rows.append(row)
    known = [p for p in common if p in base]
    return {
        "problems": len(common),
        "left_out": {s.name: len(_student(s, task)) - len(common) for s in everyone},
        "base": sum(base[p] for p in known) / len(known) if known else None,
        "arms": rows,
    }


def _values(group: Sequence[_Side], task: str, problems: Sequence[str]) -> Floats:
    """Shares of right samples, (seeds, problems)."""
    return np.array([[_student(s, task)[p] for p in problems] for s in group])


def _score(values: Floats, seed: int) -> dict[str, Any]:
    if len(values) > 1 and values.shape[1] > 1:
        found = across_seeds(values, 0.0, 1.0)
        return {
            "score": found.value,
            "interval": found.interval.as_list(),
            "seed_deviation": found.seed_deviation,
        }
    score = mean_score(values.mean(axis=0), seed=seed)
    return {"score": score.value, "interval": score.interval.as_list(), "seed_deviation": None}


def _no_difference() -> dict[str, Any]:
    keys = ("difference", "difference_interval", "p", "p_adjusted", "clear", "detectable")
    return dict.fromkeys(keys)


def _difference(values: Floats, reference: Floats, seed: int) -> dict[str, Any]:
    """An arm minus the reference, paired by problem, and by seed where both have as many."""
    paired = len(values) == len(reference) > 1 and values.shape[1] > 1
    if paired:
        found = across_seeds(values - reference, -1.0, 1.0)
        gaps = (values - reference).mean(axis=0)
        value, interval = found.value, found.interval
        half = (interval.high - interval.low) / 2
        p = max(sign_flip_p(gaps, seed=seed), _p_of(value, half))
        seen = half * (1 + _z(POWER) / _z(0.975)) or None
    else:
        one = paired_difference(values.mean(axis=0), reference.mean(axis=0), seed=seed)
        gaps = values.mean(axis=0) - reference.mean(axis=0)
        value, interval, p, seen = one.value, one.interval, one.p, detectable(gaps)
    return {
        "difference": value,
        "difference_interval": interval.as_list(),
        "p": p,
        "clear": 0 not in interval,
        "detectable": seen,
    }


def _p_of(value: float, half: float) -> float:
    """The two-sided p-value that belongs to the 95% interval `value` +- `half`."""
    return 2 * (1 - NormalDist().cdf(_z(0.975) * abs(value) / half)) if half > 0 else 1.0


def _z(p: float) -> float:
    return NormalDist().inv_cdf(p)


def _recipe_differences(sides: Sequence[_Side]) -> list[dict[str, Any]]:
    """Every key of the recipes that is not the same in all of them."""
    plain = [dict(_leaves(side.recipe)) for side in sides]
    keys = dict.fromkeys(key for one in plain for key in one)
    return [
        {"key": key, "values": [one.get(key) for one in plain]}
        for key in keys
        if key.split(".")[0] not in UNTOLD and len({json.dumps(p.get(key)) for p in plain}) > 1
    ]


def _leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shared_steps(sides: Sequence[_Side]) -> list[dict[str, Any]]:
    """How many different folders each step has: one means that all runs share it."""
    found: dict[str, set[str]] = {}
    for side in sides:
        for step in side.source.steps.values():
            found.setdefault(step.name, set()).add(step.folder.name)
    return [{"step": name, "different": len(folders)} for name, folders in found.items()]


def _warnings(sides: Sequence[_Side]) -> Iterator[str]:
    """What makes the numbers less comparable than they look."""
    settings = [side.results.get("settings") or {} for side in sides]
    for key in SETTINGS:
        values = list(dict.fromkeys(json.dumps(s.get(key)) for s in settings))
        if len(values) > 1:
            yield f"not asked alike: {key} is {' and '.join(values)}; the scores do not compare"
    bases = {(s.recipe.get("student") or {}).get("base") for s in sides}
    if len(bases) > 1:
        yield f"the students have different bases: {', '.join(sorted(map(str, bases)))}"
    for side in sides:
        if side.source.run.get("status") not in ("done", "partial"):
            yield f"{side.name} is {side.source.run.get('status')}: what it has is compared"
