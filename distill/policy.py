"""How many samples a problem gets: when to stop, and how a budget is spread. Pure, no model.

`docs/adaptive.md` says what is promised. Three rules, none with memory of its own:

- `Policy.stop` is a fixed function of a problem's (tries, accepted), read in index order;
- `allocate` spreads a budget over problems at a round's barrier;
- `needed` says how likely a further sample of a problem is of use, for whoever asks ahead.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from distill import beta
from distill.beta import JEFFREYS, Prior
from distill.errors import UsageError

if TYPE_CHECKING:
    from distill.schema import Sampling

Reason = Literal["enough", "most", "hopeless"]

CERTAIN = 0.95
"""A problem is given up when P(pass rate < give_up) is at least this."""
LEAST = 4
"""No problem is given up on fewer samples, whatever `give_up` is."""
ROUND_SHARE = 0.25
"""Of what is left of a budget, one round gets so much: grades change where the rest goes."""
ROUND_LEAST = 0.02
"""And at least so much of the whole budget: waiting for a round's last sample costs time."""
LENGTH_WEIGHT = 2.0
"""The pooled mean length counts like so many samples of a problem's own."""
LENGTH_STEP = 0.1
"""Expected lengths are compared on a logarithmic grid of this width."""
HORIZON = 16
"""At most so many samples of one problem in one round of a budget."""


@dataclass(frozen=True)
class Policy:
    """When a problem has had enough.

    `want` accepted traces, or `most` samples, or a pass rate that is very likely below `give_up`
    under the Beta `prior`. `want=None` is sampling with fixed n: `most` samples, whatever they
    bring. `floor` is the share of a budget's round that is spread evenly.
    """

    want: int | None = None
    most: int = 16
    give_up: float = 0.0
    floor: float = 0.1
    prior: Prior = JEFFREYS

    def __post_init__(self) -> None:
        if self.most < 1 or (self.want is not None and not 1 <= self.want <= self.most):
            raise UsageError(
                f"a policy cannot want {self.want} of at most {self.most} samples",
                "want is at least 1, most at least want",
            )
        if not (0 <= self.give_up < 1 and 0 <= self.floor <= 1 and min(self.prior) > 0):
            raise UsageError(
                f"give_up {self.give_up}, floor {self.floor} or prior {self.prior} is out of range",
                "give_up lies in [0, 1), floor in [0, 1], both numbers of the prior above 0",
            )

    @classmethod
    def from_sampling(cls, sampling: Sampling) -> Policy:
        """The policy of a recipe's `sampling`; without `want` fixed n."""
        if sampling.want is None:
            return cls(most=sampling.n)
        return cls(sampling.want, sampling.max, sampling.give_up, sampling.floor)

    def stop(self, tries: int, accepted: int) -> Reason | None:
        """Why a problem is done after `tries` samples with `accepted` accepted; None: go on."""
        if self.want is not None and accepted >= self.want:
            return "enough"
        if tries >= self.most:
            return "most"
        if self.give_up and tries >= _hopeless_from(self)[accepted]:
            return "hopeless"
        return None

    def stopped_at(self, accepted: Iterable[bool]) -> tuple[int, Reason] | None:
        """Where reading the samples in index order stops: how many count, and why.

        None while the samples so far are not enough to stop. A sample that failed for good is
        left out of `accepted`.
        """
        successes = 0
        for tries, success in enumerate(accepted, 1):
            successes += success
            reason = self.stop(tries, successes)
            if reason is not None:
                return tries, reason
        return None

    def gives_up_after(self, accepted: int = 0) -> int | None:
        """The number of samples at which a problem with `accepted` is given up; None: never."""
        if not self.give_up or (self.want is not None and accepted >= self.want):
            return None
        tries = _hopeless_from(self)[accepted]
        return tries if tries < self.most else None

    def pass_rate(self, tries: int, accepted: int) -> float:
        """The unbiased estimate of a pass rate under this stopping rule.

        Of all ways to this point the share that began with a success (Girshick, Mosteller and
        Savage 1946, Annals of Mathematical Statistics 17:13-23): what the first sample is
        expected to have been, given where sampling stopped. With fixed n that is k/n; with
        `want` alone (want-1)/(n-1); with `want` of 1 it is the first sample itself, right on the
        mean over problems and coarse for a single one. A problem that a budget left unfinished
        is estimated as if `tries` had been its `most`.

        Raises UsageError for a point that the rule never reaches, such as one with surplus.
        """
        return _pass_rate(self, tries, accepted)

    def interval(self, tries: int, accepted: int, level: float = 0.95) -> tuple[float, float]:
        """Equal-tailed credible interval of a pass rate; a stopping rule does not change it."""
        a, b = self.prior[0] + accepted, self.prior[1] + tries - accepted
        low = beta.quantile((1 - level) / 2, a, b) if accepted else 0.0
        high = beta.quantile((1 + level) / 2, a, b) if accepted < tries else 1.0
        return low, high


