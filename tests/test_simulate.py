"""The policy on outcomes that are known beforehand, against walking through them one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distill.errors import DataError
from distill.policy import Policy
from distill.records import write_jsonl
from distill.simulate import LABELS, Outcomes, draw, fitted, simulate, stops

FIXED = Policy(most=16)


@pytest.mark.parametrize(
    "policy",
    [FIXED, Policy(want=1), Policy(want=4), Policy(want=4, give_up=0.3), Policy(want=2, most=7)],
)
def test_stops_are_those_of_the_policy(policy: Policy) -> None:
    outcomes = draw(200, 16)
    for accepted, count in zip(outcomes.accepted.tolist(), stops(policy, outcomes), strict=True):
        stopped = policy.stopped_at(accepted)
        assert stopped is not None
        assert stopped[0] == count


def test_fixed_n_takes_everything() -> None:
    outcomes = draw(100, 16)
    found = simulate(FIXED, outcomes, want=4)
    assert found.whole.samples == 1600
    assert found.whole.tokens == outcomes.tokens.sum()
    assert found.whole.covered == outcomes.accepted.any(axis=1).sum()
    assert found.whole.accepted == np.minimum(outcomes.accepted.sum(axis=1), 4).sum()
    assert found.rounds == 16


@pytest.mark.parametrize("want", [1, 4])
def test_adaptive_ends_with_the_same_for_fewer_tokens(want: int) -> None:
    outcomes = draw(2000, 16, kept=2)
    fixed = simulate(FIXED, outcomes, want=want)
    adaptive = simulate(Policy(want=want), outcomes)
    for label in LABELS:
        a, b = fixed.buckets[label], adaptive.buckets[label]
        assert (a.accepted, a.covered, a.complete) == (b.accepted, b.covered, b.complete)
    assert adaptive.whole.tokens < 0.6 * fixed.whole.tokens
    assert adaptive.whole.surplus == 0


def test_buckets_add_up() -> None:
    found = simulate(Policy(want=2), draw(500, 16))
    for name in ("problems", "samples", "tokens", "accepted", "covered", "complete"):
        total = sum(getattr(bucket, name) for bucket in found.buckets.values())
        assert total == getattr(found.whole, name)


def test_asking_ahead_trades_surplus_for_waiting() -> None:
    outcomes = draw(500, 16)
    careful, eager = (simulate(Policy(want=1), outcomes, likely=p) for p in (1.0, 0.5))
    assert careful.whole.surplus == 0
    assert eager.whole.surplus > 0
    assert eager.whole.samples == careful.whole.samples + eager.whole.surplus
    assert eager.whole.accepted == careful.whole.accepted
    assert eager.rounds < careful.rounds


@pytest.mark.parametrize("want", [1, 4])
def test_a_budget_beats_fixed_n_of_the_same_tokens(want: int) -> None:
    outcomes = draw(3000, 16)
    fixed = simulate(Policy(most=4), outcomes, want=want)
    found = simulate(Policy(want=want), outcomes, budget=fixed.whole.tokens, least=8)
    assert found.whole.tokens == pytest.approx(fixed.whole.tokens, rel=0.02)
    assert found.whole.accepted > 1.05 * fixed.whole.accepted
    # A problem's k-th trace counts 1/k: without that, want = 4 solved a sixth fewer problems.
    assert found.whole.covered > 0.9 * fixed.whole.covered
    hard, before = (one.buckets["p < 0.1"].covered for one in (found, fixed))
    assert hard > 0.5 * before


def test_an_ample_budget_ends_like_none() -> None:
    outcomes = draw(300, 16)
    free = simulate(Policy(want=2), outcomes)
    found = simulate(Policy(want=2), outcomes, budget=1e12)
    assert found.whole == free.whole


def test_a_spent_budget_buys_nothing() -> None:
    found = simulate(Policy(want=2), draw(50, 16), budget=0)
    assert found.whole.samples == 0
    assert found.rounds == 0


def test_drawn_outcomes_are_what_was_asked_for() -> None:
    outcomes = draw(20_000, 4, mix=(0.43, 0.57), sample_tokens=1000, max_tokens=4000)
    assert outcomes.accepted.mean() == pytest.approx(0.43, abs=0.01)
    assert outcomes.tokens.mean() == pytest.approx(1000, rel=0.03)
    assert outcomes.tokens.max() == 4000
    assert not outcomes.accepted[outcomes.tokens == 4000].any()
    solved_in_two = 1 - (~outcomes.accepted[:, :2]).all(axis=1).mean()
    assert solved_in_two == pytest.approx(0.55, abs=0.01), "the figure that the mix is fitted to"
    kept = draw(20_000, 4, kept=2)
    assert kept.accepted.mean() > 0.6
    again = draw(20_000, 4, kept=2)
    assert (kept.tokens == again.tokens).all()


def test_the_mix_is_fitted_from_any_policys_samples() -> None:
    outcomes = draw(5000, 16, mix=(2.0, 1.0))
    counts = stops(Policy(want=2), outcomes)
    points = [
        (int(n), int(row[:n].sum())) for n, row in zip(counts, outcomes.accepted, strict=True)
    ]
    a, b = fitted(points)
    assert a / (a + b) == pytest.approx(2 / 3, abs=0.02)


def test_recorded_outcomes_are_read(tmp_path: Path) -> None:
    rows = [
        {"bucket": "sums hard", "accepted": "0100", "tokens": [9, 5, 7, 7]},
        {"bucket": "sums easy", "accepted": "1111", "tokens": [3, 3, 3, 3]},
    ]
    write_jsonl(tmp_path / "outcomes.jsonl", rows)
    outcomes = Outcomes.read(tmp_path / "outcomes.jsonl")
    found = simulate(Policy(want=1, most=4), outcomes)
    assert found.whole.tokens == 9 + 5 + 3
    assert found.buckets["sums hard"].samples == 2
    assert outcomes.by_pass_rate().bucket.tolist() == [1, 3]
    with pytest.raises(DataError, match="4 samples per problem are recorded"):
        simulate(FIXED, outcomes)
    for torn in ([], [{**rows[0], "accepted": "01"}, rows[1]], [{**rows[0], "tokens": [9]}]):
        write_jsonl(tmp_path / "torn.jsonl", torn)
        with pytest.raises(DataError, match=r"torn\.jsonl"):
            Outcomes.read(tmp_path / "torn.jsonl")


def test_the_pocket_teachers_recorded_samples() -> None:
    from benchmarks.adaptive_sampling import POCKET, ratio

    recorded = Outcomes.read(POCKET)
    assert recorded.accepted.shape[1] == 16
    assert ratio(recorded, 1, 16) < 0.3
    assert ratio(recorded, 4, 16) < 0.5
