"""From a recipe's list of graders to objects: the same in the caller and in every worker."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import UsageError
from distill.grade.base import Custom, StagedGrader
from distill.resolve import code_version, resolve
from distill.schema import Grading, PartSpec

KNOWN = {
    "auto": "distill.grade.auto:Auto",
    "math": "distill.grade.math:Math",
    "exact": "distill.grade.exact:Exact",
    "reasoning_gym": "distill.grade.gym:ReasoningGym",
    "judge": "distill.grade.judge:ModelJudge",
}

JUDGE = "judge"
"""The grader that asks a model: a stage of its own after the others, never in a worker."""


@dataclass(frozen=True, slots=True)
class GraderSpec:
    """A grader by name, as plain data: what a worker is told."""

    name: str
    params: dict[str, Any]
    folder: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Equal for specs of the same grader."""
        written = json.dumps(self.params, sort_keys=True, default=repr) if self.params else ""
        return (self.name, self.folder, written)


def specs_of(config: Grading, folder: Path) -> list[GraderSpec]:
    """The recipe's graders without its judge models, in the order in which they are asked."""
    return [
        GraderSpec(part.name, dict(part.params), str(folder))
        for part in config.graders
        if part.name != JUDGE
    ]


def rules_of(config: Grading) -> Grading:
    """The same grading without judge models."""
    return config.model_copy(
        update={"graders": [part for part in config.graders if part.name != JUDGE]}
    )


def judges_of(config: Grading) -> list[PartSpec]:
    """The recipe's judge models. Raises UsageError where a grader comes after one of them."""
    names = [part.name for part in config.graders]
    judges = [part for part in config.graders if part.name == JUDGE]
    after = names[len(names) - len(judges) :]
    if any(name != JUDGE for name in after):
        raise UsageError(
            f"grading.graders: {', '.join(names)}",
            "a judge is asked about what the other graders left open: name it last",
        )
    return judges


def build(spec: GraderSpec) -> StagedGrader:
    """The grader that a spec names. Raises UsageError for a wrong name or wrong parameters.

    A user's class is made with the parameters; a user's function gets them as keyword arguments.
    """
    found = resolve(spec.name, KNOWN, what="grader", folder=Path(spec.folder))
    try:
        if inspect.isclass(found):
            made = found(**spec.params)
        else:
            made = _with(found, spec.params) if spec.params else found
    except TypeError as error:
        raise UsageError(
            f"grader '{spec.name}': {error}", "check the grader's parameters"
        ) from None
    if isinstance(made, StagedGrader):
        return made
    if not callable(made):
        raise UsageError(
            f"grader '{spec.name}' is a {type(made).__name__}, not callable",
            "a grader is a function (problem, trace) -> distill.records.Grade",
        )
    return Custom(made, spec.name.rpartition(":")[2], code_version(found))


def build_all(specs: Sequence[GraderSpec]) -> list[StagedGrader]:
    """All graders of a list."""
    return [build(spec) for spec in specs]


def _with(function: Callable[..., Any], params: dict[str, Any]) -> Callable[..., Any]:
    inspect.signature(function).bind(None, None, **params)

    def bound(problem: Any, trace: Any) -> Any:
        return function(problem, trace, **params)

    return bound
