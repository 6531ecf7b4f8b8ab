"""What a run will ask for, before it does: problems, samples, tokens, money.

Memory, hours and hardware belong here too; so far the plan covers what is bought from a teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill import models
from distill.recipe import Recipe

R1_TOKENS = 5355
"""Mean length of DeepSeek-R1's distillation traces in tokens (arXiv 2501.12948v2, Table 5)."""
R1_PROMPT_TOKENS = 200
"""Assumed length of a problem with its instruction in tokens; prompts are a small part of the
bill."""


def plan_lines(recipe: Recipe, problems: Mapping[str, Any] | None = None) -> list[str]:
    """The plan as lines of text. `problems` is the summary of the problems step, once it ran."""
    count = _count(recipe, problems)
    lines = [f"plan      {recipe.name}{f' ({recipe.variant})' if recipe.variant else ''}"]
    if recipe.traces is None:
        lines += _sampling_lines(recipe, count)
    else:
        lines.append("          starts from published traces: nothing is sampled")
    student, train = recipe.student, recipe.train
    lines.append(
        f"          student {student.base or '(object)'}, {student.method}: {train.epochs:g} "
        f"epochs, batch {train.batch_size} examples, learning rate {train.learning_rate:g}"
    )
    asked = recipe.evaluate
    tasks = ", ".join(task.name for task in asked.tasks)
    lines.append(f"          evaluation on {tasks}: {asked.samples} samples a problem")
    return lines


def expected_cost(recipe: Recipe, problems: int) -> tuple[int, float]:
    """Completion tokens and money for sampling `problems`; nothing reused, nothing cut."""
    samples = problems * recipe.sampling.n
    tokens = samples * tokens_per_trace(recipe)
    teacher = recipe.teacher
    money = (tokens * teacher.price_out + samples * R1_PROMPT_TOKENS * teacher.price_in) / 1e6
    return tokens, money


def tokens_per_trace(recipe: Recipe) -> int:
    """The teacher's mean trace length from the catalog, else R1's, never above the limit."""
    known = None
    if recipe.teacher.model:
        known = getattr(models.teacher_entry(recipe.teacher.model), "mean_tokens", None)
    return min(int(known or R1_TOKENS), recipe.sampling.max_tokens)


def _sampling_lines(recipe: Recipe, count: int | None) -> list[str]:
    teacher, sampling = recipe.teacher, recipe.sampling
    who = teacher.model or teacher.engine or "(object)"
    if count is None:
        return [f"          teacher {who}: {sampling.n} samples of each problem"]
    tokens, money = expected_cost(recipe, count)
    lines = [
        f"          teacher {who}: {count:,} problems x {sampling.n} samples = "
        f"{count * sampling.n:,} traces, about {tokens:,} tokens "
        f"(at most {count * sampling.n * sampling.max_tokens:,})"
    ]
    if teacher.price_out or teacher.price_in:
        cap = "no cap" if sampling.max_cost is None else f"cap {sampling.max_cost:,.2f}"
        lines.append(f"          cost about {money:,.2f} at the recipe's prices ({cap})")
    return lines


def _count(recipe: Recipe, problems: Mapping[str, Any] | None) -> int | None:
    if problems is not None and "problems" in problems:
        return int(problems["problems"])
    sizes = [source.size or source.rows for source in recipe.problems.sources]
    if not sizes or any(size is None for size in sizes):
        return recipe.problems.limit
    total = sum(size for size in sizes if size)
    kept = round(total * (1 - recipe.problems.heldout))
    return min(kept, recipe.problems.limit or kept)
