"""Collects every number of the report from a run's folder into one plain dict.

The dict is `report.json`; page and Markdown are rendered from it and from nothing else. Every
key is always there: a part that the run does not have is None or empty, never left out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distill.errors import DataError
from distill.manifest import hide_argument, hide_secrets
from distill.recipe import Recipe
from distill.report import cited, traces
from distill.report import results as evaluation
from distill.report.data_tables import left_out
from distill.report.reading import Reader
from distill.report.training import read_json, read_training, without_notes
from distill.report.words import clean
from distill.stages import stages_of
from distill.terms import warnings

log = logging.getLogger(__name__)

SCHEMA = 1
PIPELINE = ("problems", "sample", "grade", "tasks", "filter", "select", "train", "evaluate")
FILTERING = ("measured", "overlaps", "errors")
"""What the report takes of the filter step's summary besides the funnel."""


@dataclass
class Step:
    """One step of the run, as run.json and its own summary tell it.

    `kind` is `train` where the run, which has several stages, calls it `train-hard`.
    """

    name: str
    folder: Path
    id: str = ""
    seconds: float | None = None
    reused: bool = False
    summary: dict[str, Any] = field(default_factory=dict)
    kind: str = ""
    stage: str = ""


@dataclass
class Source:
    """A run's folder, read: `run.json`, the steps that exist, the manifest."""

    run_dir: Path
    run: dict[str, Any]
    steps: dict[str, Step]
    notes: list[dict[str, str]]
    read: Reader = field(default_factory=Reader)

    def every(self, kind: str) -> list[Step]:
        """The steps of a kind in their order: one, or one of each stage."""
        return [step for step in self.steps.values() if step.kind == kind]

    def step(self, *kinds: str) -> Step | None:
        """The first of these kinds that the run has; of several stages the last one's."""
        return next((found[-1] for kind in kinds if (found := self.every(kind))), None)

    def folder(self, *names: str) -> Path | None:
        """The folder of that step."""
        found = self.step(*names)
        return found.folder if found else None

    def summary(self, *names: str) -> dict[str, Any]:
        """The summary of that step; else empty."""
        found = self.step(*names)
        return found.summary if found else {}

    @property
    def stages(self) -> list[str]:
        """Names of the stages that have a data set; empty for a recipe without stages."""
        return [step.stage for step in self.every("select") if step.stage]

    def at(self, stage: str) -> Source:
        """The run as a run of this stage alone, with its part of the recipe."""
        steps = {n: s for n, s in self.steps.items() if s.stage in ("", stage)}
        own = {step.kind for step in steps.values() if step.stage}
        steps = {n: s for n, s in steps.items() if s.stage or s.kind not in own}
        recipe = Recipe.from_dict(self.run.get("recipe") or {})
        of = next((s.recipe for s in stages_of(recipe) if s.name == stage), recipe)
        run = {**self.run, "recipe": of.model_dump(mode="json")}
        return replace(self, run=run, steps=steps)


def collect(run_dir: Path) -> dict[str, Any]:
    """All numbers of a run. Raises DataError where there is no readable run.json."""
    source = read_run(run_dir)
    recipe = source.run.get("recipe") or {}
    ledger = traces.read_ledger(
        source.read,
        source.folder("sample", "import"),
        source.folder("grade"),
        *[step.folder for step in source.every("select") or source.every("filter")],
    )
    data = _data(source, ledger, recipe)
    found, lead = _evaluation(source)
    trained = read_training(
        source.every("train"), source.notes, source.summary("merge"), source.read
    )
    source.notes += [{"step": "report", "note": line} for line in warnings(recipe)]
    source.notes += source.read.notes()
    missing = [step for step in _planned(recipe) if step not in source.steps]
    student = source.folder("merge", "train")
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
        "training": trained,
        "evaluation": found,
        "steps": [_step_row(step) for step in source.steps.values()],
        "seconds": sum(step.seconds or 0 for step in source.steps.values()),
        "notes": source.notes,
        "manifest": read_json(run_dir / "manifest.json", source.notes),
    }
    order = [*PIPELINE, "import", "merge", "report"]
    order += [step.name for step in source.steps.values() if step.stage]
    source.notes.sort(key=lambda n: order.index(n["step"]) if n["step"] in order else len(order))
    cleaned: dict[str, Any] = clean(numbers)
    return cleaned


