"""Answers made to hang, crash or deceive a mathematical grader, each with a known truth.

    python -m benchmarks.grading_adversarial [--pairs 1000] [--timeout 1] [--workers N] [--seed 0]

Every pair is generated from the seed, so that its truth is known by construction: equal, or not.
They go through `Judge` as in a grade step. Printed for each family: outcomes, false positives
(unequal, called correct: there must be none), equal pairs that were missed, and the slowest call of
`quick`, which runs in the caller without a deadline.

`ratio` is the slowest item's time over its deadline, with the time that killing its worker took and
without time spent waiting for a processor. Goal: 1.25 (a deadline is met up to a quarter of it).
The exit code is 1 where that is missed, where not all pairs were judged, for a false positive, and
where the pool cannot judge ordinary answers afterwards.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.hostile_pairs import Pair, pairs
from distill.grade import Judge
from distill.grade.base import Check
from distill.records import Grade, Problem, Trace
from distill.schema import Grading, PartSpec

GOAL = 1.25


@dataclass
class Tally:
    """What became of one family."""

    outcomes: Counter[str] = field(default_factory=Counter)
    details: Counter[str] = field(default_factory=Counter)
    false_positives: list[str] = field(default_factory=list)
    missed: int = 0
    quick_s: float = 0.0

    def add(self, pair: Pair, grade: Grade) -> None:
        self.outcomes[grade.outcome] += 1
        if grade.outcome == "error":
            self.details[grade.detail[:50]] += 1
        if grade.correct and not pair.equal:
            self.false_positives.append(
                f"{pair.problem.gold!r:.70} ~ {pair.trace.answer or pair.trace.text!r:.90}"
            )
        self.missed += pair.equal and not grade.correct


def measure_quick(judge: Judge, count: int, seed: int, tallies: dict[str, Tally]) -> int:
    """Time `quick` of each pair in this process. Returns how many are left to a worker."""
    left = 0
    (grader,) = judge.graders
    for pair in pairs(count, seed):
        started = time.process_time()
        result = grader.quick(pair.problem, pair.trace)
        took = time.process_time() - started
        left += isinstance(result, Check)
        tallies[pair.family].quick_s = max(took, tallies[pair.family].quick_s)
    return left


def sound(judge: Judge) -> bool:
    """Whether the pool still judges ordinary answers."""
    asked = [
        ("\\sqrt{8}", "2\\sqrt{2}", True),
        ("\\frac{x^2-1}{x-1}", "x+1", True),
        ("\\sin(2x)", "\\cos x", False),
    ]
    grades = [
        judge.grade(
            Problem(messages=(), gold=gold),
            Trace(problem_id="", index=0, text=f"\\boxed{{{answer}}}"),
        )
        for gold, answer, _ in asked
    ]
    return [g.correct for g in grades] == [equal for _, _, equal in asked] and all(
        g.outcome in ("correct", "wrong") for g in grades
    )


def run(count: int, timeout_s: float, workers: int | None, seed: int) -> tuple[float, bool]:
    """Judge all pairs and print the table. Returns the ratio, and whether all the rest is right."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    config = Grading(graders=[PartSpec(name="math")], timeout_s=timeout_s, workers=workers)
    with Judge(config, Path()) as judge:
        left = measure_quick(judge, count, seed, tallies)
        started = time.monotonic()
        grades = judge.grade_many((p.problem, p.trace) for p in pairs(count, seed))
        judged = 0
        for pair, grade in zip(pairs(count, seed), grades, strict=True):
            tallies[pair.family].add(pair, grade)
            judged += 1
        wall = time.monotonic() - started
        intact = sound(judge)
        quick_s = max(tally.quick_s for tally in tallies.values())
        ratio = max(judge.pool.longest, quick_s / timeout_s)
        _print(tallies)
        pool = judge.pool
        print(
            f"\n{judged:,} pairs in {wall:.1f} s, deadline {timeout_s:g} s, {pool.workers} workers"
        )
        print(f"{left:,} went to a worker, {pool.killed:,} workers were killed")
        print(f"slowest check {pool.longest:.2f} of its deadline, slowest quick {quick_s:.3f} s")
        print(f"the pool is {'sound' if intact else 'BROKEN'} afterwards")
    false = [text for tally in tallies.values() for text in tally.false_positives]
    for text in false[:20]:
        print(f"FALSE POSITIVE {text}")
    return ratio, intact and not false and judged == count


def _print(tallies: dict[str, Tally]) -> None:
    names = ("correct", "wrong", "unparsed", "error")
    print(
        f"{'family':<20}"
        + "".join(f"{n:>10}" for n in (*names, "missed", "false+", "quick ms"))
        + "  errors"
    )
    for name, tally in tallies.items():
        cells = [*(tally.outcomes[n] for n in names), tally.missed, len(tally.false_positives)]
        errors = "; ".join(f"{count} {text}" for text, count in tally.details.most_common(2))
        numbers = "".join(f"{n:>10}" for n in cells)
        print(f"{name:<20}{numbers}{tally.quick_s * 1e3:>10.1f}  {errors}")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--pairs", type=int, default=1000)
    options.add_argument("--timeout", type=float, default=1.0, help="seconds for each pair")
    options.add_argument("--workers", type=int, default=None)
    options.add_argument("--seed", type=int, default=0)
    asked = options.parse_args()
    ratio, right = run(asked.pairs, asked.timeout, asked.workers, asked.seed)
    print(f"grading_adversarial ratio={ratio:.2f} goal={GOAL:g}")
    return 0 if right and ratio <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