@dataclass(frozen=True, slots=True)
class State:
    """One problem at a round's barrier: decided samples, accepted ones, tokens of the decided.

    A sample that was cut off and waits to be continued is not decided: it is neither a try nor
    among `tokens`, and a round's samples of its problem begin with it. `over` says that a problem
    gets no more for a reason the policy does not know; one that the policy stopped needs no mark.
    """

    tries: int = 0
    accepted: int = 0
    tokens: int = 0
    over: bool = False


def needed(policy: Policy, state: State, prior: Prior | None = None) -> tuple[float, ...]:
    """For the 1st, 2nd, ... further sample of a problem: the probability that it is needed.

    It is needed if the ones before it do not end the problem. Whoever asks ahead should ask in
    the order of these numbers over all problems; 1 minus the number is the expected surplus.
    Empty for a problem that is done; at most HORIZON numbers, never more than `most` allows.
    """
    return _outlook(policy, state.tries, state.accepted, prior or policy.prior)[0]


def lookahead(policy: Policy, state: State, prior: Prior | None = None, likely: float = 0.5) -> int:
    """How many undecided samples of a problem to have under way at once.

    As many as are needed with probability `likely` or more; at least one while it is not done.
    """
    return sum(p >= likely for p in needed(policy, state, prior)[1:]) + (
        policy.stop(state.tries, state.accepted) is None
    )


def round_size(budget_left: float, spent: float, least: float) -> float:
    """Tokens of the next round: a share of what is left, or all where little would remain.

    `spent` tokens went to earlier rounds; `least` is the smallest round that is worth a barrier.
    """
    small = max(least, ROUND_LEAST * (budget_left + spent))
    tokens = max(ROUND_SHARE * budget_left, small)
    return budget_left if budget_left - tokens < small else tokens


def allocate(
    policy: Policy,
    states: Sequence[State],
    budget_left: float | None,
    *,
    sample_tokens: float = 5355,
    least: int = 64,
) -> list[int]:
    """Samples for each problem in the next round of a budget of tokens; all 0: it is spent.

    A problem's next sample is worth the accepted traces it is expected to bring per token: the
    posterior mean of its pass rate, given that it still goes on, over its expected length. Its
    k-th accepted trace counts 1/k, or a budget would finish the easy problems and never reach
    the others. The prior is fitted to all problems (`beta.fit`), the expected length is the
    problem's own mean drawn towards that of all. `floor` of the round goes to whoever has the
    fewest tries, the rest to what is worth most. Every sample is counted in full, though many
    will not be needed, so that a round asks for no more than what is left.

    `sample_tokens` is the length to expect before anything was sampled (R1's mean by default),
    `least` the smallest round in samples. Without a budget every problem gets all it may have.
    The same arguments give the same answer; about a second for 800,000 problems.
    """
    counts = Counter((s.tries, s.accepted) for s in states)
    room = {at: policy.most - at[0] for at in counts if policy.stop(*at) is None}
    caps = [0 if s.over else room.get((s.tries, s.accepted), 0) for s in states]
    if budget_left is None:
        return caps
    tries = sum(n * many for (n, _), many in counts.items())
    spent = sum(s.tokens for s in states)
    mean = max(1.0, spent / tries if tries else sample_tokens)
    left = round_size(budget_left, spent, least * mean)
    lengths = [
        _on_grid((s.tokens + LENGTH_WEIGHT * mean) / (s.tries + LENGTH_WEIGHT)) for s in states
    ]
    caps = [min(cap, HORIZON) for cap in caps]
    if sum(map(operator.mul, caps, lengths)) <= left:
        return caps
    given = [0] * len(states)
    left -= _level(states, lengths, caps, policy.floor * left, given)
    _greedy(policy, states, lengths, caps, left, given, beta.fit(counts, policy.prior))
    return given


def _on_grid(length: float) -> float:
    return math.exp(round(math.log(max(length, 1.0)) / LENGTH_STEP) * LENGTH_STEP)


