"""READ FIRST: the whole job, from problems to a report.

    problems ──> sample ──> grade ──> filter ──> select ──> train ──> evaluate ──> report

`distil` is the job in order; each line is one step (`distill/job.py` says what identifies it and
what does it; `distill/step.py` runs it once and never again). `run` wraps it for the command
line and the library.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill import interpreters
from distill.errors import UsageError
from distill.job import Job, summary_of
from distill.names import check_names
from distill.plan import plan_lines
from distill.recipe import Recipe
from distill.step import Done, Workspace, write_atomically
from distill.terms import warn

if TYPE_CHECKING:
    from distill.report import Report

STAGES = (
    *("problems", "sample", "grade", "filter", "select", "train", "merge", "evaluate"),
    "report",
)


def distil(job: Job) -> Iterator[Done]:
    """The whole distillation, one finished step after another. Whoever iterates may stop."""
    published = job.recipe.traces is not None
    yield (problems := job.published() if published else job.problems())
    # The evaluation's problems come first: what is missing is found before anything is paid for.
    yield (tasks := job.tasks(problems))
    traces = problems
    if not published:
        yield (traces := job.sample(problems))
    yield (grades := job.grade(problems, traces))
    # All data sets come before the first training: an empty one is found out in time.
    verdicts, datasets, seen = [], [], set()
    for stage in job.stages:
        verdicts.append(job.filter(problems, traces, grades, tasks, stage))
        if verdicts[-1].label not in seen:
            seen.add(verdicts[-1].label)
            yield verdicts[-1]
    for stage, kept in zip(job.stages, verdicts, strict=True):
        datasets.append(job.select(problems, traces, grades, kept, stage))
        yield datasets[-1]
    student = None
    for stage, dataset in zip(job.stages, datasets, strict=True):
        yield (student := job.train(dataset, stage, student))
    assert student is not None, "a recipe has at least one stage"
    if job.recipe.merge is not None:
        yield (student := job.merge(student))
    yield job.evaluate(problems, student, tasks)


def run(
    recipe: Recipe | str | Path,
    *,
    teacher: Any = None,
    student: Any = None,
    until: str = "report",
    runs: Path | str | None = None,
    command: Sequence[str] = (),
) -> Report:
    """Distil, and return the report.

    `teacher` is an object with `identity`, `capabilities` and `complete` (or `complete_batch`),
    or a string as in a recipe; `student` an object with `train`, or the name of a base. `until`
    stops after that stage; the report then says that it is partial. Everything is kept under
    `runs` (default: `DISTILL_RUNS` or ./runs); the same call goes on where it was. Raises
    DistillError.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    if until not in STAGES:
        raise UsageError(f"unknown stage '{until}'", f"stages: {', '.join(STAGES)}")
    if until == "merge" and recipe.merge is None:
        raise UsageError(f"recipe '{recipe.name}' merges nothing", "add merge: {models: [...]}")
    if isinstance(teacher, str):
        recipe.teacher, teacher = _assigned(recipe, "teacher", teacher), None
    if isinstance(student, str):
        recipe.student, student = _assigned(recipe, "student", student), None
    check_names(recipe)
    # That of `merge` runs mergekit and nothing of ours.
    needed = STAGES[: STAGES.index(until) + 1]
    interpreters.check(recipe, [stage for stage in needed if stage != "merge"])
    workspace = Workspace(Path(runs or os.environ.get("DISTILL_RUNS") or "runs").resolve())
    job = Job(recipe, workspace, teacher, student)
    record = RunRecord(job, until, command)
    first: Done | None = None
    try:
        for done in distil(job):
            record.add(done)
            first = first or done
            if done.step.name == "tasks":
                if STAGES.index(until) >= STAGES.index("train"):
                    job.foresee_training()
                warn(recipe)
                for line in plan_lines(recipe, summary_of(first)):
                    say(line)
            if done.step.name == "select":
                from distill.report import write_data_card

                write_data_card(record.folder, record.content["steps"][done.label].get("stage", ""))
            if _as_stage(done.label) == job.last(until):
                break
        record.finish("done" if until in ("report", "evaluate") else "partial")
    except KeyboardInterrupt:
        record.finish("interrupted")
        raise
    except Exception:
        record.finish("failed")
        raise
    from distill.report import write_model_card, write_report

    report = write_report(record.folder)
    if report.student is not None:
        write_model_card(report.student, report)
    return report


