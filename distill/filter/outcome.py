"""Filters that only look at how the trace ended and how it was graded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from distill.errors import UsageError
from distill.grade.gym import gradable
from distill.records import OUTCOMES, Grade, Problem, Trace


class Truncated:
    """Drops traces that were cut off at the token limit.

    Such a trace has no end token: a student that trains on it does not learn to stop.
    """

    version = "1"

    def __call__(self, problem: Problem, trace: Trace, grade: Grade) -> str | None:
        if trace.finish_reason == "length":
            size = f" after {trace.completion_tokens} tokens" if trace.completion_tokens else ""
            return f"cut off{size}"
        if grade.outcome == "truncated":
            return "graded as truncated"
        return None


class Correct:
    """Keeps traces whose outcome is in `allow`; by default only `correct` ones.

    With `ungraded: keep` traces pass too that nothing judged because their problem has neither a
    reference answer nor a scorer, as in R1's general part (arXiv 2501.12948v1, section 2.3.3). A
    trace that should have been graded and was not is dropped all the same; `allow: [correct,
    ungraded]` would keep it.
    """

    version = "1"

    def __init__(
        self, allow: Sequence[str] = ("correct",), ungraded: Literal["drop", "keep"] = "drop"
    ) -> None:
        unknown = [name for name in allow if name not in OUTCOMES]
        if isinstance(allow, str) or unknown:
            raise UsageError(
                f"filter 'correct': allow = {allow!r}",
                f"allow is a list of outcomes: {', '.join(OUTCOMES)}",
            )
        if ungraded not in ("drop", "keep"):
            raise UsageError(f"filter 'correct': ungraded = {ungraded!r}", "it is drop or keep")
        self.allow = tuple(allow)
        self.keeps_ungraded = ungraded == "keep"

    def __call__(self, problem: Problem, trace: Trace, grade: Grade) -> str | None:
        if grade.outcome in self.allow:
            return None
        if self.keeps_ungraded and grade.outcome == "ungraded" and not gradable(problem):
            return None
        if grade.outcome == "wrong":
            if grade.extracted is None and grade.detail:
                return f"wrong: {_short(grade.detail)}"
            return f"wrong: {_short(grade.extracted)} instead of {_short(problem.gold)}"
        return f"{grade.outcome}: {_short(grade.detail)}" if grade.detail else grade.outcome


def _short(text: str | None, limit: int = 60) -> str:
    if text is None:
        return "no answer"
    folded = " ".join(text.split())
    return folded if len(folded) <= limit else folded[: limit - 1] + "…"
