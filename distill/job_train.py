"""The arrows from a data set to a student: one training or several in a row, then merging."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distill import agreement, interpreters, models, nodes, plan_advice, workers
from distill.errors import DistillError, MissingExtra, UsageError
from distill.job_base import VERSIONS, JobBase, summary_of
from distill.resolve import code_version, resolve
from distill.schema_train import Training
from distill.stages import Stage
from distill.step import Done, Step

log = logging.getLogger(__name__)


class TrainingJob(JobBase):
    """What trains: each stage on the student of the stage before it."""

    def foresee_training(self) -> None:
        """Raise now what training would raise after the traces were paid for."""
        recipe = self.recipe
        self._weights(self.base, recipe.student.revision)
        qlora = any(stage.recipe.student.method == "qlora" for stage in self.stages)
        own = "train" not in recipe.interpreters  # another one was asked for its packages
        if qlora and own and find_spec("bitsandbytes") is None:
            raise MissingExtra("bitsandbytes", "qlora", "student.method: qlora")
        nodes.check(recipe)
        arch = models.student_entry(self.base).arch
        size = arch.params if arch is not None else 0
        forced = all(_elsewhere(stage.recipe.train) for stage in self.stages)
        if size >= 1e9 and not forced and not models.has_gpu():
            raise UsageError(
                f"recipe '{recipe.name}' trains {size / 1e9:.1f}B parameters, and this machine "
                "shows no GPU",
                "stop before it with `distill select`, or force it with train.allow_cpu=true",
            )
        check = resolve("distill.students.trackers:check", {}, what="students")
        for stage in self.stages:
            train = stage.recipe.train
            if train.average > 1 and train.shard == "zero3":
                raise UsageError(
                    "train.average reads checkpoints of our own form, and shard: zero3 writes "
                    "DeepSpeed's",
                    "use shard: fsdp, or leave train.average out",
                )
            check(train.trackers, installed=own)
            if why := plan_advice.fits(stage.recipe):
                log.warning("%s", why)
        self._foresee_merging()

    def train(self, dataset: Done, stage: Stage | None = None, before: Done | None = None) -> Done:
        """The student's folder, `student/` in the step's; `before` is the stage it starts from."""
        stage = stage or self.stages[0]
        recipe = stage.recipe
        seed = recipe.seed if recipe.train.seed is None else recipe.train.seed
        identity = {
            "student": recipe.student.identity(),
            "weights": self._weights(self.base, recipe.student.revision),
            "train": recipe.train.identity(),
            "seed": seed,
            "trainer": self._trainer_version(),
        }
        student = {**recipe.student.model_dump(mode="json"), "base": self.base}
        inputs = {"dataset": dataset.step}
        if before is not None:
            inputs["student"] = before.step
            student |= _goes_on(before, student)
        config = {
            "student": student,
            "train": recipe.train.model_dump(mode="json"),
            "seed": seed,
            "card": self._card(stage),
            "stage": [stage.number, stage.of],
        }
        validation = dataset.folder / "validation.jsonl"
        if recipe.train.development:
            validation = agreement.development_of(recipe)
            identity["development"] = models.file_sha256(validation)
        if validation.is_file():
            config["validation"] = str(validation)
        step = Step("train", identity, inputs, VERSIONS["train"])

        def work(out: Path) -> None:
            try:
                self._train(dataset, out, config)
            except DistillError as error:
                # What fits this machine is the planner's to say; the trainer knows nothing of it.
                if error.message.startswith("out of memory"):
                    error.hint = f"{plan_advice.advice(recipe)}; the same command goes on"
                raise

        return self._do(step, work, stage.label("train"))

    def _card(self, stage: Stage) -> dict[str, Any]:
        """What the trainer's first model card says besides what it knows itself."""
        told: dict[str, Any] = {"recipe": self.recipe.name}
        if stage.name:
            told["base"] = self.recipe.student.base
            told["stage"] = f"{stage.name} ({stage.number + 1} of {stage.of})"
        return told

    def _train(self, dataset: Done, out: Path, config: Mapping[str, Any]) -> None:
        rows = dataset.folder / "dataset.jsonl"
        if self.student is not None:
            trained = Path(self.student.train(rows, out, config))
        else:
            trained = Path(
                self._in_child(
                    "train",
                    {
                        "trainer": self.recipe.student.trainer,
                        "dataset": str(rows),
                        "out": str(out),
                        "config": config,
                    },
                )
            )
        if trained.resolve() != (out / "student").resolve():
            raise UsageError(
                f"the trainer left its model in {trained}",
                f"`train` must write the model folder {out / 'student'} and return it",
            )

    def merge(self, student: Done) -> Done:
        """The student merged with other models, `student/` in the step's folder."""
        spec = self.recipe.merge
        if spec is None:
            raise UsageError(
                f"recipe '{self.recipe.name}' merges nothing",
                "add merge: {models: [student, ...]}",
            )
        places = {name: self._model(name, student) for name in spec.named}
        hashes = {n: self._weights(p, None) for n, p in places.items() if n != "student"}
        config = {"merge": spec.identity(), "weights": hashes, "seed": self.recipe.seed}
        step = Step("merge", config, {"student": student.step}, VERSIONS["merge"])
        payload = {
            "models": [
                {"name": name, "path": places[name], "weight": weight}
                for name, weight in zip(spec.models, spec.shares, strict=True)
            ],
            "like": spec.models.index("student") if "student" in spec.models else 0,
            "method": spec.method,
            "base": {"name": spec.base, "path": places[spec.base]} if spec.needs_base else None,
            "parameters": spec.parameters,
            "seed": self.recipe.seed,
            "python": self.recipe.interpreters.get("merge"),
            "title": self.recipe.name,
            "base_name": self.recipe.student.base,
        }
        return self._do(
            step, lambda out: self._in_child("merge", {**payload, "out": str(out)}, "train")
        )

    def _model(self, name: str, student: Done | None) -> str:
        """Where a model of `merge` is: the student, the base, a run's student, or a model's name.

        `student` is None before it is trained: then its base stands for it.
        """
        if name in ("student", "base"):
            own = student is not None and name == "student"
            return str(student.folder / "student") if own and student else self.base
        # Beside the recipe, in the runs folder, or `runs/NAME` as the shell completes it.
        root = self.workspace.root
        for start in (self.folder, root, root.parent, root.parent.parent):
            place = start / Path(name).expanduser()
            if (place / "run.json").is_file():
                return str(student_of(place))
        if name.startswith("runs/"):
            raise UsageError(
                f"merge.models names {name}, and there is no such run",
                "distill ls runs names them; a run's folder may be given by its path, too",
            )
        return str(models.student_entry(models.local(name, self.folder)).path)

    def _foresee_merging(self) -> None:
        spec = self.recipe.merge
        if spec is None:
            return
        places = {name: self._model(name, None) for name in spec.named}
        for path in places.values():
            self._weights(path, None)
        python = self.recipe.interpreters.get("merge")
        if spec.method != "linear":
            lacks = find_spec("mergekit") is None
            if python is not None:
                lacks = "mergekit" not in interpreters.probe(python, ("mergekit",))["packages"]
            if lacks:
                raise MissingExtra("mergekit", "merge", f"merge.method: {spec.method}")
        check = resolve("distill.students.merging_checks:foresee", {}, what="students")
        check({"base": self.base, **places})

    def _trainer_version(self) -> str:
        if self.student is not None:
            return code_version(self.student)
        if self.recipe.student.trainer in workers.TRAINERS:
            return self.recipe.student.trainer
        return code_version(
            resolve(self.recipe.student.trainer, {}, what="trainer", folder=self.folder)
        )


def _elsewhere(train: Training) -> bool:
    """Whether it does not matter that this machine shows no GPU."""
    return train.allow_cpu or train.launcher == "ray"


def _goes_on(before: Done, student: Mapping[str, Any]) -> dict[str, Any]:
    """The student of a stage as the base of the next one.

    Its folder has template, EOS and positions. New tokens are in its vocabulary and trained:
    adding them again would set their rows back to the mean.
    """
    template = student.get("template") or summary_of(before).get("template") or ""
    return {
        "base": str(before.folder / "student"),
        "revision": None,
        "template": template,
        "think_tokens": "text",
    }


def student_of(run: Path) -> Path:
    """The student's folder of a finished run. Raises UsageError where it has none."""
    steps = json.loads((run / "run.json").read_text(encoding="utf-8"))["steps"]
    trained = [e for n, e in steps.items() if e.get("step", n) in ("train", "merge")]
    folder = run.parent / str(trained[-1]["folder"]) / "student" if trained else run
    if not (folder / "config.json").is_file():
        raise UsageError(f"the run {run.name} has no student", "name one that was trained")
    return folder
