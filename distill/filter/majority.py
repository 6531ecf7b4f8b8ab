"""The filter that makes use of a majority vote, for problems that nothing else can grade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distill.errors import UsageError
from distill.grade.gym import gradable
from distill.grade.majority import agreement
from distill.records import Grade, Problem, Trace


class Majority:
    """Of ungraded traces keeps those whose answer enough traces of the problem agree on.

    At least `least` traces must agree, and they must be `share` of the problem's traces and more
    than give any other answer. Only traces that the grader `majority` counted are judged: problems
    with a reference or a scorer pass, and so does every outcome but `ungraded`.
    """

    version = "1"

    def __init__(self, share: float = 0.6, least: int = 4) -> None:
        if not 0 < share <= 1 or least < 1:
            raise UsageError(
                f"filter 'majority': share = {share}, least = {least}",
                "needs 0 < share <= 1 and least >= 1, as in {majority: {share: 0.6, least: 4}}",
            )
        self.share, self.least = share, least
        self.notes: list[str] = []

    def begin(
        self, problems: Mapping[str, Problem], tasks: Mapping[str, Sequence[Problem]]
    ) -> None:
        """Note where there is nothing to judge.

        A filter with `begin` is not asked while adaptive sampling is still sampling, which is as it
        must be here: there is no vote before all traces are there.
        """
        self.notes = []
        if all(gradable(problem) for problem in problems.values()):
            self.notes.append("majority: all problems have a reference or a scorer of their own")

    def __call__(self, problem: Problem, trace: Trace, grade: Grade) -> str | None:
        if grade.outcome != "ungraded" or gradable(problem):
            return None
        found = agreement(grade)
        if found is None:
            told = grade.detail if grade.grader == "majority" else ""
            return told or "answers were not counted: name `majority` among the graders"
        if found.kind != "majority":
            return grade.detail
        if found.agree < self.least:
            return f"{grade.detail}, fewer than {self.least}"
        if found.agree < self.share * found.traces:
            return f"{grade.detail}, less than {self.share:.0%}"
        return None
