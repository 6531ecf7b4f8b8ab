"""Agreement of the `reasoning_gym` grader with the scores of 1,000 answers of R1 and QwQ.

    python -m benchmarks.graders [--data ../shared/data/grading] [--limit N] [--disagreements]

The rows hold question, reference, response and the score that reasoning-gym's own evaluation gave
(open-thought/reasoning-gym-eval), without the entries that its scorers need; those are made again
from that evaluation's settings (seed 45, 50 of each task). Ours grades the whole response, in its
pool; plain is `score_answer` of what stands in `<answer>`, as that evaluation called it. Both agree
on a row if they find it right (1.0) where its score is 1.0, and not right elsewhere. Rows where
they do not agree were looked at one by one (`JUDGED`); `ratio` is our agreement over plain's, with
the labels that were judged to be wrong turned round.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from distill.grade import Judge
from distill.grade.gym import GYM, pack
from distill.records import OUTCOMES, Grade, Problem, Trace
from distill.schema import Grading

FILE = "reasoning_gym_r1_qwq_answers.jsonl"
GOAL = 1.0
COMMON: dict[str, Any] = {"size": 50, "seed": 45}
HARD: dict[str, dict[str, Any]] = {
    "advanced_geometry": {"min_coord": -100, "max_coord": 100},
    "basic_arithmetic": {"min_terms": 5, "max_terms": 10, "min_digits": 2, "max_digits": 5},
    "bitwise_arithmetic": {"difficulty": 5},
    "calendar_arithmetic": {
        "tasks": [
            "weekday_of_date",
            "is_leap_year",
            "weekday_offset",
            "count_days",
            "count_business_days",
        ],
        "offset_upper_bound": 200,
    },
    "chain_sum": {"min_terms": 5, "max_terms": 8, "min_digits": 4, "max_digits": 6},
    "complex_arithmetic": {
        "min_real": -100,
        "max_real": 100,
        "min_imag": -100,
        "max_imag": 100,
        "operations_weights": [0.25, 0.25, 0.25, 0.25],
    },
    "count_bits": {"min_n": 1_000_000, "max_n": 100_000_000},
    "decimal_arithmetic": {
        "min_num_decimal_places": 5,
        "max_num_decimal_places": 8,
        "precision": 10,
        "min_terms": 5,
        "max_terms": 8,
    },
    "decimal_chain_sum": {
        "min_terms": 5,
        "max_terms": 8,
        "min_digits": 4,
        "max_digits": 8,
        "min_decimal_places": 4,
        "max_decimal_places": 6,
    },
    "dice": {"num_dice": 6, "max_dice_size": 25},
    "fraction_simplification": {
        "min_value": 100,
        "max_value": 1000,
        "min_factor": 10,
        "max_factor": 100,
    },
    "gcd": {"min_numbers": 3, "max_numbers": 4, "min_value": 1000, "max_value": 10_000},
    "intermediate_integration": {"problem_type_weights": [0, 0, 0, 1, 0, 0, 0, 0]},
    "lcm": {"min_numbers": 3, "max_numbers": 4, "min_value": 1000, "max_value": 10_000},
    "leg_counting": {
        "min_animals": 20,
        "max_animals": 30,
        "min_instances": 64,
        "max_instances": 256,
    },
    "number_format": {
        "min_num_candidates": 25,
        "max_num_candidates": 100,
        "min_n": 100_000,
        "max_n": 1_000_000,
        "max_delta": 0.001,
    },
    "polynomial_equations": {"min_degree": 2, "max_degree": 3, "min_terms": 3, "max_terms": 4},
    "polynomial_multiplication": {
        "min_terms": 4,
        "max_terms": 8,
        "min_value": 10,
        "max_value": 10_000,
        "min_degree": 1,
        "max_degree": 4,
        "min_polynomials": 3,
        "max_polynomials": 6,
    },
    "power_function": {"min_exponent": 4, "max_exponent": 8},
    "prime_factorization": {"min_value": 1000, "max_value": 5000},
    "products": {"min_terms": 4, "max_terms": 8, "min_digits": 4, "max_digits": 8},
    "simple_equations": {
        "min_terms": 3,
        "max_terms": 10,
        "min_value": 10,
        "max_value": 10_000,
        "operators_weights": [0.35, 0.35, 0.3],
    },
    "simple_geometry": {"min_sides": 10, "max_sides": 15},
    "simple_integration": {"min_terms": 3, "max_terms": 4},
    "time_intervals": {"max_time_difference_seconds": 21_600, "max_date_difference_days": 30},
}
"""Settings of that evaluation's hard half; its easy half has each task's own defaults."""

JUDGED = {
    "rg-easy-qwen_qwq-32b-fraction_simplification-15-0": "$291/316$",
    "rg-easy-qwen_qwq-32b-simple_geometry-2-0": "117",
    "rg-easy-qwen_qwq-32b-fraction_simplification-16-0": "$187/507$",
    "rg-hard-qwen_qwq-32b-simple_equations-43-0": "6730",
    "rg-hard-qwen_qwq-32b-advanced_geometry-34-0": "(16.429, 8.190)",
}
"""Rows whose label was judged to be wrong, each looked at: the answer is the gold one, but
stands in `\\boxed{}` instead of, or inside, the tags that the evaluation asked for."""


class Row:
    """One labelled response, with its entry made again. `alike` is False where the installed
    reasoning-gym makes another question there now: its entry has the row's question and answer."""

    def __init__(self, held: dict[str, Any], dataset: Any, config: dict[str, Any]) -> None:
        self.held, self.scorer = held, dataset
        self.label = held["expected"] == 1.0
        self.right = self.label or held["id"] in JUDGED
        self.name = "/".join(held["benchmark"].split("/")[1:])
        entry = dict(dataset[int(held["id"].rsplit("-", 2)[1])])
        self.alike = entry["question"].strip() == held["problem"].strip()
        self.entry = {**entry, "question": held["problem"], "answer": held["gold"]}
        spec = {"task": self.name.partition("/")[0], "config": config, "entry": pack(self.entry)}
        self.problem = Problem(
            messages=({"role": "user", "content": held["problem"]},),
            gold=held["gold"],
            source=self.name,
            metadata={GYM: spec},
        )
        self.trace = Trace(problem_id=self.problem.id, index=0, text=held["full_response"])

    def plain(self) -> bool:
        """The verdict of the scorer alone about what stood in `<answer>`."""
        return float(self.scorer.score_answer(self.held["pred"], self.entry)) == 1.0


