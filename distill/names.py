"""Every part that a recipe names, looked up before anything runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from distill.recipe import Recipe
from distill.resolve import resolve
from distill.workers import TRAINERS, engines, filters_of


def named_parts(recipe: Recipe) -> Iterator[tuple[str, Mapping[str, str], str]]:
    """(what, known names, name) of each grader, filter, engine and trainer."""
    from distill.filter import KNOWN as FILTERS
    from distill.grade.parts import KNOWN as GRADERS

    by_source = itertools.chain.from_iterable(recipe.grading.by_source.values())
    for part in (*recipe.grading.graders, *by_source):
        yield "grader", GRADERS, part.name
    for part in recipe.filters:
        yield "filter", FILTERS, part.name
    yield "trainer", TRAINERS, recipe.student.trainer
    if recipe.traces is None and recipe.teacher.engine:
        yield "teacher engine", engines(), recipe.teacher.engine
    yield "evaluation engine", engines(), recipe.evaluate.engine


def check_name(recipe: Recipe, what: str, known: Mapping[str, str], name: str) -> None:
    """Raise UsageError unless the name is one of ours or a user's part that can be imported."""
    if name not in known:  # importing ours would import what they need
        resolve(name, known, what=what, folder=recipe.folder)


def check_names(recipe: Recipe) -> None:
    """Raise UsageError for the first part, or tokenizer of a filter, that cannot be found."""
    for what, known, name in named_parts(recipe):
        check_name(recipe, what, known, name)
    filters_of(recipe, recipe.folder)
