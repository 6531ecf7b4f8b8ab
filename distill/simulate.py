"""Runs a sampling policy on outcomes that are known beforehand: no model, no requests.

The outcomes are recorded ones or drawn from a mix of pass rates. The policy is the real one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill import beta
from distill.beta import Prior
from distill.errors import DataError
from distill.policy import Policy, State, allocate, lookahead
from distill.records import read_jsonl

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

OPEN_R1_MIX: Prior = (0.43, 0.57)
"""Pass rates of R1 on NuminaMath 1.5: open-r1 sampled 400k problems twice and kept 220k with a
correct trace (huggingface.co/blog/open-r1/update-2). Of all Beta(a, 1 - a) this one has 55% of
its problems solved by one of two samples; that a + b = 1 is an assumption."""
WRONG_LENGTH = 1.5
"""How much longer a wrong trace is than a right one of the same problem. Correct ones of R1-like
models are the shorter (Zeng et al. 2025, arXiv 2502.12215); the size is an assumption."""
HARD_LENGTH = 2.0
"""How much longer the traces of a problem with pass rate 0 are than those at 1: an assumption."""
SIGMA = 0.6
"""Standard deviation of the logarithm of a trace's length within its problem: an assumption."""
BUCKETS = (0.1, 0.5, 0.9)
"""Pass rates between which drawn problems are counted apart."""
LABELS = ("p < 0.1", "0.1 - 0.5", "0.5 - 0.9", "p > 0.9")


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What every sample of every problem would be, were it asked for.

    `accepted` and `tokens` have the shape (problems, samples), samples in index order;
    `bucket` is one number per problem, an index of `labels`.
    """

    accepted: Bools
    tokens: Ints
    bucket: Ints
    labels: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Outcomes:
        """From JSONL rows `{bucket, accepted: "0110...", tokens: [...]}`, one per problem."""
        rows = list(read_jsonl(path))
        if len({len(row[name]) for row in rows for name in ("accepted", "tokens")}) != 1:
            raise DataError(f"{path} holds no outcomes of equally many samples per problem")
        labels = tuple(sorted({row["bucket"] for row in rows}))
        return cls(
            np.array([[mark == "1" for mark in row["accepted"]] for row in rows]),
            np.array([row["tokens"] for row in rows], dtype=np.int64),
            np.array([labels.index(row["bucket"]) for row in rows]),
            labels,
        )

    def by_pass_rate(self) -> Outcomes:
        """The same with the share of its accepted samples as a problem's bucket."""
        bucket = np.digitize(self.accepted.mean(axis=1), BUCKETS)
        return Outcomes(self.accepted, self.tokens, bucket, LABELS)


def draw(
    problems: int,
    samples: int,
    *,
    mix: Prior = OPEN_R1_MIX,
    kept: int = 0,
    sample_tokens: float = 5355,
    max_tokens: int = 32768,
    hard_length: float = HARD_LENGTH,
    wrong_length: float = WRONG_LENGTH,
    seed: int = 0,
) -> Outcomes:
    """Outcomes of problems whose pass rates are a Beta's; buckets by the true pass rate.

    With `kept` only problems that were solved at least once in so many earlier samples: published
    sets were filtered like that (OpenR1-Math-220k: 2).

    Lengths are lognormal, longer where problems are hard and traces wrong (the constants above; 1
    makes lengths independent of both), scaled to a mean of `sample_tokens` over all samples and
    cut at `max_tokens`. A trace that is cut is not accepted.
    """
    rng = np.random.default_rng(seed)
    rates = _rates(rng, problems, mix, kept)[:, None]
    accepted = rng.random((problems, samples)) < rates
    lengths = rng.lognormal(0.0, SIGMA, (problems, samples)) * hard_length ** (1 - rates)
    lengths *= np.where(accepted, 1.0, wrong_length)
    lengths *= sample_tokens / lengths.mean()
    tokens = np.clip(lengths, 1, max_tokens).astype(np.int64)
    bucket = np.digitize(rates[:, 0], BUCKETS)
    return Outcomes(accepted & (lengths < max_tokens), tokens, bucket, LABELS)


def _rates(rng: np.random.Generator, problems: int, mix: Prior, kept: int) -> Floats:
    rates: list[Floats] = []
    while sum(map(len, rates)) < problems:
        some = rng.beta(*mix, size=problems)
        # Of a problem with pass rate p all of `kept` samples were wrong with (1 - p) ** kept.
        rates.append(some[rng.random(problems) >= (1 - some) ** kept] if kept else some)
    return np.concatenate(rates)[:problems]


@dataclass(slots=True)
class Tally:
    """What was spent on some problems, and what it brought.

    `accepted` counts traces up to the number wanted of each problem, `covered` problems with at
    least one, `complete` those with all that is wanted. `samples` and `tokens` include surplus.
    """

    problems: int = 0
    samples: int = 0
    tokens: int = 0
    accepted: int = 0
    covered: int = 0
    complete: int = 0
    surplus: int = 0
    surplus_tokens: int = 0


@dataclass(slots=True)
class Simulated:
    """What the whole job took and brought, the same by bucket, and in how many rounds."""

    whole: Tally
    buckets: dict[str, Tally]
    rounds: int