def _level(
    states: Sequence[State],
    lengths: Sequence[float],
    caps: Sequence[int],
    tokens: float,
    given: list[int],
) -> float:
    """Raise the fewest tries by one, again and again, for `tokens`. Returns what was spent."""
    levels: dict[int, list[int]] = {}
    for i, s in enumerate(states):
        if caps[i]:
            levels.setdefault(s.tries, []).append(i)
    spent = 0.0
    while levels and spent < tokens:
        level = min(levels)
        members = levels.pop(level)
        share = min(1.0, (tokens - spent) / sum(lengths[i] for i in members))
        due = 0.0
        for i in members:
            due += share
            # Where not all can be raised, evenly spaced ones are: files are sorted by difficulty.
            if due < 1 - 1e-9 or spent + lengths[i] > tokens:
                continue
            due -= 1
            given[i] += 1
            spent += lengths[i]
            if given[i] < caps[i]:
                levels.setdefault(level + 1, []).append(i)
        if share < 1:
            break
    return spent


def _greedy(
    policy: Policy,
    states: Sequence[State],
    lengths: Sequence[float],
    caps: Sequence[int],
    tokens: float,
    given: list[int],
    prior: Prior,
) -> None:
    """Add samples in the order of their worth per token until `tokens` are spent.

    Problems that look alike are one group, so that the work is in groups and not in problems.
    """
    groups: dict[tuple[int, int, float, int], list[int]] = {}
    for i, s in enumerate(states):
        if caps[i]:
            groups.setdefault((s.tries, s.accepted, lengths[i], given[i]), []).append(i)
    offers = []
    for key in groups:
        tries, accepted, length, begun = key
        worth = _outlook(policy, tries, accepted, prior)[1]
        offers += [(-value / length, j, key) for j, value in enumerate(worth) if j >= begun]
    for _, _, key in sorted(offers):
        members, length = groups[key], key[2]
        fits = min(len(members), int(tokens // length))
        for j in range(fits):
            given[members[j * len(members) // fits]] += 1
        tokens -= fits * length
        if fits < len(members):
            return


@lru_cache(maxsize=256)
def _hopeless_from(policy: Policy) -> tuple[int, ...]:
    """For 0, 1, ... accepted: the fewest samples at which a problem is given up."""
    a, b = policy.prior
    found: list[int] = []
    tries = LEAST
    for accepted in range(policy.most if policy.want is None else policy.want):
        tries = max(tries, accepted)
        while (
            tries < policy.most
            and beta.cdf(policy.give_up, a + accepted, b + tries - accepted) < CERTAIN
        ):
            tries += 1
        found.append(tries)
    return tuple(found)


@lru_cache(maxsize=65536)
def _pass_rate(policy: Policy, tries: int, accepted: int) -> float:
    if tries == 0:
        raise UsageError("no sample, no pass rate", "leave out problems that were not tried")
    if policy.stop(tries, accepted) is None:
        want = policy.want if policy.want and policy.want <= tries else None
        return _pass_rate(replace(policy, want=want, most=tries), tries, accepted)
    every = _paths(policy, 0, 0).get((tries, accepted), 0)
    if not every:
        raise UsageError(
            f"sampling never stops at {accepted} accepted of {tries}",
            "count up to the stopping point alone: Policy.stopped_at",
        )
    return _paths(policy, 1, 1).get((tries, accepted), 0) / every


@lru_cache(maxsize=256)
def _paths(policy: Policy, tries: int, accepted: int) -> dict[tuple[int, int], int]:
    """The number of ways from a point to every stopping point, as exact integers."""
    ends: Counter[tuple[int, int]] = Counter()
    alive = {accepted: 1}
    while alive:
        after: Counter[int] = Counter()
        for k, ways in alive.items():
            if tries and policy.stop(tries, k) is not None:
                ends[tries, k] += ways
            else:
                after[k] += ways
                after[k + 1] += ways
        alive, tries = dict(after), tries + 1
    return dict(ends)


@lru_cache(maxsize=65536)
def _outlook(
    policy: Policy, tries: int, accepted: int, prior: Prior
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """For each further sample: the probability that it is needed, and what it then is worth.

    The k-th accepted trace of a problem is worth 1/k. Worth is made non-increasing, so that a
    problem's samples are taken in their order.
    """
    chance: list[float] = []
    values: list[float] = []
    alive = {accepted: 1.0} if policy.stop(tries, accepted) is None else {}
    while alive and len(chance) < HORIZON:
        reached = round(sum(alive.values()), 12)  # 1 is exactly 1: needed in any case
        after: dict[int, float] = {}
        worth = 0.0
        for k, p in alive.items():
            success = p * (prior[0] + k) / (prior[0] + prior[1] + tries)
            worth += success / (k + 1)
            for to, mass in ((k + 1, success), (k, p - success)):
                if policy.stop(tries + 1, to) is None:
                    after[to] = after.get(to, 0.0) + mass
        chance.append(reached)
        values.append(min(worth / reached, values[-1]) if values else worth / reached)
        alive, tries = after, tries + 1
    return tuple(chance), tuple(values)
