"""What an evaluation can and cannot see: detectable differences, several tests, several seeds.

`distill/statistics.py` says how sure one difference is; this module says how large a difference has
to be to be found at all, corrects for asking several questions at once, and adds the variance of
training itself where a student was trained with more than one seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from distill.statistics import LEVEL, Floats, Interval, clt, t_quantile

POWER = 0.8
"""How often a difference of the detectable size is found (Cohen's convention)."""


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of several tests, in their order (Holm 1979, step-down Bonferroni).

    The chance of even one false "clear" among all of them stays below the level, whatever the
    dependence between the tests.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, running)
    return adjusted


def detectable(differences: Floats, *, level: float = LEVEL, power: float = POWER) -> float | None:
    """The smallest true mean difference that so many problems would show, most of the time.

    `differences` are one per problem, of the two models at hand: (t + z) * s / sqrt(n). None for
    fewer than two problems and where all agree, which says nothing about the spread.
    """
    count = len(differences)
    if count < 2 or np.ptp(differences) < 1e-12:
        return None
    error = float(np.std(differences, ddof=1)) / math.sqrt(count)
    return (t_quantile((1 + level) / 2, count - 1) + NormalDist().inv_cdf(power)) * error


def detectable_before(
    problems: int,
    samples: int,
    *,
    rate: float = 0.5,
    spread: float = 0.35,
    shift: float = 0.2,
    level: float = LEVEL,
    power: float = POWER,
) -> float:
    """The same before anything was sampled, from assumptions about the models.

    Pass rates over problems have the mean `rate` and standard deviation `spread`; between the
    models they shift by the standard deviation `shift`. A problem's difference then has the
    variance shift^2 + 2 E[p (1 - p)] / samples. Raises ValueError for fewer than two problems.
    """
    if problems < 2 or samples < 1:
        raise ValueError(f"nothing can be seen with {problems} problems and {samples} samples")
    noise = max(0.0, rate * (1 - rate) - spread**2)
    error = math.sqrt((shift**2 + 2 * noise / samples) / problems)
    return (t_quantile((1 + level) / 2, problems - 1) + NormalDist().inv_cdf(power)) * error


@dataclass(frozen=True, slots=True)
class Seeded:
    """A mean over training seeds and problems, and where its uncertainty is from."""

    value: float
    interval: Interval
    seeds: int
    problems: int
    seed_deviation: float
    """Standard deviation between the seeds' own means."""


def across_seeds(values: Floats, low: float, high: float, *, level: float = LEVEL) -> Seeded:
    """The mean of `values` (seeds, problems) for other seeds AND other problems.

    Seeds and problems are crossed random effects: the variance of the grand mean is
    (MS_seeds + MS_problems - MS_rest) / (S n), with Satterthwaite's degrees of freedom (Searle,
    Casella and McCulloch, Variance Components, 1992, chapter 4). The interval is cut at what a
    value can be. Raises ValueError for fewer than two seeds or problems.
    """
    values = np.asarray(values, float)
    seeds, problems = values.shape
    if seeds < 2 or problems < 2:
        raise ValueError(f"{seeds} seeds and {problems} problems show no variance between them")
    mean = float(values.mean())
    rows, columns = values.mean(axis=1), values.mean(axis=0)
    by_seed = problems * float(rows.var(ddof=1))
    by_problem = seeds * float(columns.var(ddof=1))
    rest = values - rows[:, None] - columns[None, :] + mean
    dof_rest = (seeds - 1) * (problems - 1)
    left = float((rest**2).sum()) / dof_rest
    # Chance can make the sum of the two smaller than either alone, which no variance can be.
    scaled = max(by_seed + by_problem - left, by_seed, by_problem)
    if scaled <= 0:
        return Seeded(mean, clt(columns, low, high, level), seeds, problems, 0.0)
    spread = by_seed**2 / (seeds - 1) + by_problem**2 / (problems - 1) + left**2 / dof_rest
    dof = max(1, math.floor(scaled**2 / spread))
    half = t_quantile((1 + level) / 2, dof) * math.sqrt(scaled / (seeds * problems))
    interval = Interval(max(low, mean - half), min(high, mean + half))
    return Seeded(mean, interval, seeds, problems, float(rows.std(ddof=1)))
