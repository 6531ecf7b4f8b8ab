"""What a training will be given: how many examples, how long, how many updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from distill import simulate
from distill.plan_sampling import R1_PROMPT_TOKENS, SIMULATED, Basis, expected
from distill.plan_serving import SPREAD
from distill.recipe import Recipe

QUANTILES = 64
"""Lengths that stand for all examples."""
PUBLISHED = 2
"""Assumed traces of a published problem: OpenR1-Math-220k has two to four."""


@dataclass(frozen=True, slots=True)
class Data:
    """The examples of a training as expected; lengths in tokens, prompt included.

    `examples` is None where the recipe does not say how many problems there are. `lengths` are
    equally likely lengths of those that are trained on, `too_long` the share that is left out.
    """

    examples: int | None
    mean: float
    lengths: tuple[int, ...]
    too_long: float
    said: str

    def within(self, max_length: int) -> Data:
        """Without the examples that are longer."""
        kept = tuple(n for n in self.lengths if n <= max_length)
        left = 1 - len(kept) / len(self.lengths)
        kept = kept or (min(max_length, min(self.lengths)),)
        examples = None if self.examples is None else max(1, round(self.examples * (1 - left)))
        return Data(examples, sum(kept) / len(kept), kept, left, self.said)

    def updates(self, train: Mapping[str, Any]) -> int | None:
        """Optimizer updates of all epochs."""
        if self.examples is None:
            return None
        per_epoch = math.ceil(self.examples / train["batch_size"])
        total = max(1, round(per_epoch * train["epochs"]))
        return min(total, train.get("max_steps") or total)

    def seen(self, train: Mapping[str, Any]) -> float | None:
        """Examples that all epochs pass, counted each time."""
        updates = self.updates(train)
        if updates is None or self.examples is None:
            return None
        return min(updates * train["batch_size"], self.examples * train["epochs"])

    def tokens(self, train: Mapping[str, Any]) -> float | None:
        """Tokens that all epochs pass."""
        seen = self.seen(train)
        return None if seen is None else seen * self.mean


def prompt_tokens(basis: Basis) -> float:
    """Assumed length of a problem: R1's 200 tokens, less for models with tiny answers."""
    return min(R1_PROMPT_TOKENS, basis.sample_tokens / 2)


def expected_data(recipe: Recipe, count: int | None, basis: Basis) -> Data:
    """The examples that selection makes of `count` problems, however long."""
    examples, said = _examples(recipe, count, basis)
    prompt = prompt_tokens(basis)
    limit = recipe.sampling.max_tokens if recipe.traces is None else math.inf
    found = basis.lengths or lengths(basis.sample_tokens + prompt, limit + prompt)
    number = None if examples is None else max(1, round(examples))
    return Data(number, sum(found) / len(found), found, 0.0, said)


def _examples(recipe: Recipe, count: int | None, basis: Basis) -> tuple[float | None, str]:
    select = recipe.select
    most = select.max_examples
    if count is None:
        return (float(most), "select.max_examples") if most else (None, "")
    if recipe.traces is not None:
        each, said = float(min(select.per_problem, PUBLISHED)), f"{PUBLISHED} traces a problem"
        found = count * each
    else:
        found, said = _accepted(recipe, count, basis), "correct traces by the pass rates"
    if most is not None and most < found:
        found, said = float(most), "select.max_examples"
    held = select.validation
    found -= held if held >= 1 else held * found
    return max(1.0, found), said


def _accepted(recipe: Recipe, count: int, basis: Basis) -> float:
    """Examples that selection finds among the graded samples of `count` problems."""
    sampling, each = recipe.sampling, recipe.select.per_problem
    if sampling.want is not None:
        accepted = expected(recipe, count, basis).accepted or 0
        return accepted * min(1.0, each / sampling.want)
    if not any(part.name == "correct" for part in recipe.filters):
        return float(count * min(each, sampling.n))
    some = min(count, SIMULATED)
    outcomes = simulate.draw(
        some,
        sampling.n,
        mix=basis.mix,
        sample_tokens=basis.sample_tokens,
        max_tokens=sampling.max_tokens,
    )
    return float(outcomes.accepted.sum(axis=1).clip(max=each).sum()) * count / some


def lengths(mean: float, limit: float) -> tuple[int, ...]:
    """Lognormal lengths of this mean, equally likely, none beyond `limit`: what was cut off is no
    example."""
    scale = mean
    found: Sequence[float] = ()
    for _ in range(4):
        found = [n for n in _quantiles(scale) if n <= limit] or [min(mean, limit)]
        scale *= mean * len(found) / sum(found)
    return tuple(max(1, round(n)) for n in found)


def _quantiles(mean: float) -> list[float]:
    normal = NormalDist(math.log(mean) - SPREAD**2 / 2, SPREAD)
    return [math.exp(normal.inv_cdf((i + 0.5) / QUANTILES)) for i in range(QUANTILES)]
