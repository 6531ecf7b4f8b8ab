"""What the evaluation will ask for: problems, samples and tokens of each task and model."""

from __future__ import annotations

from dataclasses import dataclass

from distill.plan_sampling import Basis
from distill.recipe import Recipe
from distill.tasks.definitions import HELDOUT, define, max_tokens_of, samples_of


@dataclass(frozen=True, slots=True)
class Asked:
    """An evaluation: `tokens` of completions for each of `models`, as expected and at most.

    `unknown` names the tasks whose number of problems is not known before they are here.
    """

    models: tuple[str, ...]
    problems: int
    samples: int
    tokens: float
    most: float
    unknown: tuple[str, ...]

    @property
    def rows(self) -> int:
        """Models that the evaluation's own machine answers for; the teacher is asked elsewhere."""
        return sum(model != "teacher" for model in self.models)


def asked_of(recipe: Recipe, count: int | None, basis: Basis) -> Asked:
    """The evaluation of a recipe that trains on `count` problems."""
    asked = recipe.evaluate
    problems = samples = 0
    tokens = most = 0.0
    unknown = []
    for spec in asked.tasks:
        definition = define(spec)
        size = definition.size if definition is not None else None
        if spec.name == HELDOUT:
            size = _heldout(recipe, count)
        limit = spec.limit or asked.limit
        if size is None and limit is None:
            unknown.append(spec.name)
            continue
        size = min(size or limit or 0, limit or size or 0)
        longest = max_tokens_of(definition, asked) if definition else asked.max_tokens
        answers = size * samples_of(spec, asked)
        problems += size
        samples += answers
        tokens += answers * min(basis.sample_tokens, longest)
        most += answers * longest
    models = ["base", "student"]
    if asked.base_at_best:
        models.append("base at its best")
    if asked.teacher:
        models.append("teacher")
    models += [spec.role for spec in asked.baselines]
    return Asked(tuple(models), problems, samples, tokens, most, tuple(unknown))


def _heldout(recipe: Recipe, count: int | None) -> int | None:
    share = recipe.traces.heldout if recipe.traces is not None else 0.0
    share = recipe.problems.heldout or share
    if not share or count is None:
        return None
    sizes = [source.size or source.rows for source in recipe.problems.sources]
    if sizes and all(sizes):
        return round(sum(size for size in sizes if size) * share)
    return round(count * share / (1 - share))