def read_run(run_dir: Path) -> Source:
    """run.json and the summaries of the steps it names. Raises DataError."""
    path = run_dir / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(run, dict) or not isinstance(run.get("steps") or {}, dict):
            raise ValueError("expected an object with the run's steps")
    except FileNotFoundError:
        raise DataError(f"{run_dir} has no run.json", "distill ls names the runs") from None
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}", "start the run again") from None
    notes: list[dict[str, str]] = []
    steps = {}
    for name, told in (run.get("steps") or {}).items():
        entry = told if isinstance(told, dict) else {}
        folder = run_dir.parent / str(entry.get("folder", ""))
        if not entry.get("folder") or not folder.is_dir():
            notes.append(
                {
                    "step": name,
                    "note": f"its folder {entry.get('folder', '')} is gone".replace("  ", " "),
                }
            )
            continue
        summary = read_json(folder / "summary.json", notes, name) or {}
        seconds = entry.get("seconds")
        steps[name] = Step(
            name=name,
            kind=str(entry.get("step") or name),
            stage=str(entry.get("stage") or ""),
            folder=folder,
            id=str(entry.get("id") or ""),
            seconds=float(seconds) if seconds is not None else None,
            reused=bool(entry.get("reused")),
            summary=summary,
        )
        notes += [{"step": name, "note": str(note)} for note in summary.get("notes") or []]
    return Source(run_dir, run, steps, notes)


def _planned(recipe: Mapping[str, Any]) -> list[str]:
    planned = ["import", *PIPELINE[2:]] if recipe.get("traces") else list(PIPELINE)
    if recipe.get("merge"):
        planned.insert(-1, "merge")
    names = [stage["name"] for stage in recipe.get("stages") or []]
    staged = {kind: [f"{kind}-{name}" for name in names] for kind in ("select", "train") if names}
    return [label for step in planned for label in staged.get(step, [step])]


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
            shown = traces.read_traces(source.read, pool, problems, chosen, ledger)
    for setting in sampled.get("ignored") or []:
        note = f"the teacher's engine ignores {setting}"
        source.notes.append({"step": "sample", "note": note})
    return {
        "problems": without_notes(source.summary("problems", "import")),
        "sampling": without_notes(sampled),
        "grading": without_notes(source.summary("grade")),
        "filtering": {k: source.summary("filter").get(k) or {} for k in FILTERING},
        "selection": _selection(source),
        "origin": "imported" if "import" in source.steps else "sampled",
        "funnel": stages,
        "pass_rates": traces.pass_rates(ledger),
        "lengths": traces.lengths(ledger),
        "traces": shown,
    }


def _selection(source: Source) -> dict[str, Any]:
    """The summary of the selection; of several stages the first one's, with the sets of all."""
    steps = source.every("select")
    if len(steps) < 2:
        return without_notes(source.summary("select"))
    splits = {
        f"stage {step.stage}" + ("" if name == "train" else f", {name}"): split
        for step in steps
        for name, split in (step.summary.get("splits") or {}).items()
    }
    return {**without_notes(steps[0].summary), "splits": splits, "left_out": {}}


def _told(source: Source, recipe: Mapping[str, Any]) -> traces.Told:
    """What the steps say about the funnel."""
    filtered, selected = source.summary("filter"), source.summary("select")
    trained, select = source.summary("train"), source.folder("select")
    if source.stages:
        # A trace may be in several sets: what all stages take together stands in no summary.
        selected, trained, select = {}, {}, None
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
    results = read_json(folder / "results.json", source.notes, "evaluate") or {}
    tasks = source.folder("tasks")
    files = sorted(tasks.glob("*.jsonl")) if tasks else []
    heldout = source.folder("problems", "import")
    files += [heldout / "heldout.jsonl"] if heldout else []
    recipe = source.run.get("recipe") or {}
    seed = int(recipe.get("seed") or 0)
    found = evaluation.read_results(results, folder, files, seed, source.read)
    for name, task in found["tasks"].items():
        task["published"] = cited.beside(name, task, found["settings"], recipe)
    for note in results.get("notes") or []:
        if {"step": "evaluate", "note": str(note)} not in source.notes:
            source.notes.append({"step": "evaluate", "note": str(note)})
    return found, evaluation.headline(results, found)


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


def _relative(path: Path, runs: Path) -> str | None:
    return path.relative_to(runs).as_posix() if path.is_dir() else None
