"""The filter by pass rate: counts over all traces, bounds, and the bias of adaptive sampling."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from distill.errors import UsageError
from distill.filter.difficulty import Difficulty
from distill.filter.run import filter_traces
from distill.policy import Policy
from distill.recipe import Recipe
from distill.records import Grade, Problem, Trace, Verdict, read_records, write_jsonl
from distill.schema import PartSpec
from distill.workers import filters_of

Item = tuple[Problem, Trace, Grade]


def problem(name: str) -> Problem:
    return Problem(messages=({"role": "user", "content": name},), id=name)


def sampled(name: str, outcomes: Iterable[Any]) -> list[Item]:
    return [
        (problem(name), Trace(problem_id=name, index=i, text=f"{name} {i}"), Grade(outcome=outcome))
        for i, outcome in enumerate(outcomes)
    ]


def reasons(filter_: Difficulty, items: list[Item]) -> dict[str, str | None]:
    """Reason by problem; the traces of one problem must all have the same."""
    filter_.prepare(iter(items))
    found: dict[str, set[str | None]] = {}
    for item in items:
        found.setdefault(item[0].id, set()).add(filter_(*item))
    assert all(len(said) == 1 for said in found.values())
    return {name: said.pop() for name, said in found.items()}


ITEMS = [
    *sampled("easy", ["correct"] * 8),
    *sampled("even", ["correct", "wrong", "unparsed", "truncated"] * 2),
    *sampled("hard", ["wrong"] * 7 + ["truncated"]),
    *sampled("few", ["correct"] * 3 + ["error", "ungraded", "error"]),
    *sampled("poem", ["ungraded"] * 8),
]


def test_bounds() -> None:
    filter_ = Difficulty(min=0.1, max=0.9)
    assert reasons(filter_, ITEMS) == {
        "easy": "pass rate 1 (8 of 8 correct), above 0.9",
        "even": None,
        "hard": "pass rate 0 (0 of 8 correct), below 0.1",
        "few": None,
        "poem": None,
    }
    assert filter_.notes == [
        "difficulty: 2 of 5 problems have fewer than 4 graded traces and were kept"
    ]
    assert reasons(Difficulty(max=0.9, least=3), ITEMS)["few"] == (
        "pass rate 1 (3 of 3 correct), above 0.9"
    )
    assert reasons(Difficulty(min=0.25), ITEMS)["even"] is None
    assert reasons(Difficulty(min=0.26), ITEMS)["even"]


def test_prepare_starts_again() -> None:
    filter_ = Difficulty(min=0.1)
    reasons(filter_, sampled("a", ["correct"] * 8))
    assert reasons(filter_, sampled("a", ["wrong"] * 8))["a"] == (
        "pass rate 0 (0 of 8 correct), below 0.1"
    )


def test_wrong_parameters() -> None:
    for wrong in ({}, {"min": 0.9, "max": 0.1}, {"max": 1.1}, {"min": 0.1, "least": 0}):
        with pytest.raises(UsageError, match="filter 'difficulty'"):
            Difficulty(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="want = 1"):
        Difficulty(min=0.1, want=1)
    with pytest.raises(UsageError, match="cannot want 4 of at most 2"):
        Difficulty(min=0.1, want=4, most=2)


def test_adaptive_sampling_is_estimated_without_bias() -> None:
    """Sampled until 2 are correct, k/n of a true rate of 0.3 is far off; the estimate is not."""
    policy, draw = Policy(want=2, most=16), random.Random(0)
    plain, unbiased = [], []
    filter_ = Difficulty(min=0.1, want=2, most=16)
    for _ in range(4000):
        tries, correct = 0, 0
        while policy.stop(tries, correct) is None:
            tries, correct = tries + 1, correct + (draw.random() < 0.3)
        plain.append(correct / tries)
        unbiased.append(filter_.pass_rate(tries, correct))
    assert fmean(plain) > 0.36
    assert fmean(unbiased) == pytest.approx(0.3, abs=0.015)


def test_every_count_has_a_rate() -> None:
    """Filters may object to correct traces, budgets leave problems early, `most` may have grown."""
    filter_ = Difficulty(min=0.1, want=4, most=16)
    for tries in range(1, 25):
        rates = [filter_.pass_rate(tries, correct) for correct in range(tries + 1)]
        assert all(0 <= rate <= 1 for rate in rates)
    assert filter_.pass_rate(9, 4) == 3 / 8
    assert filter_.pass_rate(16, 2) == 2 / 16


def test_the_step_counts_what_earlier_filters_dropped(tmp_path: Path) -> None:
    """Behind `correct` only successes are left; the rate is still that of all traces."""
    names = {"easy": problem("easy"), "even": problem("even"), "hard": problem("hard")}
    items = [item for item in ITEMS if item[0].id in names]
    write_jsonl(tmp_path / "problems.jsonl", names.values())
    write_jsonl(tmp_path / "traces.jsonl", (trace for _, trace, _ in items))
    write_jsonl(
        tmp_path / "grades.jsonl",
        (
            {"problem_id": trace.problem_id, "index": trace.index, "outcome": grade.outcome}
            for _, trace, grade in items
        ),
    )
    filter_traces(
        [PartSpec(name="correct"), PartSpec(name="difficulty", params={"min": 0.1, "max": 0.9})],
        *(tmp_path / f"{name}.jsonl" for name in ("problems", "traces", "grades")),
        [],
        tmp_path,
        folder=tmp_path,
    )
    verdicts = list(read_records(Verdict, tmp_path / "verdicts.jsonl"))
    kept = [(v.problem_id, v.index) for v in verdicts if v.kept]
    assert kept == [("even", 0), ("even", 4)]
    by = {(v.problem_id, v.filter) for v in verdicts if not v.kept}
    assert by == {("even", "correct"), ("hard", "correct"), ("easy", "difficulty")}


def test_a_recipe_tells_it_how_problems_were_sampled(tmp_path: Path) -> None:
    def params(**sampling: int) -> dict[str, object]:
        filters = [{"difficulty": {"min": 0.1}}, "correct"]
        recipe = Recipe.from_dict({"name": "r", "filters": filters, "sampling": sampling})
        return filters_of(recipe, tmp_path)[0].params

    assert params(n=4) == {"min": 0.1}
    assert params(want=3, max=9) == {"min": 0.1, "want": 3, "most": 9}
