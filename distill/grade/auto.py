"""The default grader: a reasoning-gym problem by its task's scorer, any other with gold by math."""

from __future__ import annotations

from typing import Any

from distill.grade.base import Check, StagedGrader
from distill.grade.gym import KEY, ReasoningGym
from distill.grade.math import Math
from distill.records import Grade, Problem, Trace


class Auto(StagedGrader):
    """Chooses by what the problem carries; its grades are signed by the grader it chose."""

    name = "auto"

    def __init__(self) -> None:
        self.gym, self.math = ReasoningGym(), Math()
        self.version = f"1; math {self.math.version}; reasoning_gym {self.gym.version}"

    def quick(self, problem: Problem, trace: Trace) -> Grade | Check:
        if problem.metadata.get(KEY):
            return self._tagged("gym", self.gym.quick(problem, trace))
        if problem.gold is not None:
            return self._tagged("math", self.math.quick(problem, trace))
        return self.grade("ungraded", detail="neither reference answer nor scorer")

    def check(self, *args: Any) -> Grade:
        part, *rest = args
        return self._part(part).check(*rest)

    def warm(self, part: str) -> None:
        self._part(part).warm("")

    def _part(self, part: str) -> ReasoningGym | Math:
        return self.gym if part == "gym" else self.math

    @staticmethod
    def _tagged(part: str, result: Grade | Check) -> Grade | Check:
        if isinstance(result, Grade):
            return result
        return Check((part, *result.args), (part, result.key), part)
