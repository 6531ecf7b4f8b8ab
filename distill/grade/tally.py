"""What a grade step counts while its grades pass, and says about them."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from distill.grade.base import StagedGrader
from distill.grade.judge import NAME, ModelJudge
from distill.records import OUTCOMES, Grade, Problem, Trace, to_row

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Graded:
    """A graded trace. `trace` is kept while a judge may have to read it, `answer` for a vote."""

    problem: Problem
    head: dict[str, Any]
    grade: Grade
    trace: Trace | None = None
    answer: str | None = None


class Tally:
    """What the summary says; holds two numbers for each problem."""

    def __init__(self, judges: Sequence[ModelJudge] = ()) -> None:
        self.judges = judges
        self.first_error = ""
        self.outcomes: Counter[str] = Counter()
        self.by_source: dict[str, Counter[str]] = defaultdict(Counter)
        self.correct: Counter[str] = Counter()
        self.judged: Counter[str] = Counter()

    def over(self, graded: Iterable[Graded]) -> Iterator[dict[str, Any]]:
        """The rows of `grades.jsonl`, counted while they pass."""
        for item in graded:
            self.add(item.problem, item.grade)
            yield {**item.head, **to_row(item.grade)}

    def add(self, problem: Problem, grade: Grade) -> None:
        self.outcomes[grade.outcome] += 1
        if grade.outcome == "error":
            self.first_error = self.first_error or f"{grade.grader}: {grade.detail}"
        self.by_source[problem.source][grade.outcome] += 1
        if grade.outcome != "ungraded":
            self.judged[problem.id] += 1
            self.correct[problem.id] += grade.correct

    def summary(self, rules: Sequence[StagedGrader], killed: int) -> dict[str, Any]:
        total = sum(self.outcomes.values())
        return {
            "traces": total,
            "outcomes": {name: self.outcomes[name] for name in OUTCOMES},
            "by_source": {
                source: {name: counts[name] for name in OUTCOMES}
                for source, counts in sorted(self.by_source.items())
            },
            "pass_rate_histogram": self.histogram(),
            "problems_with_correct": sum(1 for count in self.correct.values() if count),
            "grader": ", ".join([g.name for g in rules] + [NAME] * len(self.judges)),
            "versions": {
                **{grader.name: grader.version for grader in rules},
                **{f"{NAME} {one.spec.model}".strip(): one.version for one in self.judges},
            },
            "workers_killed": killed,
            "judges": [one.summary() for one in self.judges],
            "notes": self.notes(),
        }

    def histogram(self) -> list[int]:
        """Problems by pass rate 0, 0.1, ... 1; only 0 and 1 themselves are in the end bins."""
        bins = [0] * 11
        for problem, judged in self.judged.items():
            rate = self.correct[problem] / judged
            bins[round(rate * 10) if rate in (0, 1) else min(9, max(1, round(rate * 10)))] += 1
        return bins

    def notes(self) -> list[str]:
        found = []
        if self.outcomes["error"]:
            found.append(
                f"{self.outcomes['error']} traces could not be judged; first: {self.first_error}"
            )
        if self.outcomes["ungraded"]:
            found.append(f"{self.outcomes['ungraded']} traces had nothing to be judged by")
        for one in self.judges:
            name = one.spec.model or one.spec.engine
            found += [f"judge {name}: {note}" for note in one.notes]
        for note in found:
            log.warning(note)
        return found
