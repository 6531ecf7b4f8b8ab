"""The filter for problems that are too easy or too hard, by how often the teacher solves them."""

from __future__ import annotations

from collections.abc import Iterable

from distill.errors import UsageError
from distill.policy import Policy
from distill.records import Grade, Problem, Trace

Item = tuple[Problem, Trace, Grade]

GRADED = frozenset(["correct", "wrong", "unparsed", "truncated"])
"""Outcomes that are tries: a grader's `error` and an `ungraded` trace say nothing of a problem."""


class Difficulty:
    """Drops all traces of problems whose pass rate lies below `min` or above `max`.

    The pass rate is correct over graded traces, counted over all traces of the problem, whatever
    the filters before dropped. Problems of fewer than `least` graded traces are kept: one lucky
    answer is no rate.

    With adaptive sampling the last trace is a success by design, so that correct over graded is
    too high. Say how it was sampled (`want` and `most` are the recipe's `sampling.want` and
    `sampling.max`) and the unbiased estimate of `Policy.pass_rate` is compared: with `want` correct
    it is (want - 1) / (tries - 1).
    """

    version = "1"
    sees_all = True

    def __init__(
        self,
        min: float | None = None,
        max: float | None = None,
        least: int = 4,
        want: int | None = None,
        most: int = 16,
    ) -> None:
        low, high = 0.0 if min is None else min, 1.0 if max is None else max
        if (min is None and max is None) or not 0 <= low <= high <= 1 or least < 1:
            raise UsageError(
                f"filter 'difficulty': min = {min}, max = {max}, least = {least}",
                "set at least one bound, 0 <= min <= max <= 1, as in {min: 0.1, max: 0.9}; "
                "least is 1 or more",
            )
        self.policy = None if want is None else Policy(want=want, most=most)
        if want == 1:
            raise UsageError(
                "filter 'difficulty': want = 1",
                "a problem sampled until its first success has no pass rate of its own "
                "(its unbiased estimate is 0 or 1): sample with want of 2 or more, or fixed n",
            )
        self.low, self.high, self.least = low, high, least
        self.notes: list[str] = []
        self._counts: dict[str, tuple[int, int]] = {}

    def prepare(self, items: Iterable[Item]) -> None:
        """Count (graded, correct) of each problem."""
        self._counts, self.notes = {}, []
        shared: dict[tuple[int, int], tuple[int, int]] = {}
        for problem, _, grade in items:
            graded, correct = self._counts.get(problem.id, (0, 0))
            if grade.outcome in GRADED:
                count = (graded + 1, correct + grade.correct)
            else:
                count = (graded, correct)
            # Problems by the million share a few dozen different counts.
            self._counts[problem.id] = shared.setdefault(count, count)
        few = sum(graded < self.least for graded, _ in self._counts.values())
        if few:
            self.notes.append(
                f"difficulty: {few} of {len(self._counts)} problems have fewer than {self.least} "
                "graded traces and were kept"
            )

    def __call__(self, problem: Problem, trace: Trace, grade: Grade) -> str | None:
        graded, correct = self._counts.get(problem.id, (0, 0))
        if graded < self.least:
            return None
        rate = self.pass_rate(graded, correct)
        if self.low <= rate <= self.high:
            return None
        side, bound = ("below", self.low) if rate < self.low else ("above", self.high)
        how = ", unbiased" if self.policy else ""
        return f"pass rate {rate:.3g} ({correct} of {graded} correct{how}), {side} {bound:g}"

    def pass_rate(self, graded: int, correct: int) -> float:
        """The estimate that is compared with the bounds, for `graded` > 0."""
        if self.policy is None or self.policy.want is None:
            return correct / graded
        # Where a filter objected to a correct one there are more than wanted; the last succeeded.
        want = correct if correct > self.policy.want else self.policy.want
        most = self.policy.most if graded <= self.policy.most else graded
        return Policy(want=want, most=most if most >= want else want).pass_rate(graded, correct)
