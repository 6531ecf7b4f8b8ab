"""How often the teacher solves a problem, for `select.pass_rate`, and how little few tries say."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import DataError
from distill.filter.difficulty import GRADED, Difficulty
from distill.records import read_jsonl
from distill.schema import Selection


class PassRates:
    """Which problems' pass rates lie within `select.pass_rate`.

    `stops` (`want`, `most`) says how adaptive sampling stopped; the rate is then the unbiased
    estimate of `Policy.pass_rate`. A problem of fewer than `min_tries` graded traces has no rate
    and is left out: nobody knows that it is hard.
    """

    def __init__(self, grades: Path, config: Selection, stops: Mapping[str, int]) -> None:
        self.low, self.high = config.pass_rate or (0.0, 1.0)
        self.least = config.min_tries
        self._rule = Difficulty(self.low, self.high, self.least, **stops)
        self.tries: Counter[str] = Counter()
        self.correct: Counter[str] = Counter()
        for row in read_jsonl(grades):
            if row["outcome"] in GRADED:
                self.tries[row["problem_id"]] += 1
                self.correct[row["problem_id"]] += row["outcome"] == "correct"

    def why_not(self, problem: str) -> str | None:
        """Why a problem is not among those wanted; None where it is."""
        tries, correct = self.tries[problem], self.correct[problem]
        if tries < self.least:
            return f"no pass rate: {tries} graded traces, {self.least} wanted (min_tries)"
        rate = self._rule.pass_rate(tries, correct)
        if self.low <= rate <= self.high:
            return None
        return (
            f"pass rate {rate:.3g} ({correct} of {tries}) outside "
            f"[{self.low:g}, {self.high:g}] (pass_rate)"
        )

    def summary(self) -> dict[str, int]:
        """Problems with graded traces: within, outside, and without enough tries."""
        few = sum(n < self.least for n in self.tries.values())
        within = sum(self.why_not(problem) is None for problem in self.tries)
        return {
            "problems": len(self.tries),
            "within": within,
            "outside": len(self.tries) - within - few,
            "too_few_tries": few,
        }

    def notes(self) -> list[str]:
        """What a reader must know of rates that come from a few samples."""
        counted = sorted(n for n in self.tries.values() if n >= self.least)
        told = self.summary()
        found = []
        if told["too_few_tries"]:
            found.append(
                f"pass_rate: {told['too_few_tries']} of {told['problems']} problems have fewer "
                f"than {self.least} graded traces and were left out"
            )
        if counted and self.high < 1:
            tries = counted[len(counted) // 2]
            easier = (1 + self.high) / 2
            chance = sum(
                math.comb(tries, k) * easier**k * (1 - easier) ** (tries - k)
                for k in range(math.floor(self.high * tries + 1e-9) + 1)
            )
            found.append(
                f"pass_rate: rates of {tries} tries each (the median); a problem that is solved "
                f"{easier:.0%} of the time shows {self.high:g} or less by chance in {chance:.0%} "
                "of the cases"
            )
        return found

    def nothing_left(self) -> DataError:
        """The error where no kept trace is of a problem that is wanted."""
        told: Mapping[str, Any] = self.summary()
        return DataError(
            f"no kept trace is of a problem with a pass rate within [{self.low:g}, {self.high:g}]: "
            f"of {told['problems']} graded problems {told['within']} are within, "
            f"{told['outside']} outside, {told['too_few_tries']} have fewer than "
            f"{self.least} graded traces",
            "widen select.pass_rate, lower select.min_tries, or sample more traces of each problem",
        )
