"""A job: one recipe at work. Each method is one arrow: what identifies it, and what does it.

`distill/pipeline.py` calls them in order. The stages' modules are imported when they are needed,
so that a finished step costs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distill import child, models, workers
from distill.errors import MissingExtra, UsageError
from distill.recipe import Recipe
from distill.resolve import code_version, resolve
from distill.step import Done, Step, Workspace

VERSIONS = {
    "problems": "2",
    "import": "2",
    "sample": "2",
    "grade": "2",
    "tasks": "1",
    "filter": "2",
    "select": "3",
    "train": "1",
    "evaluate": "1",
}
"""Raised whenever a stage's code changes what it writes; part of the step's identity."""

EMBEDDED = ("transformers", "vllm")
"""Engines that hold a model in memory and therefore run in a child."""


class Job:
    """A recipe, its workspace, and the objects that were passed in instead of names."""

    def __init__(
        self, recipe: Recipe, workspace: Workspace, teacher: Any = None, student: Any = None
    ) -> None:
        self.recipe = recipe
        self.workspace = workspace
        self.teacher = teacher
        self.student = student
        self.folder = recipe.folder
        self.steps: dict[str, Done] = {}
        self.log_file = workspace.root / "errors.log"

    # -- problems ------------------------------------------------------------------------------

    def problems(self) -> Done:
        """The recipe's problems, split by hash into those to sample and those held out."""
        from distill.agreement import check_agreement
        from distill.grade import golds
        from distill.problems import make_problems, problems_identity

        recipe = self.recipe
        check_agreement(recipe)
        if not recipe.problems.sources:
            raise UsageError(
                f"recipe '{recipe.name}' has neither problems nor traces to start from",
                "add problems.sources, or traces with published ones",
            )
        config = problems_identity(recipe.problems, self.folder) | golds.reads(recipe.grading)
        work = partial(make_problems, recipe.problems, folder=self.folder)
        step = Step("problems", config, version=VERSIONS["problems"])
        return self._do(step, golds.noted(work, recipe.grading, self.folder))

    def published(self) -> Done:
        """Published traces, and the problems they answer."""
        from distill.agreement import check_agreement
        from distill.grade import golds
        from distill.imports import import_traces
        from distill.tables import fingerprint

        spec, asked = self.recipe.traces, self.recipe.problems
        if spec is None:
            raise UsageError(f"recipe '{self.recipe.name}' names no published traces")
        check_agreement(self.recipe)
        config = {
            "traces": spec.identity(),
            "instruction": asked.instruction,
            "system": asked.system,
            "require_gold": asked.require_gold,
            "limit": asked.limit,
            "heldout": asked.heldout,
            "data": fingerprint(
                dataset=spec.dataset,
                subset=spec.subset,
                revision=spec.revision,
                file=spec.file,
                folder=self.folder,
            ),
            **golds.reads(self.recipe.grading),
        }
        work = partial(import_traces, spec, asked, folder=self.folder)
        step = Step("import", config, version=VERSIONS["import"])
        return self._do(step, golds.noted(work, self.recipe.grading, self.folder))

    # -- from problems to a data set -----------------------------------------------------------

    def sample(self, problems: Done) -> Done:
        """Traces of the teacher, bought into the pool and listed in order."""
        recipe = self.recipe
        config = {
            "teacher": self._teacher_identity(),
            "sampling": self._sampling_identity(),
            "seed": recipe.seed,
        }
        step = Step("sample", config, {"problems": problems.step}, VERSIONS["sample"])
        return self._do(step, lambda out: self._sample(problems, out))

    def _sampling_identity(self) -> dict[str, Any]:
        """What was asked for; with `want` also who judges, because that decides how much."""
        recipe, asked = self.recipe, self.recipe.sampling.identity()
        if recipe.sampling.want is not None:
            from distill.accept import acceptance_identity

            filters = workers.filters_of(recipe, self.folder)
            asked["accept"] = acceptance_identity(recipe.grading, filters, self.folder)
            if recipe.sampling.budget_cost is not None:
                asked["prices"] = [recipe.teacher.price_in, recipe.teacher.price_out]
            return {key: value for key, value in asked.items() if key != "n"}
        # What fixed n does not use changes nothing, and neither do limits that are not there.
        unused = {"want", "max", "give_up", "budget_tokens", "budget_cost", "floor"}
        unused |= set() if recipe.sampling.limits else {"limits"}
        return {key: value for key, value in asked.items() if key not in unused}

    def _sample(self, problems: Done, out: Path) -> None:
        recipe, source = self.recipe, problems.folder / "problems.jsonl"
        if self.teacher is None and self._engine() not in ("openai", "replay"):
            self._in_child(
                "sample",
                {"problems": str(source), "pool": str(self.workspace.pool), "out": str(out)},
            )
            return
        from distill.sample import run_sample

        run_sample(
            source,
            self.teacher or workers.build_teacher(recipe, self.folder),
            recipe.sampling,
            seed=recipe.seed,
            pool_root=self.workspace.pool,
            prices=(recipe.teacher.price_in, recipe.teacher.price_out),
            out=out,
            accept=workers.build_acceptance(recipe, self.folder),
        )

    def grade(self, problems: Done, traces: Done) -> Done:
        """A grade for every trace."""
        from distill.grade import golds, run

        hashes = self.workspace.root / "hashes.json"
        config = run.grading_identity(self.recipe.grading, self.folder, hashes)
        config |= golds.own_versions(summary_of(problems))
        if "judges" in config:
            config["seed"] = self.recipe.seed
        step = Step("grade", config, _by_name(problems, traces), VERSIONS["grade"])
        return self._do(
            step,
            lambda out: run.grade_traces(
                self.recipe.grading,
                problems.folder / "problems.jsonl",
                traces.folder / "traces.jsonl",
                out,
                folder=self.folder,
                pool_root=self.workspace.pool,
                seed=self.recipe.seed,
            ),
        )

    def tasks(self, problems: Done) -> Done:
        """The evaluation's problems: for decontamination now, for the harness later."""
        from distill.tasks.make import make_tasks, tasks_identity

        asked = self.recipe.evaluate
        config = tasks_identity(asked, self.folder)
        config |= {
            "instruction": self.recipe.problems.instruction,
            "system": self.recipe.problems.system,
        }
        step = Step("tasks", config, {"problems": problems.step}, VERSIONS["tasks"])
        return self._do(
            step,
            lambda out: make_tasks(
                asked,
                problems.folder / "heldout.jsonl",
                folder=self.folder,
                instruction=self.recipe.problems.instruction,
                system=self.recipe.problems.system,
                out=out,
            ),
        )

    def filter(self, problems: Done, traces: Done, grades: Done, tasks: Done) -> Done:
        """Kept or dropped, by which filter and why."""
        from distill.filter.run import filter_traces, filters_identity

        filters = workers.filters_of(self.recipe, self.folder)
        config = {"filters": filters_identity(filters, self.folder)}
        inputs = _by_name(problems, traces, grades, tasks)
        return self._do(
            Step("filter", config, inputs, VERSIONS["filter"]),
            lambda out: filter_traces(
                filters,
                problems.folder / "problems.jsonl",
                traces.folder / "traces.jsonl",
                grades.folder / "grades.jsonl",
                sorted(tasks.folder.glob("*.jsonl")),
                out,
                folder=self.folder,
            ),
        )

    def select(self, problems: Done, traces: Done, grades: Done, verdicts: Done) -> Done:
        """The training set."""
        from distill.select import select_traces

        config = {"select": self.recipe.select.identity(), "seed": self.recipe.seed}
        inputs = _by_name(problems, traces, grades, verdicts)
        return self._do(
            Step("select", config, inputs, VERSIONS["select"]),
            lambda out: select_traces(
                self.recipe.select,
                seed=self.recipe.seed,
                problems=problems.folder / "problems.jsonl",
                traces=traces.folder / "traces.jsonl",
                grades=grades.folder / "grades.jsonl",
                verdicts=verdicts.folder / "verdicts.jsonl",
                out=out,
            ),
        )

    # -- from a data set to a judged student ---------------------------------------------------

    def foresee_training(self) -> None:
        """Raise now what training would raise after the traces were paid for."""
        recipe = self.recipe
        self._weights(self.base, recipe.student.revision)
        if recipe.student.method == "qlora" and find_spec("bitsandbytes") is None:
            raise MissingExtra("bitsandbytes", "qlora", "student.method: qlora")
        arch = models.student_entry(self.base).arch
        size = arch.params if arch is not None else 0
        if size >= 1e9 and not recipe.train.allow_cpu and not models.has_gpu():
            raise UsageError(
                f"recipe '{recipe.name}' trains {size / 1e9:.1f}B parameters, and this machine "
                "shows no GPU",
                "stop before it with `distill select`, or force it with train.allow_cpu=true",
            )

    def train(self, dataset: Done) -> Done:
        """The student's folder, `student/` in the step's."""
        recipe = self.recipe
        seed = recipe.seed if recipe.train.seed is None else recipe.train.seed
        identity = {
            "student": recipe.student.identity(),
            "weights": self._weights(self.base, recipe.student.revision),
            "train": recipe.train.identity(),
            "seed": seed,
            "trainer": self._trainer_version(),
        }
        config = {
            "student": {**recipe.student.model_dump(mode="json"), "base": self.base},
            "train": recipe.train.model_dump(mode="json"),
            "seed": seed,
            "card": {"recipe": recipe.name},
        }
        if (validation := dataset.folder / "validation.jsonl").is_file():
            config["validation"] = str(validation)
        step = Step("train", identity, {"dataset": dataset.step}, VERSIONS["train"])
        return self._do(step, lambda out: self._train(dataset, out, config))

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

    def evaluate(self, problems: Done, student: Done, tasks: Done) -> Done:
        """Base and student (and teacher) on the same problems under the same settings."""
        from distill.grade.parts import rules_of

        recipe = self.recipe
        config = {
            "evaluate": recipe.evaluate.identity(),
            "grading": rules_of(recipe.grading).identity(),
            "base": self._weights(self.base, recipe.student.revision),
            "template": recipe.student.template,
            "teacher": self._teacher_identity() if recipe.evaluate.teacher else None,
            "seed": recipe.seed,
        }
        step = Step("evaluate", config, _by_name(problems, student, tasks), VERSIONS["evaluate"])
        payload = {
            "problems": str(problems.folder / "problems.jsonl"),
            "tasks": str(tasks.folder),
            "base": self.base,
            "base_name": models.local(recipe.student.base, self.folder),
            "base_revision": recipe.student.revision,
            "student": str(student.folder / "student"),
            "template": recipe.student.template,
            "pool": str(self.workspace.pool),
        }
        return self._do(step, lambda out: self._in_child("evaluate", {**payload, "out": str(out)}))

    # -- helpers -------------------------------------------------------------------------------

    @property
    def base(self) -> str:
        """Where the student's base is: the catalog's path for a short name, else the name."""
        if not self.recipe.student.base:
            raise UsageError(f"recipe '{self.recipe.name}' names no student.base to train")
        return str(models.student_entry(models.local(self.recipe.student.base, self.folder)).path)

    def _weights(self, model: str, revision: str | None) -> str:
        return models.fingerprint(model, revision, self.workspace.root / "hashes.json")

    def _engine(self) -> str:
        spec = self.recipe.teacher
        return spec.engine or str(models.teacher_entry(spec.model).engine)

    def _teacher_identity(self) -> dict[str, Any]:
        if self.teacher is not None:
            return {"object": self.teacher.identity}
        spec, engine = self.recipe.teacher, self._engine()
        identity: dict[str, Any] = {**spec.identity(), "engine": engine}
        identity |= models.text_options(spec.options)
        if engine in EMBEDDED:
            entry = models.teacher_entry(models.local(spec.model, self.folder))
            identity["weights"] = self._weights(entry.model, spec.revision)
        elif engine == "replay":
            identity["weights"] = models.file_sha256(self._recorded(spec.model))
        elif ":" in engine:
            kind = resolve(engine, {}, what="teacher engine", folder=self.folder)
            identity["code"] = code_version(kind)
            identity["options"] = spec.options
        return identity

    def _recorded(self, name: str) -> Path:
        path = self.folder / Path(name).expanduser()
        if not path.is_file():
            raise UsageError(f"no recorded traces '{path}'", "teacher.model names a JSONL file")
        return path

    def _trainer_version(self) -> str:
        if self.student is not None:
            return code_version(self.student)
        if self.recipe.student.trainer in workers.TRAINERS:
            return self.recipe.student.trainer
        return code_version(
            resolve(self.recipe.student.trainer, {}, what="trainer", folder=self.folder)
        )

    def _in_child(self, stage: str, payload: Mapping[str, Any]) -> Any:
        everything = {
            "recipe": self.recipe.model_dump(mode="json"),
            "folder": str(self.folder),
            **payload,
        }
        return child.call(
            f"distill.workers:{stage}",
            everything,
            python=self.recipe.interpreters.get(stage),
            log_file=self.log_file,
        )

    def _do(self, step: Step, work: Callable[[Path], None]) -> Done:
        done = self.workspace.run(step, work)
        self.steps[step.name] = done
        return done


def _by_name(*steps: Done) -> dict[str, Step]:
    return {done.step.name: done.step for done in steps}


def summary_of(done: Done) -> dict[str, Any]:
    """What the step says about itself; empty where it wrote no summary."""
    path = done.folder / "summary.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
