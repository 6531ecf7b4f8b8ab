"""Collects every number of the report from a run's folder into one plain dict.

The dict is `report.json`; page and Markdown are rendered from it and from nothing else. Every
key is always there: a part that the run does not have is None or empty, never left out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.errors import DataError
from distill.manifest import hide_argument, hide_secrets
from distill.records import read_jsonl
from distill.report import results as evaluation
from distill.report import traces
from distill.report.data_tables import left_out
from distill.report.words import clean, clip

log = logging.getLogger(__name__)

SCHEMA = 1
PIPELINE = ("problems", "sample", "grade", "tasks", "filter", "select", "train", "evaluate")
CURVE_POINTS = 400
FILTERING = ("measured", "overlaps", "errors")
"""What the report takes of the filter step's summary besides the funnel."""


@dataclass
class Step:
    """One step of the run, as run.json and its own summary tell it."""

    name: str
    folder: Path
    id: str = ""
    seconds: float | None = None
    reused: bool = False
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass
class Source:
    """A run's folder, read: `run.json`, the steps that exist, the manifest."""

    run_dir: Path
    run: dict[str, Any]
    steps: dict[str, Step]
    notes: list[dict[str, str]]

    def folder(self, *names: str) -> Path | None:
        """The folder of the first of these steps that the run has."""
        return next((self.steps[n].folder for n in names if n in self.steps), None)

    def summary(self, *names: str) -> dict[str, Any]:
        """The summary of the first of these steps that the run has; else empty."""
        return next((self.steps[n].summary for n in names if n in self.steps), {})


def collect(run_dir: Path) -> dict[str, Any]:
    """All numbers of a run. Raises DataError where there is no readable run.json."""
    source = read_run(run_dir)
    recipe = source.run.get("recipe") or {}
    ledger = traces.read_ledger(
        source.folder("sample", "import"),
        source.folder("grade"),
        source.folder("select", "filter"),
    )
    data = _data(source, ledger, recipe)
    found, lead = _evaluation(source)
    missing = [step for step in _planned(recipe) if step not in source.steps]
    student = source.folder("train")
    numbers = {
        "schema": SCHEMA,
        "name": recipe.get("name") or source.run.get("name") or run_dir.name,
        "variant": source.run.get("variant") or "",
        "run": run_dir.name,
        "created": source.run.get("created") or "",
        "status": source.run.get("status") or "unknown",
        "until": source.run.get("until") or "report",
        "missing_steps": missing,
        "partial": bool(missing) or source.run.get("status") != "done",
        "command": [hide_argument(str(word)) for word in source.run.get("command") or []],
        "recipe": hide_secrets(recipe),
        "teacher": teacher_of(source, recipe),
        "base": (recipe.get("student") or {}).get("base") or "",
        "student": _relative(student / "student", run_dir.parent) if student else None,
        "headline": lead,
        **data,
        "training": _training(source),
        "evaluation": found,
        "steps": [_step_row(step) for step in source.steps.values()],
        "seconds": sum(step.seconds or 0 for step in source.steps.values()),
        "notes": source.notes,
        "manifest": _read_json(run_dir / "manifest.json", source.notes),
    }
    order = (*PIPELINE, "import", "report")
    source.notes.sort(key=lambda n: order.index(n["step"]) if n["step"] in order else len(order))
    cleaned: dict[str, Any] = clean(numbers)
    return cleaned


def read_run(run_dir: Path) -> Source:
    """run.json and the summaries of the steps it names. Raises DataError."""
    path = run_dir / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(run, dict):
            raise ValueError("expected an object")
    except FileNotFoundError:
        raise DataError(f"{run_dir} has no run.json", "distill ls names the runs") from None
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}", "start the run again") from None
    notes: list[dict[str, str]] = []
    steps = {}
    for name, entry in (run.get("steps") or {}).items():
        folder = run_dir.parent / str(entry.get("folder", ""))
        if not entry.get("folder") or not folder.is_dir():
            notes.append({"step": name, "note": f"its folder {entry.get('folder')} is gone"})
            continue
        summary = _read_json(folder / "summary.json", notes, name) or {}
        seconds = entry.get("seconds")
        steps[name] = Step(
            name=name,
            folder=folder,
            id=str(entry.get("id") or ""),
            seconds=float(seconds) if seconds is not None else None,
            reused=bool(entry.get("reused")),
            summary=summary,
        )
        notes += [{"step": name, "note": str(note)} for note in summary.get("notes") or []]
    return Source(run_dir, run, steps, notes)


def _planned(recipe: Mapping[str, Any]) -> list[str]:
    if recipe.get("traces"):
        return ["import", *PIPELINE[2:]]
    return list(PIPELINE)


def teacher_of(source: Source, recipe: Mapping[str, Any]) -> str:
    """Who made the traces, by the best name that the run has."""
    spec, imported = recipe.get("teacher") or {}, recipe.get("traces") or {}
    names = [
        (source.run.get("objects") or {}).get("teacher"),
        imported.get("teacher"),
        imported.get("dataset") or imported.get("file"),
        spec.get("model"),
        source.summary("sample", "import").get("teacher"),
        spec.get("engine"),
    ]
    return str(next((name for name in names if name), ""))


