"""What the graders of this package share: a cheap part, and a part that may hang.

A grader is any callable `(problem, trace) -> Grade` (`distill.protocols.Grader`). Ours are split
in two: `quick` runs in the caller, never takes long and settles most traces; what it cannot settle
it returns as a `Check`, which a worker that can be killed runs through `check`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from distill.records import OUTCOMES, Grade, Outcome, Problem, Trace

UNDECIDED: tuple[Outcome, ...] = ("unparsed", "error", "ungraded")
"""Outcomes after which the next grader of a list is asked."""


@dataclass(frozen=True, slots=True)
class Check:
    """Work for a worker: picklable arguments of `check`, and what equal checks have in common."""

    args: tuple[Any, ...]
    key: Hashable = None
    """None: the result depends on more than the arguments, so it is not reused."""
    part: str = ""
    """Which of the grader's parts is needed, as `warm` takes it."""
    timeout_s: float | None = None
    """Seconds that this check may take; None: what its grader asks for, else the caller's limit."""


class StagedGrader:
    """Base of graders that need a worker only for what `quick` leaves open."""

    name = ""
    version = ""
    timeout_s: float | None = None
    """Seconds for a check of this grader where it needs another limit than `grading.timeout_s`."""

    def quick(self, problem: Problem, trace: Trace) -> Grade | Check:
        """Settle the trace without anything that may hang, or say what is to be checked."""
        raise TypeError(f"{type(self).__name__} must say what it can settle quickly")

    def check(self, *args: Any) -> Grade:
        """Judge what `quick` left open. May hang, crash or use up its memory."""
        raise TypeError(f"{type(self).__name__} must say how it checks {args!r}")

    def warm(self, part: str) -> None:
        """Import what `check` needs; runs in a worker before its clock starts."""

    def limit(self, check: Check, otherwise: float) -> float:
        """Seconds that a check of this grader may take."""
        return next(s for s in (check.timeout_s, self.timeout_s, otherwise) if s is not None)

    def delegated(self, part: str, inner: StagedGrader, result: Grade | Check) -> Grade | Check:
        """What `inner.quick` said, as this grader's own: its `check` is called with `part` first.

        The key is told apart by the part, the deadline is the inner grader's.
        """
        if isinstance(result, Grade):
            return result
        key = None if result.key is None else (part, result.key)
        limit = inner.timeout_s if result.timeout_s is None else result.timeout_s
        return Check((part, *result.args), key, part, limit)

    def __call__(self, problem: Problem, trace: Trace) -> Grade:
        result = self.quick(problem, trace)
        return result if isinstance(result, Grade) else self.check(*result.args)

    def grade(
        self,
        outcome: Outcome,
        extracted: str | None = None,
        *,
        score: float | None = None,
        detail: str = "",
    ) -> Grade:
        """A Grade signed by this grader; the score is 1 for `correct` unless given."""
        return Grade(
            outcome=outcome,
            score=float(outcome == "correct") if score is None else score,
            extracted=extracted,
            grader=self.name,
            version=self.version,
            detail=detail,
        )


class Custom(StagedGrader):
    """A user's grader, run whole in a worker."""

    def __init__(self, grader: Any, name: str, version: str) -> None:
        self.grader = grader
        self.name = str(getattr(grader, "name", "") or name)
        self.version = version

    def quick(self, problem: Problem, trace: Trace) -> Grade | Check:
        return Check((problem, trace))

    def check(self, *args: Any) -> Grade:
        result = self.grader(*args)
        if not isinstance(result, Grade):
            return self.grade(
                "error",
                detail=f"returned {type(result).__name__} {result!r:.80}, expected distill.Grade",
            )
        if result.outcome not in OUTCOMES:
            said = f"said {result.outcome!r:.80}, which is none of {', '.join(OUTCOMES)}"
            return self.grade("error", detail=said)
        extracted = result.extracted
        return Grade(
            outcome=result.outcome,
            score=min(1.0, max(0.0, float(result.score))),
            extracted=extracted if extracted is None else str(extracted),
            grader=result.grader or self.name,
            version=result.version or self.version,
            detail=str(result.detail),
        )


EXTRACTED, DETAIL = 2000, 500
"""Longest `extracted` and `detail` of a grade, in characters."""


def bounded(grade: Grade) -> Grade:
    """The grade with texts that can be kept: not megabytes long, and no halves of characters."""
    extracted, detail = grade.extracted, _kept(grade.detail, DETAIL)
    if extracted is not None:
        extracted = _kept(extracted, EXTRACTED)
    if extracted is grade.extracted and detail is grade.detail:
        return grade
    return dataclasses.replace(grade, extracted=extracted, detail=detail)


def _kept(text: str, most: int) -> str:
    if len(text) > most:
        text = f"{text[: most - 3]}..."
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return text.encode(errors="replace").decode()
    return text


def version_of(package: str) -> str:
    """`name version` of an installed package, without importing it."""
    return f"{package} {metadata.version(package)}"
