"""The Beta distribution as what is known of a pass rate: probabilities, quantiles, a fitted prior.

Standard library alone: whoever decides about samples must not load a numerical library for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import accumulate

Prior = tuple[float, float]
"""The two parameters (a, b) of a Beta distribution over pass rates; its mean is a / (a + b)."""

JEFFREYS: Prior = (0.5, 0.5)
"""The uninformative prior of a proportion (Jeffreys 1946): half a success, half a failure. Like
the pass rates of a reasoning model it has most of its mass near 0 and near 1."""

SPREAD = 2.0
"""Standard deviation, in natural logarithms, of how far a fitted prior's parameters are expected
from the given one. A few dozen problems outweigh it."""


def cdf(x: float, a: float, b: float) -> float:
    """P(p <= x) for p ~ Beta(a, b): the regularised incomplete beta function.

    Lentz's continued fraction, DLMF 8.17.22; good to 1e-10 for a thousand samples.
    """
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - cdf(1 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    c, d = 1.0, 1 / _away(1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 1000):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / _away(1 + step * d), _away(1 + step / c)
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * fraction / a


def quantile(level: float, a: float, b: float) -> float:
    """The x with P(p <= x) = level for p ~ Beta(a, b), by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cdf(middle, a, b) < level else (low, middle)
    return (low + high) / 2


def fit(counts: Mapping[tuple[int, int], int], around: Prior) -> Prior:
    """The prior under which what was seen is likeliest: empirical Bayes.

    `counts` says how many problems have (tries, accepted). The likelihood of a beta-binomial is
    the same whether a problem's tries were fixed or ended by a stopping rule; moments of k/n are
    not, hence no moments. `around` is kept where there is little to go by.
    """
    seen = {point: many for point, many in counts.items() if point[0] > 0}
    if not seen:
        return around
    most = max(tries for tries, _ in seen)

    def loss(logs: tuple[float, float]) -> float:
        a, b = math.exp(logs[0]), math.exp(logs[1])
        # log of a (a+1) ... (a+k-1), looked up: there are many points and few values.
        up, down, both = (_rising(start, most) for start in (a, b, a + b))
        likelihood = sum(many * (up[k] + down[n - k] - both[n]) for (n, k), many in seen.items())
        far = sum((log - math.log(p)) ** 2 for log, p in zip(logs, around, strict=True))
        return far / (2 * SPREAD**2) - likelihood

    a, b = _minimise(loss, (math.log(around[0]), math.log(around[1])))
    return math.exp(a), math.exp(b)


def _away(x: float) -> float:
    return x if abs(x) > 1e-300 else 1e-300


def _rising(start: float, most: int) -> list[float]:
    return [0.0, *accumulate(math.log(start + j) for j in range(most))]


def _minimise(
    loss: Callable[[tuple[float, float]], float], start: tuple[float, float]
) -> tuple[float, float]:
    """Compass search: both coordinates, both ways, ever smaller steps. Smooth and unimodal here."""
    best, value, step = start, loss(start), 1.0
    while step > 0.01:
        tried = [(best[0] + x * step, best[1] + y * step) for x, y in _WAYS]
        inside = [point for point in tried if max(map(abs, point)) <= _BOUND]
        losses = [loss(point) for point in inside]
        if losses and min(losses) < value:
            value = min(losses)
            best = inside[losses.index(value)]
        else:
            step /= 2
    return best


_WAYS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1))
_BOUND = 7.0
