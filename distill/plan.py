"""What a run will ask for, before it does: problems, samples, tokens, memory, money, hours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill.plan_sampling import Basis, default_basis, problem_count
from distill.plan_words import sampling_lines, selection_lines
from distill.recipe import Recipe


def plan_lines(
    recipe: Recipe,
    problems: Mapping[str, Any] | None = None,
    *,
    basis: Basis | None = None,
    tokens_per_second: float | None = None,
) -> list[str]:
    """The plan as lines of text. `problems` is the summary of the problems step, once it ran."""
    count = problem_count(recipe, problems)
    lines = [f"plan      {recipe.name}{f' ({recipe.variant})' if recipe.variant else ''}"]
    if recipe.traces is None:
        found = sampling_lines(recipe, count, basis or default_basis(recipe), tokens_per_second)
        lines += [f"          {line}" for line in found]
    else:
        lines.append("          starts from published traces: nothing is sampled")
    lines += [f"          {line}" for line in selection_lines(recipe)]
    student, train = recipe.student, recipe.train
    lines.append(
        f"          student {student.base or '(object)'}, {student.method}: {train.epochs:g} "
        f"epochs, batch {train.batch_size} examples, learning rate {train.learning_rate:g}"
    )
    asked = recipe.evaluate
    tasks = ", ".join(task.name for task in asked.tasks)
    lines.append(f"          evaluation on {tasks}: {asked.samples} samples a problem")
    return lines
