"""What several graders say of one trace, as one grade: the first decisive, all, or any.

- `first`: the first grader that says `correct`, `wrong` or `truncated` decides.
- `all`: `correct` if every grader that applies says so. Otherwise the first of wrong, truncated,
  unparsed, error that one of them said.
- `any`: `correct` if one grader says so. Otherwise the first of error, wrong, truncated, unparsed.

A grader applies unless it says `ungraded`. An `error` is an unknown judgement: with `all` it yields
to any that is surely not correct, with `any` to `correct` alone, because the grader that failed
might have said it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from distill.grade.base import UNDECIDED, bounded
from distill.records import Grade, Outcome

How = Literal["first", "all", "any"]

ORDER: dict[How, tuple[Outcome, ...]] = {
    "first": ("correct", "wrong", "truncated", "error", "unparsed", "ungraded"),
    "all": ("wrong", "truncated", "unparsed", "error", "correct", "ungraded"),
    "any": ("correct", "error", "wrong", "truncated", "unparsed", "ungraded"),
}
"""The outcome that stands for several: the first of these that a grader gave."""


def decides(how: How, grade: Grade) -> bool:
    """True if no further grader can change the outcome."""
    if how == "first":
        return grade.outcome not in UNDECIDED
    return grade.outcome == ("wrong" if how == "all" else "correct")


def combined(how: How, grades: Sequence[Grade]) -> Grade:
    """One grade for those of the graders that were asked, in their order.

    It is the grade of the grader that settled it. Where `all` or `any` had several that apply, the
    detail says what each of them said; where `all` agree on `correct`, all sign it, with the lowest
    score.
    """
    if not grades:
        return Grade(outcome="ungraded", detail="no grader was named")
    order = ORDER[how]
    best = min(grades, key=lambda grade: order.index(grade.outcome))
    spoke = [grade for grade in grades if grade.outcome != "ungraded"]
    if how == "first" or len(spoke) < 2:
        return best
    said = ", ".join(f"{grade.grader}: {grade.outcome}" for grade in spoke)
    agreed = how == "all" and best.correct
    signers = spoke if agreed else [best]
    return bounded(
        Grade(
            outcome=best.outcome,
            score=min(grade.score for grade in spoke) if agreed else best.score,
            extracted=best.extracted,
            grader=", ".join(dict.fromkeys(grade.grader for grade in signers)),
            version="; ".join(dict.fromkeys(grade.version for grade in signers)),
            detail=f"{how} ({said})" + (f": {best.detail}" if best.detail else ""),
        )
    )