def rows(path: Path, limit: int | None = None) -> list[Row]:
    """The labelled responses of a file."""
    import reasoning_gym

    made: dict[str, Any] = {}
    found = []
    for line in path.read_text(encoding="utf-8").splitlines()[:limit]:
        held = json.loads(line)
        _, task, level = held["benchmark"].split("/")
        config = HARD.get(task, {}) if level == "hard" else {}
        key = f"{task}/{level}"
        if key not in made:
            made[key] = reasoning_gym.create_dataset(task, **COMMON, **config)
        found.append(Row(held, made[key], config))
    return found


def ours(data: list[Row]) -> list[Grade]:
    """Our grades, in order."""
    with Judge(Grading(timeout_s=30), Path()) as judge:
        return list(judge.grade_many((row.problem, row.trace) for row in data))


def described(row: Row, grade: Grade, plain: bool) -> str:
    """A row on whose label we do not agree, to be looked at."""
    held = row.held
    verdict = "label judged wrong" if held["id"] in JUDGED else "not judged yet"
    return (
        f"\n{held['id']}: score {held['expected']}, plain {plain}, ours {grade.outcome} "
        f"{grade.score:g} {grade.extracted!r:.100}, {verdict}\n  gold {held['gold']!r:.100}\n"
        f"  response {held['full_response'][-160:]!r}"
    )


def main() -> None:
    """Print the table, the disagreements where asked for, and the ratio."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--data", type=Path, default=Path("../shared/data/grading"))
    arguments.add_argument("--limit", type=int)
    arguments.add_argument("--disagreements", action="store_true")
    asked = arguments.parse_args()
    data = rows(asked.data / FILE, asked.limit)
    started = time.perf_counter()
    plain = [row.plain() for row in data]
    between = time.perf_counter()
    grades = ours(data)
    ended = time.perf_counter()
    table = Counter((row.label, grade.outcome) for row, grade in zip(data, grades, strict=True))
    print(f"{'score':>8} " + " ".join(f"{name:>9}" for name in OUTCOMES))
    for right in (True, False):
        told = " ".join(f"{table[right, name]:>9}" for name in OUTCOMES)
        print(f"{'1.0' if right else 'below':>8} {told}")
    print(f"{sum(not row.alike for row in data)} of {len(data)} entries are made otherwise now")
    found = {"plain": plain, "ours": [grade.correct for grade in grades]}
    seconds = {"plain": between - started, "ours": ended - between}
    agree = {}
    for who, right in found.items():
        labels = sum(row.label == one for row, one in zip(data, right, strict=True))
        agree[who] = sum(row.right == one for row, one in zip(data, right, strict=True))
        print(
            f"{who:>8} {labels} of {len(data)} agree with the label, {agree[who]} as judged, "
            f"{seconds[who]:.1f} s"
        )
    if asked.disagreements:
        for row, grade, one in zip(data, grades, plain, strict=True):
            if row.label != grade.correct:
                print(described(row, grade, one))
    print(f"graders ratio={agree['ours'] / agree['plain']:.4f} goal={GOAL:g}")


if __name__ == "__main__":
    main()