class RunRecord:
    """`runs/<recipe>-<id12>/run.json`: the steps that a run is made of, kept true at all times."""

    def __init__(self, job: Job, until: str, command: Sequence[str]) -> None:
        recipe, root = job.recipe, job.workspace.root
        identity = json.dumps(recipe.identity(), sort_keys=True) + repr(
            [type(o).__qualname__ for o in (job.teacher, job.student) if o is not None]
        )
        name = f"{recipe.name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
        self.folder = root / name
        self.root = root
        self.folder.mkdir(parents=True, exist_ok=True)
        self.content: dict[str, Any] = {
            "schema": 1,
            "name": name,
            "variant": recipe.variant,
            "command": list(command) or ["distill", "run", recipe.name],
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "until": until,
            "status": "running",
            "recipe": recipe.model_dump(mode="json"),
            "origins": {"folder": str(job.folder)},
            "objects": {
                key: type(thing).__qualname__
                for key, thing in (("teacher", job.teacher), ("student", job.student))
                if thing is not None
            },
            "steps": {},
        }
        self._write()

    def add(self, done: Done) -> None:
        entry: dict[str, Any] = {
            "folder": done.folder.relative_to(self.root).as_posix(),
            "id": done.step.identity,
            "seconds": round(done.seconds, 3),
            "reused": done.reused,
        }
        if done.label != done.step.name:
            entry["step"] = done.step.name
            entry["stage"] = done.label.removeprefix(f"{done.step.name}-")
        self.content["steps"][done.label] = entry
        self._write()
        say(_line(done))

    def finish(self, status: str) -> None:
        from distill.manifest import make_manifest

        self.content["status"] = status
        self._write()
        manifest = make_manifest(
            self.content["recipe"], self.root, self.content["steps"], self.content["command"]
        )
        write_atomically(self.folder / "manifest.json", json.dumps(manifest, indent=1))

    def _write(self) -> None:
        write_atomically(
            self.folder / "run.json", json.dumps(self.content, ensure_ascii=False, indent=1)
        )


def say(line: str) -> None:
    """One line for the person who watches; results go to stdout, this does not."""
    if os.environ.get("DISTILL_PROGRESS") != "0":
        print(line, file=sys.stderr, flush=True)


def _as_stage(step: str) -> str:
    return "problems" if step == "import" else step


def _assigned(recipe: Recipe, section: str, value: str) -> Any:
    # Through the recipe's own validation, so that a string means here what it means in YAML.
    return getattr(Recipe.from_dict({"name": recipe.name, section: value}), section)


def _line(done: Done) -> str:
    """`grade     3,200 traces: 2,110 correct, ...      12.3 s`"""
    told = _told(done.step.name, summary_of(done))
    when = "reused" if done.reused else f"{done.seconds:.1f} s"
    return f"{_as_stage(done.label):<9} {told:<78} {when:>8}"


def _told(step: str, summary: dict[str, Any]) -> str:
    def number(key: str) -> str:
        value = summary.get(key)
        return f"{value:,}" if isinstance(value, int) else "?"

    if step == "problems":
        return f"{number('problems')} problems, {number('heldout')} held out for evaluation"
    if step == "sample" and "accepted" in summary:
        enough = summary.get("stopped", {}).get("enough", 0)
        took = f"{number('accepted')} accepted of {number('traces')} traces, {number('bought')} new"
        return f"{took}, {number('failed')} failed; {enough:,} of {number('problems')} have enough"
    if step in ("sample", "import"):
        bought = f"{number('wanted')} traces, {number('bought')} new, {number('reused')} reused"
        return f"{bought}, {number('failed')} failed, {number('truncated')} truncated"
    if step == "grade":
        outcomes = summary.get("outcomes", {})
        return ", ".join(f"{count:,} {name}" for name, count in outcomes.items() if count)
    if step == "tasks":
        return ", ".join(f"{k}: {v:,}" for k, v in summary.get("problems_by_task", {}).items())
    if step == "filter":
        dropped = {k: v for k, v in summary.get("dropped", {}).items() if v}
        reasons = ", ".join(f"{name} {count:,}" for name, count in dropped.items())
        return f"{number('kept')} kept; dropped: {reasons or 'none'}"
    if step == "select":
        held = summary.get("splits", {}).get("validation", {}).get("examples")
        split = f", {held:,} of them for validation" if held else ""
        return f"{number('selected')} examples of {number('problems')} problems{split}"
    if step == "train":
        return f"{number('updates')} updates, {number('tokens')} tokens"
    if step == "merge":
        return f"{len(summary.get('models', []))} models by {summary.get('method', '?')}"
    return f"{number('samples')} samples"
