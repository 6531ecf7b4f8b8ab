"""Several trainings in a row: each stage is a recipe of its own, made of the whole one.

A recipe without stages is one stage without a name, and everything is called as it always was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from distill.errors import RecipeError
from distill.schema_stages import StageSpec, laid_over

if TYPE_CHECKING:
    from distill.recipe import Recipe


@dataclass(frozen=True)
class Stage:
    """One training: `recipe` is the whole recipe with this stage's sections in place.

    `number` counts from 0; `of` is how many there are.
    """

    name: str
    recipe: Recipe
    number: int = 0
    of: int = 1

    def label(self, step: str) -> str:
        """How a run calls a step of this stage: `train-hard`; without stages `train`."""
        return f"{step}-{self.name}" if self.name else step


def stages_of(recipe: Recipe) -> list[Stage]:
    """The recipe's trainings in order. Raises RecipeError where a stage is no valid recipe."""
    if not recipe.stages:
        return [Stage("", recipe)]
    many = len(recipe.stages)
    found = [Stage(s.name, _at(recipe, s), i, many) for i, s in enumerate(recipe.stages)]
    _check(found)
    return found


def _at(recipe: Recipe, spec: StageSpec) -> Recipe:
    try:
        changed: dict[str, Any] = {
            "select": laid_over(recipe.select, spec.select),
            "student": laid_over(recipe.student, spec.student),
            "train": laid_over(recipe.train, spec.train),
        }
    except ValidationError as error:
        told = "; ".join(e["msg"].removeprefix("Value error, ") for e in error.errors())
        raise RecipeError(f"stage '{spec.name}' of recipe '{recipe.name}': {told}") from None
    if spec.filters is not None:
        changed["filters"] = spec.filters
    # A copy keeps where the recipe came from; its values were checked above.
    return recipe.model_copy(update={**changed, "stages": []})


def _check(stages: list[Stage]) -> None:
    names = [stage.name for stage in stages]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise RecipeError(f"two stages are called '{twice}'", "give each a name of its own")
    splits = {stage.recipe.select.validation for stage in stages}
    if len(splits) > 1 or max(splits) >= 1:
        raise RecipeError(
            "with stages, select.validation must be the same share of the problems in all of them; "
            f"found {', '.join(f'{s:g}' for s in sorted(splits))}",
            "a number of problems, or another share, would let one stage train on what another "
            "keeps for validation",
        )
