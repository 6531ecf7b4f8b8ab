"""When a problem stops, what its pass rate is then, and how a budget is spread."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import beta
from distill.beta import JEFFREYS
from distill.errors import UsageError
from distill.policy import (
    HORIZON,
    Policy,
    State,
    allocate,
    lookahead,
    needed,
    round_size,
)
from distill.schema import Sampling

POLICIES = [
    Policy(most=16),
    Policy(want=1, most=16),
    Policy(want=2, most=5),
    Policy(want=4, most=16),
    Policy(want=4, most=12, give_up=0.3),
    Policy(want=3, most=20, give_up=0.2, prior=(1.0, 1.0)),
]


def ends(policy: Policy) -> dict[tuple[int, int], int]:
    """Every stopping point and the number of ways to it, by walking all of them."""
    found: Counter[tuple[int, int]] = Counter()
    alive = Counter({(0, 0): 1})
    while alive:
        after: Counter[tuple[int, int]] = Counter()
        for (n, k), ways in alive.items():
            for point in ((n + 1, k), (n + 1, k + 1)):
                (found if policy.stop(*point) else after)[point] += ways
        alive = after
    return found


# -- stopping ------------------------------------------------------------------------------------


def test_each_reason_to_stop() -> None:
    policy = Policy(want=2, most=30, give_up=0.2)
    assert policy.stop(0, 0) is None
    assert policy.stop(2, 2) == "enough"
    assert policy.stop(5, 1) is None
    assert policy.stop(30, 1) == "most"
    assert policy.stop(9, 0) == "hopeless"
    assert policy.stop(8, 0) is None
    assert policy.gives_up_after() == 9
    assert policy.gives_up_after(1) == 18
    assert policy.gives_up_after(2) is None


def test_fixed_n_stops_at_n_alone() -> None:
    policy = Policy.from_sampling(Sampling(n=4))
    assert [policy.stop(n, n) for n in range(5)] == [None, None, None, None, "most"]


def test_a_recipe_becomes_a_policy() -> None:
    sampling = Sampling(want=3, max=9, give_up=0.1, floor=0.2)
    assert Policy.from_sampling(sampling) == Policy(3, 9, 0.1, 0.2)


def test_the_default_never_gives_up_within_its_sixteen_samples() -> None:
    policy = Policy.from_sampling(Sampling(want=1))
    assert policy.gives_up_after() is None
    assert Policy(want=1, most=200, give_up=0.02).gives_up_after() == 95


@pytest.mark.parametrize("give_up", [0.01, 0.02, 0.05, 0.1, 0.3, 0.5, 0.9])
def test_giving_up_is_what_the_posterior_says(give_up: float) -> None:
    policy = Policy(want=2, most=1000, give_up=give_up)
    for accepted in (0, 1):
        tries = policy.gives_up_after(accepted)
        assert tries is not None
        assert beta.cdf(give_up, 0.5 + accepted, 0.5 + tries - accepted) >= 0.95
        if tries > max(4, accepted):
            assert beta.cdf(give_up, 0.5 + accepted, tries - 0.5 - accepted) < 0.95


@given(
    st.lists(st.booleans(), max_size=40),
    st.sampled_from(POLICIES),
)
def test_what_comes_after_the_stopping_point_changes_nothing(
    accepted: list[bool], policy: Policy
) -> None:
    stopped = policy.stopped_at(accepted)
    if stopped is None:
        assert policy.stop(len(accepted), sum(accepted)) is None
        return
    count, reason = stopped
    assert policy.stopped_at(accepted[:count]) == stopped
    assert policy.stopped_at([*accepted[:count], True, True]) == stopped
    assert policy.stop(count, sum(accepted[:count])) == reason
    assert policy.stopped_at(accepted[: count - 1]) is None


def test_any_walk_stops_at_most() -> None:
    for policy in POLICIES:
        assert max(n for n, _ in ends(policy)) <= policy.most


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"want": 17}, "want 17 of at most 16"),
        ({"want": 0}, "want 0"),
        ({"most": 0}, "at most 0"),
        ({"give_up": 1.0}, "give_up 1.0"),
        ({"prior": (0.0, 1.0)}, "prior"),
    ],
)
def test_impossible_policies_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Policy(**values)  # type: ignore[arg-type]


# -- pass rates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rate", [0.0, 0.01, 0.2, 0.5, 0.93, 1.0])
def test_the_pass_rate_is_unbiased(policy: Policy, rate: float) -> None:
    chances = {(n, k): w * rate**k * (1 - rate) ** (n - k) for (n, k), w in ends(policy).items()}
    assert sum(chances.values()) == pytest.approx(1, abs=1e-12)
    mean = sum(chance * policy.pass_rate(*at) for at, chance in chances.items())
    assert mean == pytest.approx(rate, abs=1e-12)


def test_the_share_that_was_accepted_is_biased_under_early_stopping() -> None:
    chances = {(n, k): w * 0.3**k * 0.7 ** (n - k) for (n, k), w in ends(POLICIES[1]).items()}
    assert sum(chance * k / n for (n, k), chance in chances.items()) > 0.45


def test_the_known_special_cases() -> None:
    assert [Policy(most=8).pass_rate(8, k) for k in range(9)] == [k / 8 for k in range(9)]
    # Haldane (1945): inverse binomial sampling.
    policy = Policy(want=4, most=1000)
    assert policy.pass_rate(10, 4) == pytest.approx(3 / 9)
    assert Policy(want=1).pass_rate(1, 1) == 1
    assert Policy(want=1).pass_rate(7, 1) == 0
    assert Policy(want=1).pass_rate(16, 0) == 0


def test_a_problem_left_unfinished_is_estimated_as_if_that_were_its_most() -> None:
    policy = Policy(want=4, most=16)
    assert policy.pass_rate(3, 1) == pytest.approx(1 / 3)
    assert policy.pass_rate(6, 2) == pytest.approx(2 / 6)
    gave_up = Policy(want=4, most=40, give_up=0.3)
    assert gave_up.stop(7, 1) is None
    assert gave_up.pass_rate(7, 1) == Policy(want=4, most=7, give_up=0.3).pass_rate(7, 1)


def test_surplus_is_not_part_of_a_pass_rate() -> None:
    with pytest.raises(UsageError, match="never stops at 5 accepted of 6"):
        Policy(want=4, most=16).pass_rate(6, 5)
    with pytest.raises(UsageError, match="no sample"):
        Policy(want=4, most=16).pass_rate(0, 0)


def test_the_interval_covers() -> None:
    policy, rng = Policy(want=4, most=16), random.Random(0)
    covered = 0
    for _ in range(250):
        rate = rng.betavariate(*JEFFREYS)
        draws = [rng.random() < rate for _ in range(16)]
        count, _ = policy.stopped_at(draws) or (16, "most")
        low, high = policy.interval(count, sum(draws[:count]))
        covered += low <= rate <= high
    assert 0.92 < covered / 250 < 0.99
    assert policy.interval(16, 0)[0] == 0
    assert policy.interval(4, 4)[1] == 1


# -- the Beta distribution -----------------------------------------------------------------------


@pytest.mark.parametrize("x", [0.001, 0.02, 0.3, 0.7, 0.999])
@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (0.5, 96.5), (3.5, 10.5), (20, 1.5), (1, 1)])
def test_the_distribution_function_agrees_with_scipy(a: float, b: float, x: float) -> None:
    special = pytest.importorskip("scipy.special")
    assert beta.cdf(x, a, b) == pytest.approx(special.betainc(a, b, x), abs=1e-10)
    level = beta.cdf(x, a, b)
    if 1e-6 < level < 1 - 1e-6:
        assert beta.quantile(level, a, b) == pytest.approx(x, rel=1e-6)


def test_the_mix_is_found_again_from_problems_that_stopped_early() -> None:
    rng, policy = random.Random(1), Policy(want=1, most=16)
    counts: Counter[tuple[int, int]] = Counter()
    for _ in range(20_000):
        rate, draws = rng.betavariate(0.43, 0.57), []
        while policy.stopped_at(draws) is None:
            draws.append(rng.random() < rate)
        counts[len(draws), sum(draws)] += 1
    a, b = beta.fit(counts, JEFFREYS)
    assert a / (a + b) == pytest.approx(0.43, abs=0.02)
    assert a + b == pytest.approx(1, abs=0.1)


def test_with_nothing_seen_the_prior_stays() -> None:
    assert beta.fit({}, (0.3, 0.7)) == (0.3, 0.7)
    assert beta.fit({(0, 0): 1000}, (0.3, 0.7)) == (0.3, 0.7)
    a, b = beta.fit({(1, 0): 1}, JEFFREYS)
    assert 0.05 < a / (a + b) < 0.5


# -- asking ahead --------------------------------------------------------------------------------


def test_how_likely_further_samples_are_needed() -> None:
    assert needed(Policy(want=1, most=3), State(), prior=(1, 1)) == pytest.approx((1, 1 / 2, 1 / 3))
    assert needed(Policy(want=4, most=6), State())[:4] == (1, 1, 1, 1)
    assert needed(Policy(want=4, most=6), State(5, 2)) == (1,)
    assert needed(Policy(want=1, most=3), State(1, 1)) == ()
    assert needed(Policy(most=40), State()) == (1,) * HORIZON


def test_lookahead_asks_for_what_is_likely_to_be_needed() -> None:
    policy = Policy(want=4, most=16)
    assert lookahead(policy, State(), likely=1) == 4
    assert lookahead(policy, State(3, 3), likely=1) == 1
    assert lookahead(policy, State(8, 0)) == 8
    assert lookahead(policy, State(4, 4)) == 0
    eager, careful = (lookahead(policy, State(4, 3), likely=p) for p in (0.1, 0.9))
    assert eager > careful == 1


# -- a shared budget -----------------------------------------------------------------------------

WANT_ONE = Policy(want=1, most=16, floor=0.0)


def test_a_round_is_a_share_of_what_is_left_or_the_whole_rest() -> None:
    assert round_size(1000, 0, 1) == 250
    assert round_size(1000, 0, 400) == 400
    assert round_size(1000, 0, 700) == 1000
    assert round_size(100, 9900, 1) == 100
    left, rounds = 1e9, 0
    while left > 0:
        left -= round_size(left, 1e9 - left, 1)
        rounds += 1
    assert rounds < 15


def test_without_a_budget_everything_that_may_be_asked_for_is() -> None:
    states = [State(), State(3, 0, 30), State(1, 1, 10), State(16, 0, 160)]
    assert allocate(WANT_ONE, states, None) == [16, 13, 0, 0]


def test_an_ample_budget_is_the_same_up_to_the_horizon() -> None:
    states = [State(), State(3, 0, 30), State(1, 1, 10)]
    assert allocate(WANT_ONE, states, 1e9) == [16, 13, 0]
    assert allocate(Policy(most=40), [State()], 1e9) == [HORIZON]


def test_the_first_round_gives_everyone_one_sample_before_anyone_two() -> None:
    given = allocate(WANT_ONE, [State()] * 100, 100_000, sample_tokens=100)
    assert set(given) == {2, 3}
    few = allocate(WANT_ONE, [State()] * 1000, 200_000, sample_tokens=100, least=1)
    assert set(few) == {0, 1}
    # Evenly spaced ones: a file that is sorted by difficulty is not read from its top alone.
    assert abs(sum(few[:500]) - sum(few[500:])) <= 1


def test_a_budget_goes_where_a_token_brings_most() -> None:
    policy = Policy(want=4, most=16, floor=0.0)
    promising, doubtful, hopeless, long = (
        State(4, 3, 400),
        State(4, 1, 400),
        State(8, 0, 800),
        State(4, 3, 4000),
    )
    states = [promising, doubtful, hopeless, long] * 50
    given = allocate(policy, states, 40_000, least=1)
    total = [sum(given[kind::4]) for kind in range(4)]
    assert total[0] > total[1] >= total[2]
    assert total[0] > total[3]


def test_the_floor_reaches_problems_that_are_not_worth_it() -> None:
    states = [State(2, 1, 200)] * 500 + [State(2, 0, 2000)] * 50
    with_floor, without = (
        allocate(Policy(want=2, most=16, floor=floor), states, 200_000, least=1)
        for floor in (0.5, 0.0)
    )
    assert sum(without[500:]) == 0
    assert sum(with_floor[500:]) > 10
    assert sum(with_floor[:500]) > sum(without[:500]) / 2


def test_the_fewest_tries_are_raised_first() -> None:
    states = [State(3, 0, 300), State(1, 0, 100), State(2, 0, 200)] * 10
    given = allocate(Policy(want=1, most=16, floor=1.0), states, 4000, least=1)
    assert sum(given[1::3]) >= sum(given[2::3]) >= sum(given[0::3])
    assert sum(given[1::3]) == 10


def test_done_problems_get_nothing() -> None:
    states = [State(1, 1, 10), State(16, 0, 10), State(2, 0, 10, over=True), State(2, 0, 20)]
    assert allocate(WANT_ONE, states, None)[:3] == [0, 0, 0]
    given = allocate(WANT_ONE, states, 100, least=1)
    assert given[:3] == [0, 0, 0]
    assert given[3] > 0


states_of = st.lists(
    st.builds(
        lambda n, k, t: State(n, min(n, k), n * t),
        st.integers(0, 16),
        st.integers(0, 4),
        st.integers(1, 30_000),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(states_of, st.floats(0, 1e7), st.sampled_from([0.0, 0.1, 1.0]), st.integers(1, 100))
def test_what_holds_for_every_round(
    states: list[State], budget: float, floor: float, least: int
) -> None:
    policy = Policy(want=4, most=16, give_up=0.2, floor=floor)
    given = allocate(policy, states, budget, least=least)
    assert given == allocate(policy, states, budget, least=least)
    assert len(given) == len(states)
    for count, state in zip(given, states, strict=True):
        done = policy.stop(state.tries, state.accepted) is not None
        assert 0 <= count <= (0 if done else policy.most - state.tries)
    assert expected_tokens(states, given) <= budget * 1.06 + 1e-6


def expected_tokens(states: Sequence[State], given: Sequence[int]) -> float:
    """As docs/adaptive.md has it: the own mean, with the pooled one as two samples more."""
    tries = sum(s.tries for s in states)
    mean = max(1.0, sum(s.tokens for s in states) / tries if tries else 5355)
    own = [(s.tokens + 2 * mean) / (s.tries + 2) for s in states]
    return sum(count * length for count, length in zip(given, own, strict=True))


def test_rounds_until_the_budget_is_spent() -> None:
    rng = random.Random(0)
    policy = Policy(want=1, most=16)
    rates = [rng.betavariate(0.43, 0.57) for _ in range(300)]
    draws = [[rng.random() < p for _ in range(16)] for p in rates]
    lengths = [[int(100 * rng.lognormvariate(0, 0.5)) for _ in range(16)] for _ in rates]
    counts, budget = [0] * 300, 100_000
    for _ in range(25):
        states = [
            State(n, sum(d[:n]), sum(t[:n])) for n, d, t in zip(counts, draws, lengths, strict=True)
        ]
        left = budget - sum(s.tokens for s in states)
        given = allocate(policy, states, left, sample_tokens=100, least=8)
        if not any(given):
            break
        for i, more in enumerate(given):
            stopped = policy.stopped_at(draws[i][: counts[i] + more])
            counts[i] = stopped[0] if stopped else counts[i] + more
    assert not any(given), "not spent in 25 rounds"
    assert abs(left) < 0.05 * budget
    solved = statistics.mean(any(d[:n]) for d, n in zip(draws, counts, strict=True))
    # As much evenly: the same budget buys each problem three samples.
    assert solved > statistics.mean(any(d[:3]) for d in draws) + 0.03
