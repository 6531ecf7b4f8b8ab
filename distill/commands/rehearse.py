"""`distill run RECIPE --rehearse`: every step on real weights at full length, in minutes.

Problems and tasks are those of the real run, in its own folders. All that follows is kept apart in
`runs/rehearsal/` and thrown away by the next rehearsal; nothing of it reaches the real trace pool.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill import child
from distill.errors import DistillError
from distill.job import Job, summary_of
from distill.names import check_names
from distill.pipeline import STAGES, distil, say
from distill.recipe import Recipe
from distill.records import Problem, read_records, write_jsonl
from distill.rehearse import PROBLEMS, Memory, left_out, longest, rehearsed, shorten
from distill.stages import Stage
from distill.step import Done, Step, Workspace

FOLDER = "rehearsal"


class Rehearsal(Job):
    """A job with few problems, long answers and a training of a few updates."""

    def __init__(self, recipe: Recipe, workspace: Workspace) -> None:
        self.real = Job(recipe, workspace)
        engine = self.real._engine() if recipe.traces is None else ""
        root = workspace.root / FOLDER
        for stale in ("steps", "pool"):
            shutil.rmtree(root / stale, ignore_errors=True)
        root.mkdir(parents=True, exist_ok=True)
        hashes = workspace.root / "hashes.json"
        if hashes.is_file():  # of weights, which need not be read again
            shutil.copy(hashes, root / hashes.name)
        super().__init__(rehearsed(recipe, engine), Workspace(root))
        self.stages = [replace(s, recipe=rehearsed(s.recipe, engine)) for s in self.real.stages]
        self.notes = left_out(recipe, engine)

    def problems(self) -> Done:
        """The longest problems of the real run."""
        self._start = self.real.problems()
        return self._short("problems", self._start)

    def published(self) -> Done:
        """The longest problems of the published traces."""
        self._start = self.real.published()
        return self._short("import", self._start)

    def tasks(self, problems: Done) -> Done:
        """The longest problems of each evaluation task."""
        real = self.real.tasks(self._start)

        def work(out: Path) -> None:
            for path in sorted(real.folder.glob("*.jsonl")):
                write_jsonl(out / path.name, longest(read_records(Problem, path)))

        return self._do(Step("tasks", {"longest": PROBLEMS}, {"tasks": real.step}), work)

    def train(self, dataset: Done, stage: Stage | None = None, before: Done | None = None) -> Done:
        """A few updates on examples of the full length."""
        self.foresee_training()
        stage = stage or self.stages[0]
        recipe = stage.recipe

        def work(out: Path) -> None:
            told = child.call(
                "distill.rehearse:fill_examples",
                {
                    "dataset": str(dataset.folder / "dataset.jsonl"),
                    "out": str(out / "dataset.jsonl"),
                    "student": {**recipe.student.model_dump(mode="json"), "base": self.base},
                    "train": recipe.train.model_dump(mode="json"),
                    "trainer": recipe.student.trainer,
                },
                python=self.recipe.interpreters.get("train"),
                log_file=self.log_file,
            )
            say(f"          {told['examples']} examples of {told['tokens']:,} tokens")

        config = {"max_length": recipe.train.max_length}
        filled = self._do(Step("fill", config, {"dataset": dataset.step}), work)
        return super().train(filled, stage, before)

    def _short(self, name: str, real: Done) -> Done:
        step = Step(name, {"longest": PROBLEMS}, {name: real.step})
        return self._do(step, lambda out: shorten(real.folder, out))


def rehearse(recipe: Recipe, *, until: str = "report", runs: Path | str | None = None) -> int:
    """Run the rehearsal of a recipe up to a stage. Raises DistillError of the step that fails."""
    check_names(recipe)
    workspace = Workspace(Path(runs or os.environ.get("DISTILL_RUNS") or "runs").resolve())
    job = Rehearsal(recipe, workspace)
    for note in job.notes:
        say(f"note      {note}")
    steps, name = distil(job), ""
    try:
        while True:
            with Memory(os.getpid()) as memory:
                done = next(steps, None)
            if done is None:
                break
            name = done.step.name
            say(f"rehearsed {done.label:<9} {_told(name, summary_of(done)):<50} peak: {memory}")
            if job.last(until) == ("problems" if name == "import" else done.label):
                break
    except DistillError as error:
        at = _after(name, recipe)
        error.message = f"the rehearsal failed at {at}: {error.message}"
        error.args = (error.message,)
        raise
    print(f"rehearsed {recipe.name}: {workspace.root / FOLDER} may be deleted")
    sys.stdout.flush()
    return 0


def _after(name: str, recipe: Recipe) -> str:
    """The step that follows the last one that was done."""
    order = [*STAGES[:1], "tasks", *STAGES[1:]]
    order = [step for step in order if step != "merge" or recipe.merge]
    if not name:
        return order[0]
    known = "problems" if name == "import" else name
    return order[min(order.index(known) + 1, len(order) - 1)]


def _told(step: str, summary: Mapping[str, Any]) -> str:
    if step == "sample":
        return (
            f"{summary['traces']} traces, {summary['completion_tokens']:,} tokens, "
            f"{summary['truncated']} at the limit"
        )
    if step == "train":
        return f"{summary.get('updates', '?')} updates, {summary.get('tokens', 0):,} tokens"
    if step == "evaluate":
        return f"{summary['samples']} samples, {summary['tokens']:,} tokens"
    return ""