def _data(source: Source, ledger: traces.Ledger, recipe: Mapping[str, Any]) -> dict[str, Any]:
    pool = source.folder("sample", "import")
    problems = source.folder("problems", "import")
    sampled = source.summary("sample", "import")
    stages = None
    shown: list[dict[str, Any]] = []
    if ledger.judged:
        stages = traces.funnel(ledger, _told(source, recipe))
        for gap in stages["gaps"]:
            text = f"the funnel does not add up: {gap}"
            source.notes.append({"step": "report", "note": text})
            log.warning("%s: %s", source.run_dir, text)
        if pool and problems:
            chosen = traces.choose_traces(ledger, stages["stages"])
            shown = traces.read_traces(pool, problems, chosen, ledger)
    for setting in sampled.get("ignored") or []:
        note = f"the teacher's engine ignores {setting}"
        source.notes.append({"step": "sample", "note": note})
    return {
        "problems": _without_notes(source.summary("problems", "import")),
        "sampling": _without_notes(sampled),
        "grading": _without_notes(source.summary("grade")),
        "filtering": {k: source.summary("filter").get(k) or {} for k in FILTERING},
        "selection": _without_notes(source.summary("select")),
        "origin": "imported" if "import" in source.steps else "sampled",
        "funnel": stages,
        "pass_rates": traces.pass_rates(ledger),
        "lengths": traces.lengths(ledger),
        "traces": shown,
    }


def _told(source: Source, recipe: Mapping[str, Any]) -> traces.Told:
    """What the steps say about the funnel."""
    filtered, selected = source.summary("filter"), source.summary("select")
    trained, select = source.summary("train"), source.folder("select")
    named = [part.get("name", "") for part in recipe.get("filters") or []]
    dataset = select / "dataset.jsonl" if select else None
    return traces.Told(
        order=list(filtered.get("dropped") or named),
        solo=filtered.get("solo") or {},
        marginal=filtered.get("marginal") or {},
        problems=source.summary("problems", "import").get("problems"),
        failed=int(source.summary("sample", "import").get("failed") or 0),
        left_out=left_out(selected),
        selected=selected.get("selected"),
        examples=count_rows(dataset) if dataset and dataset.is_file() else None,
        fitted=trained.get("examples"),
        too_long=int(trained.get("left_out_too_long") or 0),
        bad=int(trained.get("left_out_bad") or 0),
    )


def count_rows(path: Path) -> int:
    """Lines of a JSONL file of ours."""
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _evaluation(source: Source) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    folder = source.folder("evaluate")
    if folder is None:
        return None, None
    results = _read_json(folder / "results.json", source.notes, "evaluate") or {}
    tasks = source.folder("tasks")
    files = sorted(tasks.glob("*.jsonl")) if tasks else []
    heldout = source.folder("problems", "import")
    files += [heldout / "heldout.jsonl"] if heldout else []
    seed = int((source.run.get("recipe") or {}).get("seed") or 0)
    found = evaluation.read_results(results, folder, files, seed)
    for note in results.get("notes") or []:
        if {"step": "evaluate", "note": str(note)} not in source.notes:
            source.notes.append({"step": "evaluate", "note": str(note)})
    return found, evaluation.headline(results, found)


def _training(source: Source) -> dict[str, Any] | None:
    folder = source.folder("train")
    if folder is None:
        return None
    logged = list(read_jsonl(folder / "log.jsonl")) if (folder / "log.jsonl").is_file() else []
    rows = [row for row in logged if row.get("loss") is not None]
    measured = [row for row in logged if row.get("validation_loss") is not None]
    thin = max(1, -(-len(rows) // CURVE_POINTS))
    curve = [
        {key: row.get(key) for key in ("step", "loss", "learning_rate")} for row in rows[::thin]
    ]
    preflight = _read_json(folder / "preflight.json", source.notes, "train")
    return {
        **_without_notes(source.summary("train")),
        "curve": curve,
        "validation_curve": [{"step": r["step"], "loss": r["validation_loss"]} for r in measured],
        "logged": len(rows),
        "preflight": _preflight(preflight),
    }


def _preflight(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the check before training found, and its example with what is trained of it."""
    if found is None:
        return None
    example = [
        {"trained": bool(part.get("trained")), "text": clip(str(part.get("text") or ""))}
        for part in found.get("example") or []
    ]
    return {"checked": found.get("checked"), "failed": found.get("failed"), "example": example}


def _step_row(step: Step) -> dict[str, Any]:
    tokens = step.summary.get("tokens_bought", step.summary.get("tokens"))
    return {
        "step": step.name,
        "folder": f"{step.folder.parent.name}/{step.folder.name}",
        "seconds": step.seconds,
        "reused": step.reused,
        "tokens": tokens if isinstance(tokens, int | float) else None,
        "cost": step.summary.get("cost"),
    }


def _without_notes(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in summary.items() if k != "notes"}


def _relative(path: Path, runs: Path) -> str | None:
    return path.relative_to(runs).as_posix() if path.is_dir() else None


def _read_json(
    path: Path, notes: list[dict[str, str]], step: str = "report"
) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(data, dict):
            return data
        raise ValueError("expected an object")
    except FileNotFoundError:
        return None
    except ValueError as error:
        notes.append({"step": step, "note": f"{path.name} is damaged and was left out: {error}"})
        return None
