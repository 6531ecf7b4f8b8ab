"""The default grader: chooses by what a problem carries.

In this order: a reasoning-gym entry, tests, instructions, a JSON schema, choices (with a gold), a
gold answer in words (`words`), any other gold answer (`math`). A part is made when a problem needs
it, so that a recipe of mathematics needs no sandbox and no extra package.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

from distill.grade.base import Check, StagedGrader
from distill.grade.choice import KEY as CHOICES
from distill.grade.exact import Words, in_letters, is_words
from distill.grade.gym import GYM, INSTRUCTIONS, SCHEMA, TESTS, ReasoningGym, carried
from distill.grade.math import Math
from distill.records import Grade, Problem, Trace

PARTS = {
    "gym": "distill.grade.gym:ReasoningGym",
    "code": "distill.grade.code:Code",
    "instructions": "distill.grade.instructions:Instructions",
    "json_schema": "distill.grade.schema_json:JsonSchema",
    "choice": "distill.grade.choice:Choice",
    "words": "distill.grade.exact:Words",
    "math": "distill.grade.math:Math",
}
"""What `auto` chooses from; `StagedGrader.version` of each says what decides in it."""

BY_KEY = {
    GYM: "gym",
    TESTS: "code",
    **dict.fromkeys(INSTRUCTIONS, "instructions"),
    SCHEMA: "json_schema",
}
"""The part for a problem that carries this (`gym.CARRIED` has their order)."""


class Auto(StagedGrader):
    """Chooses by what the problem carries; its grades are signed by the grader it chose."""

    name = "auto"
    code = "2"

    def __init__(self) -> None:
        self._parts: dict[str, StagedGrader] = {
            "gym": ReasoningGym(),
            "words": Words(),
            "math": Math(),
        }
        told = [f"{part.name} {part.version}" for part in self._parts.values()]
        # Of the optional parts their own code alone: installing a package that no problem here
        # needs must not make every step anew. Each grade has the versions that decided it.
        told += [f"{name} {_code(name)}" for name in PARTS if name not in self._parts]
        self.version = "; ".join([self.code, *told])

    def ready(self, problems: Iterable[Problem]) -> None:
        """Raises UsageError where a part that these problems need lacks a package or its data."""
        needed: dict[str, list[Problem]] = {}
        for problem in problems:
            part = self.part_for(problem)
            if part in ("instructions", "json_schema", "code"):
                needed.setdefault(part, []).append(problem)
        for part, carrying in needed.items():
            check = getattr(self._part(part), "ready", None)
            if check is not None:
                check(carrying)

    @staticmethod
    def part_for(problem: Problem) -> str:
        """The name of the part that judges a problem; '' where there is nothing to judge by."""
        key = carried(problem)
        if key:
            return BY_KEY[key]
        if problem.gold is None:
            return ""
        if problem.metadata.get(CHOICES):
            return "choice"
        return "words" if is_words(problem.gold) else "math"

    def quick(self, problem: Problem, trace: Trace) -> Grade | Check:
        part = self.part_for(problem)
        if not part:
            return self.grade("ungraded", detail="neither reference answer nor scorer")
        if part == "math" and in_letters(str(problem.gold)):
            # "seven" and "undefined" may be said in both ways.
            told = self._part("words").quick(problem, trace)
            if isinstance(told, Grade) and told.correct:
                return told
        grader = self._part(part)
        return self.delegated(part, grader, grader.quick(problem, trace))

    def check(self, *args: Any) -> Grade:
        part, *rest = args
        return self._part(part).check(*rest)

    def warm(self, part: str) -> None:
        self._part(part).warm("")

    def _part(self, part: str) -> StagedGrader:
        if part not in self._parts:
            # `lazy`: a sandbox is looked for when there is a program to be run in it.
            self._parts[part] = _found(part)(**({"lazy": True} if part == "code" else {}))
        return self._parts[part]


def _found(part: str) -> Any:
    module, _, name = PARTS[part].partition(":")
    return getattr(importlib.import_module(module), name)


def _code(part: str) -> str:
    """The number of a part's own code, whatever packages it uses."""
    found = _found(part)
    return str(getattr(found, "code", "") or found.version)
