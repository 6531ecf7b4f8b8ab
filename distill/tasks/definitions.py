"""What an evaluation task is: an entry of `tasks.yaml`, or a file or data set of the recipe's."""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import Field

from distill.errors import RecipeError
from distill.records import Problem
from distill.schema import Evaluation, Grading, PartSpec, Section, TaskSpec
from distill.schema_data import CodeTests

HELDOUT = "heldout"
GRADERS = {
    "math": "math",
    "choice": "distill.tasks.choice:Choice",
    "code": "code",
    "gym": "reasoning_gym",
}


class Definition(Section):
    """One task. `tasks.yaml` explains the keys; all columns are optional but the question's."""

    title: str = ""
    dataset: str | None = None
    subset: str | None = None
    split: str = "test"
    revision: str | None = None
    question: str = "problem"
    answer: str = "answer"
    answer_after: str | None = None
    wrong_choices: list[str] = Field(default_factory=list)
    subject: str | None = None
    difficulty: str | None = None
    tests: CodeTests | None = None
    date: str | None = None
    grader: Literal["math", "choice", "code", "gym", "recipe"] = "recipe"
    instruction: str | None = None
    size: int | None = Field(default=None, ge=1)
    samples: int = Field(default=4, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    licence: str = ""
    source: str = ""


@cache
def known_tasks() -> dict[str, Definition]:
    """Name -> definition of the tasks in `tasks.yaml`, in its order."""
    text = resources.files("distill.tasks").joinpath("tasks.yaml").read_text(encoding="utf-8")
    return {name: Definition.model_validate(entry) for name, entry in yaml.safe_load(text).items()}


def define(spec: TaskSpec) -> Definition | None:
    """The definition behind a recipe's task; None for a name that lm-eval has to know.

    `dataset`, `subset` and `split` of the recipe replace the definition's; a name of one's own with
    a `file` or `dataset` is a task with the columns problem and answer, judged as the recipe
    judges, and one with a `task` is drawn from reasoning-gym. Raises RecipeError.
    """
    if spec.task:
        return Definition(title=spec.name, grader="gym")
    definition = known_tasks().get(spec.name)
    if definition is None:
        if not (spec.file or spec.dataset):
            return None
        definition = Definition(title=spec.name)
    if (spec.since or spec.until) and not definition.date:
        raise RecipeError(
            f"task '{spec.name}' knows no dates of its problems, and since or until is given",
            "livecodebench does",
        )
    changes: dict[str, Any] = {}
    if spec.dataset:
        changes |= {"dataset": spec.dataset, "subset": None, "revision": None, "size": None}
    for key in ("split", "subset"):
        if value := getattr(spec, key):
            changes[key] = value
    return definition.model_copy(update=changes)


def check_names(evaluation: Evaluation) -> None:
    """Refuse two tasks of one name, which would write the same file. Raises RecipeError."""
    names = [spec.name for spec in evaluation.tasks]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"evaluate.tasks names '{name}' twice", "give one another name")
        if "/" in name or name.startswith("."):
            raise RecipeError(f"evaluate.tasks: '{name}' cannot name a file", "use letters and _")


def nearest_names(name: str, others: list[str]) -> str:
    """`did you mean ...` for an unknown task name; ours come first."""
    close = difflib.get_close_matches(name, [*known_tasks(), *others], n=3, cutoff=0.6)
    return f"did you mean {', '.join(close)}?" if close else ""


def grading_for(definition: Definition, recipe: Grading) -> Grading:
    """How a task is judged: a benchmark by its own grader, whatever the recipe's problems need."""
    if definition.grader == "recipe":
        return recipe
    return recipe.model_copy(update={"graders": [PartSpec(name=GRADERS[definition.grader])]})


def samples_of(spec: TaskSpec, evaluation: Evaluation) -> int:
    """k of a task: its own `samples` in the recipe, else the evaluation's."""
    return spec.samples or evaluation.samples


def limited(problems: list[Problem], spec: TaskSpec, evaluation: Evaluation) -> list[Problem]:
    """At most `limit` problems, chosen by hash: spread over a sorted data set, and stable."""
    limit = spec.limit or evaluation.limit or len(problems)
    chosen = set(sorted(problem.id for problem in problems)[:limit])
    return [problem for problem in problems if problem.id in chosen]


def max_tokens_of(definition: Definition, evaluation: Evaluation) -> int:
    """Token limit of a task: the evaluation's, or the definition's where that is lower."""
    return min(evaluation.max_tokens, definition.max_tokens or evaluation.max_tokens)
