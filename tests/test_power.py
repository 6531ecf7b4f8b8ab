"""What an evaluation can see, against closed forms and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.power import across_seeds, detectable, detectable_before, holm
from distill.statistics import clt


def test_holm_as_in_the_textbook() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7]) == [0.7]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p: list[float]) -> None:
    found = holm(p)
    assert all(0 <= a <= b <= 1 for a, b in zip(p, found, strict=True))
    ranked = [found[i] for i in sorted(range(len(p)), key=p.__getitem__)]
    assert ranked == sorted(ranked)


def test_a_difference_of_the_detectable_size_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    problems, spread = 60, 0.3
    size = detectable(rng.normal(0, spread, 4000)) * np.sqrt(4000 / problems)
    found = [0 not in clt(rng.normal(size, spread, problems), -9, 9) for _ in range(1500)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)


def test_before_sampling_it_says_what_the_samples_would() -> None:
    rng = np.random.default_rng(1)
    problems, k, rate, spread, shift = 4000, 4, 0.5, 0.3, 0.1
    scale = rate * (1 - rate) / spread**2 - 1
    base = rng.beta(rate * scale, rate * scale, problems)
    student = np.clip(base + rng.normal(0, shift, problems), 0, 1)
    drawn = (rng.binomial(k, student) - rng.binomial(k, base)) / k
    expected = detectable_before(problems, k, rate=rate, spread=spread, shift=shift)
    assert detectable(drawn) == pytest.approx(expected, rel=0.08)


def test_more_samples_help_less_and_less_and_more_problems_always() -> None:
    by_samples = [detectable_before(30, k) for k in (1, 4, 16, 64)]
    assert by_samples == sorted(by_samples, reverse=True)
    assert by_samples[2] / by_samples[3] < 1.15 < by_samples[0] / by_samples[1]
    assert detectable_before(120, 4) < detectable_before(30, 4) / 1.9


def test_where_nothing_varies_nothing_is_claimed() -> None:
    assert detectable(np.zeros(30)) is None
    assert detectable(np.array([0.5])) is None
    with pytest.raises(ValueError, match="1 problems"):
        detectable_before(1, 4)


@pytest.mark.parametrize(("seed_sd", "problem_sd"), [(0.05, 0.3), (0.0, 0.3), (0.2, 0.1)])
def test_intervals_over_seeds_and_problems_cover(seed_sd: float, problem_sd: float) -> None:
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(1500):
        seeds = rng.normal(0, seed_sd, (3, 1))
        problems = rng.normal(0, problem_sd, (1, 40))
        values = 0.1 + seeds + problems + rng.normal(0, 0.3, (3, 40))
        covered.append(0.1 in across_seeds(values, -9, 9).interval)
    # Three seeds are few: wider than needed where they matter little is the safe side.
    assert 0.93 <= np.mean(covered) <= 0.99


def test_one_seed_cannot_say_how_much_seeds_matter() -> None:
    with pytest.raises(ValueError, match="1 seeds"):
        across_seeds(np.zeros((1, 40)), -1, 1)
    same = across_seeds(np.full((3, 40), 0.25), -1, 1)
    assert (same.value, same.seed_deviation) == (0.25, 0.0)
    assert same.interval == clt(np.full(40, 0.25), -1, 1)
