"""A job: one recipe at work. Each method is one arrow: what identifies it, and what does it.

`distill/pipeline.py` calls them in order. The stages' modules are imported when they are needed,
so that a finished step costs nothing.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from distill import models, workers
from distill.errors import UsageError
from distill.job_base import VERSIONS, by_name, summary_of
from distill.job_train import TrainingJob
from distill.recipe import Recipe
from distill.schema import BaselineSpec
from distill.stages import Stage
from distill.step import Done, Step

__all__ = ["VERSIONS", "Job", "summary_of"]


class Job(TrainingJob):
    """A recipe at work: the data sets and the judging here, the training in `job_train`."""

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
        step = Step("grade", config, by_name(problems, traces), VERSIONS["grade"])
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

    def filter(
        self, problems: Done, traces: Done, grades: Done, tasks: Done, stage: Stage | None = None
    ) -> Done:
        """Kept or dropped, by which filter and why."""
        from distill.filter.run import filter_traces

        stage = stage or self.stages[0]
        filters = workers.filters_of(stage.recipe, self.folder)
        config = {"filters": self._filters_identity(stage.recipe)}
        inputs = by_name(problems, traces, grades, tasks)
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
            self._filter_label(stage),
        )

    def _filters_identity(self, recipe: Recipe) -> Any:
        from distill.filter.run import filters_identity

        return filters_identity(workers.filters_of(recipe, self.folder), self.folder)

    def _filter_label(self, stage: Stage) -> str:
        """`filter` where a stage filters as the recipe does: it is the same step."""
        if not stage.name:
            return "filter"
        same = self._filters_identity(stage.recipe) == self._filters_identity(self.recipe)
        return "filter" if same else stage.label("filter")

    def select(
        self,
        problems: Done,
        traces: Done,
        grades: Done,
        verdicts: Done,
        stage: Stage | None = None,
    ) -> Done:
        """The training set of a stage."""
        from distill.select import select_traces

        stage = stage or self.stages[0]
        asked = stage.recipe.select
        config: dict[str, Any] = {"select": asked.identity(), "seed": self.recipe.seed}
        if stops := workers.stops_of(self.recipe) if asked.pass_rate else {}:
            config["stops"] = stops
        inputs = by_name(problems, traces, grades, verdicts)
        return self._do(
            Step("select", config, inputs, VERSIONS["select"]),
            lambda out: select_traces(
                asked,
                seed=self.recipe.seed,
                problems=problems.folder / "problems.jsonl",
                traces=traces.folder / "traces.jsonl",
                grades=grades.folder / "grades.jsonl",
                verdicts=verdicts.folder / "verdicts.jsonl",
                out=out,
                stops=stops,
            ),
            stage.label("select"),
        )

    def last(self, verb: str) -> str:
        """The label of the last step that a verb stands for: with stages it has several."""
        if verb == "filter":
            return list(dict.fromkeys(map(self._filter_label, self.stages)))[-1]
        return self.stages[-1].label(verb) if verb in ("select", "train") else verb

    # -- the judging -------------------------------------------------------------------------------

    def evaluate(self, problems: Done, student: Done, tasks: Done) -> Done:
        """Base and student (and teacher) on the same problems under the same settings."""
        from distill.grade.parts import rules_of

        recipe = self.recipe
        asked = recipe.evaluate.identity()
        del asked["baselines"]
        config: dict[str, Any] = {
            "evaluate": asked,
            "grading": rules_of(recipe.grading).identity(),
            "base": self._weights(self.base, recipe.student.revision),
            "template": recipe.student.template,
            "teacher": self._teacher_identity() if recipe.evaluate.teacher else None,
            "seed": recipe.seed,
        }
        if recipe.evaluate.baselines:
            config["baselines"] = [self._baseline(spec) for spec in recipe.evaluate.baselines]
        step = Step("evaluate", config, by_name(problems, student, tasks), VERSIONS["evaluate"])
        payload = {
            "problems": str(problems.folder / "problems.jsonl"),
            "tasks": str(tasks.folder),
            "trained": [
                str(done.folder / "dataset.jsonl")
                for done in self.steps.values()
                if done.step.name == "select"
            ],
            "base": self.base,
            "base_name": models.local(recipe.student.base, self.folder),
            "base_revision": recipe.student.revision,
            "student": str(student.folder / "student"),
            "template": recipe.student.template,
            "pool": str(self.workspace.pool),
        }
        return self._do(step, lambda out: self._in_child("evaluate", {**payload, "out": str(out)}))

    def _baseline(self, spec: BaselineSpec) -> dict[str, Any]:
        """What decides a baseline's answers; which of the embedded engines it is does not."""
        identity = self._sampled_identity(spec, spec.engine or self.recipe.evaluate.engine)
        if spec.template.endswith(".jinja"):
            path = self.folder / Path(spec.template).expanduser()
            if not path.is_file():
                raise UsageError(
                    f"evaluate.baselines: '{spec.role}' wants the template '{path}': no such file",
                    "its path is relative to the recipe; without one its own template is taken",
                )
            identity["template"] = models.file_sha256(path)
        return {**identity, "engine": spec.engine, "name": spec.role}