def simulate(
    policy: Policy,
    outcomes: Outcomes,
    *,
    want: int | None = None,
    budget: float | None = None,
    likely: float | None = None,
    least: int = 64,
    sample_tokens: float = 5355,
) -> Simulated:
    """What a policy spends on these outcomes, and gets.

    `want` is how many accepted traces of a problem are of use (the policy's own by default).
    With `budget`, rounds are given out by `allocate`. With `likely`, samples are asked for ahead
    by `lookahead`, in waves, and what was not needed is surplus. Raises DataError where there are
    fewer outcomes per problem than the policy may ask for.
    """
    if outcomes.accepted.shape[1] < policy.most:
        raise DataError(
            f"{outcomes.accepted.shape[1]} samples per problem are recorded, the policy may take"
            f" {policy.most}",
            "record more, or lower the policy's most",
        )
    target = want or policy.want or policy.most
    ends = stops(policy, outcomes)
    asked, rounds = ends, int(ends.max(initial=0))
    if budget is not None:
        asked, rounds = _in_rounds(policy, outcomes, ends, budget, least, sample_tokens)
        ends = np.minimum(ends, asked)
    elif likely is not None:
        asked, rounds = _in_waves(policy, outcomes, ends, likely)
    return _tally(outcomes, ends, asked, target, rounds)


def stops(policy: Policy, outcomes: Outcomes) -> Ints:
    """For each problem the number of samples at which `policy` stops; shape (problems,)."""
    most = policy.most
    grid = np.array(
        [
            [k <= n and policy.stop(n, k) is not None for k in range(most + 1)]
            for n in range(1, most + 1)
        ]
    )
    successes = np.cumsum(outcomes.accepted[:, :most], axis=1, dtype=np.int16)
    return 1 + np.argmax(grid[np.arange(most), successes], axis=1)


def fitted(counts: Iterable[tuple[int, int]]) -> Prior:
    """The mix of pass rates that explains (tries, accepted) of problems sampled earlier."""
    many: dict[tuple[int, int], int] = {}
    for point in counts:
        many[point] = many.get(point, 0) + 1
    return beta.fit(many, OPEN_R1_MIX)


def _in_rounds(
    policy: Policy,
    outcomes: Outcomes,
    ends: Ints,
    budget: float,
    least: int,
    sample_tokens: float,
) -> tuple[Ints, int]:
    """Samples that a budget bought of each problem, and in how many rounds."""
    asked, rounds = np.zeros_like(ends), 0
    successes, tokens = _running(outcomes.accepted), _running(outcomes.tokens)
    rows = np.arange(len(ends))
    while True:
        spent = tokens[rows, asked]
        points = zip(asked.tolist(), successes[rows, asked].tolist(), spent.tolist(), strict=True)
        states = [State(*point) for point in points]
        left = budget - int(spent.sum())
        given = allocate(policy, states, left, sample_tokens=sample_tokens, least=least)
        if left <= 0 or not any(given):
            return asked, rounds
        asked = np.minimum(asked + np.array(given), ends)
        rounds += 1


def _in_waves(policy: Policy, outcomes: Outcomes, ends: Ints, likely: float) -> tuple[Ints, int]:
    """Samples asked for where each problem always has `lookahead` of them under way.

    A wave comes back whole before the next is sent: real samplers refill one by one and know a
    little more when they do, so that this is an upper bound of the surplus.
    """
    asked, rounds = np.zeros_like(ends), 0
    successes = _running(outcomes.accepted)
    ahead: dict[tuple[int, int], int] = {}
    while (going := np.flatnonzero(asked < ends)).size:
        points = list(
            zip(asked[going].tolist(), successes[going, asked[going]].tolist(), strict=True)
        )
        for n, k in set(points) - ahead.keys():
            ahead[n, k] = lookahead(policy, State(n, k), likely=likely)
        asked[going] += np.array([ahead[point] for point in points])
        rounds += 1
    return asked, rounds


def _running(values: NDArray[np.generic]) -> Ints:
    """Sums over the first 0, 1, ... samples; shape (problems, samples + 1)."""
    sums = np.zeros((values.shape[0], values.shape[1] + 1), dtype=np.int64)
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums


def _tally(outcomes: Outcomes, ends: Ints, asked: Ints, want: int, rounds: int) -> Simulated:
    rows = np.arange(len(ends))
    tokens = _running(outcomes.tokens)
    useful = np.minimum(_running(outcomes.accepted)[rows, ends], want)
    columns: Sequence[NDArray[np.generic]] = (
        np.ones_like(ends),
        asked,
        tokens[rows, asked],
        useful,
        useful > 0,
        useful >= want,
        asked - ends,
        tokens[rows, asked] - tokens[rows, ends],
    )

    def over(these: Bools) -> Tally:
        return Tally(*(int(column[these].sum()) for column in columns))

    buckets = {
        label: over(outcomes.bucket == number) for number, label in enumerate(outcomes.labels)
    }
    return Simulated(over(np.ones(len(ends), dtype=bool)), buckets, rounds)
