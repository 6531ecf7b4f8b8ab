"""From a recipe's list of graders to objects: the same in the caller and in every worker."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import UsageError
from distill.grade.base import Custom, StagedGrader
from distill.records import Problem
from distill.resolve import code_version, resolve

if TYPE_CHECKING:  # a worker starts in half the time without pydantic
    from distill.schema import Grading, PartSpec

KNOWN = {
    "auto": "distill.grade.auto:Auto",
    "math": "distill.grade.math:Math",
    "code": "distill.grade.code:Code",
    "choice": "distill.grade.choice:Choice",
    "exact": "distill.grade.exact:Exact",
    "words": "distill.grade.exact:Words",
    "regex": "distill.grade.pattern:Regex",
    "json_schema": "distill.grade.schema_json:JsonSchema",
    "instructions": "distill.grade.instructions:Instructions",
    "reasoning_gym": "distill.grade.gym:ReasoningGym",
    "majority": "distill.grade.majority:Majority",
    "judge": "distill.grade.judge:ModelJudge",
}

JUDGE = "judge"
"""The grader that asks a model: a stage of its own after the others, never in a worker."""


RECIPE_ONLY = ("code",)
"""Graders whose parameters only a recipe may set, never a problem."""

OWN = "grader"
"""Where a problem's metadata names its own graders."""


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


def rules_specs(config: Grading, folder: Path) -> list[GraderSpec]:
    """The recipe's graders without its judge models, in the order in which they are asked."""
    return _specs([part for part in config.graders if part.name != JUDGE], folder)


def source_specs(config: Grading, folder: Path) -> dict[str, list[GraderSpec]]:
    """The graders of the sources that have their own."""
    return {source: _specs(parts, folder) for source, parts in config.by_source.items()}


def specs_of(config: Grading, folder: Path) -> list[GraderSpec]:
    """Each grader that the recipe names, once, without its judge models."""
    lists = [rules_specs(config, folder), *source_specs(config, folder).values()]
    return list({spec.key: spec for specs in lists for spec in specs}.values())


def own_specs(problem: Problem) -> list[GraderSpec] | None:
    """The graders that a problem names for itself in `metadata["grader"]`; None: it names none.

    Written as in a recipe: `exact`, `{exact: {case: true}}` or a list of them. Only our own graders
    may be named, and those in `RECIPE_ONLY` without parameters: a data set must not choose what is
    imported here, nor how a program is contained. Raises UsageError.
    """
    named = problem.metadata.get(OWN)
    if not named:
        return None
    from distill.schema import PartSpec

    try:
        parts = [
            PartSpec.model_validate(p) for p in (named if isinstance(named, list) else [named])
        ]
    except ValueError:
        raise UsageError(
            f"metadata['{OWN}'] is {named!r:.80}", "write a grader's name, or {name: {key: value}}"
        ) from None
    for part in parts:
        if part.name not in KNOWN or part.name == JUDGE:
            ours = [name for name in KNOWN if name != JUDGE]
            raise UsageError(
                f"metadata['{OWN}'] names {part.name!r:.60}{nearest(part.name, ours)}",
                f"a problem may name: {', '.join(ours)}",
            )
        if part.params and part.name in RECIPE_ONLY:
            raise UsageError(
                f"metadata['{OWN}'] sets parameters of '{part.name}'",
                "only a recipe may set them: grading.by_source",
            )
    return _specs(parts, Path())


def _specs(parts: Sequence[PartSpec], folder: Path) -> list[GraderSpec]:
    return [GraderSpec(part.name, dict(part.params), str(folder)) for part in parts]


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
    _check_params(spec, found)
    try:
        if inspect.isclass(found):
            made = found(**spec.params)
        else:
            made = _with(found, spec.params) if spec.params else found
    except (TypeError, ValueError) as error:
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


def _check_params(spec: GraderSpec, found: Any) -> None:
    """Raise UsageError for a parameter that the grader does not have, with the nearest it has."""
    if not spec.params or not callable(found):
        return
    parameters = list(inspect.signature(found).parameters.values())
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if not inspect.isclass(found):
        known = [name for name in known if name not in {p.name for p in parameters[:2]}]
    for name in spec.params:
        if name not in known:
            raise UsageError(
                f"grader '{spec.name}' has no parameter '{name}'{nearest(name, known)}",
                f"its parameters: {', '.join(known)}" if known else "it takes none",
            )


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean '...'?` where a known name is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
