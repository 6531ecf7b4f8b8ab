"""How many examples of each source: by share of the whole, or by count."""

from __future__ import annotations

import math
from collections.abc import Mapping

from distill.errors import DataError


def by_share(mix: Mapping[str, float]) -> bool:
    """True where `mix` holds shares, False where it holds counts (`schema.Selection.mix`)."""
    return any(value < 1 for value in mix.values())


def quotas(
    available: Mapping[str, int], mix: Mapping[str, float], most: int | None
) -> dict[str, int]:
    """Examples to take of each source, of `available` ones, at most `most` together.

    With shares the whole is as large as the scarcest source allows, and a source without a share
    gets nothing; rounding goes by largest remainder. With counts every source named gets at most
    its count, the others all they have; `most` is then left to the caller. Raises DataError where
    a source with a share has nothing to give.
    """
    if not by_share(mix):
        return {name: min(n, int(mix.get(name, n))) for name, n in available.items()}
    total = sum(mix.values())
    empty = [name for name in mix if not available.get(name)]
    if empty:
        raise DataError(
            f"source '{empty[0]}' has no example left for its share {mix[empty[0]]:g} of the mix",
            "see why its traces were dropped, or take it out of select.mix",
        )
    # A rounding error of the division must not cost an example.
    whole = min(math.floor(available[n] * total / share + 1e-9) for n, share in mix.items())
    whole = min(whole, most) if most else whole
    exact = {name: whole * share / total for name, share in mix.items()}
    found = {name: math.floor(value + 1e-9) for name, value in exact.items()}
    left = whole - sum(found.values())
    for name in sorted(exact, key=lambda n: (found[n] - exact[n], n))[:left]:
        found[name] += 1
    return {name: found.get(name, 0) for name in available}
