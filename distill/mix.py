"""How many examples of each source or domain: by share of the whole, or by count."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from distill.errors import DataError

R1_EXAMPLES = {
    "math": 395_285,
    "code": 211_129,
    "stem": 10_124,
    "logic": 10_395,
    "general": 177_812,
}
"""Examples of DeepSeek-R1's own distillation data by domain (arXiv 2501.12948v2, Table 5)."""

Wanted = Mapping[str, float]
"""Name -> share of the whole (all below 1), or name -> number of examples (`schema.Selection`)."""


def balance_of(balance: str | Wanted) -> dict[str, float]:
    """The shares or counts of `select.balance` by domain; names are compared in lower case."""
    if isinstance(balance, str):
        total = sum(R1_EXAMPLES.values())
        return {name: count / total for name, count in R1_EXAMPLES.items()}
    return {name.strip().lower(): value for name, value in balance.items()}


def by_share(wanted: Wanted) -> bool:
    """True where `wanted` holds shares, False where it holds counts."""
    return any(value < 1 for value in wanted.values())


def quotas(
    available: Mapping[str, int],
    wanted: Wanted,
    most: int | None,
    *,
    fill: bool = False,
    what: str = "source",
) -> dict[str, int]:
    """Examples to take of each name, of `available` ones, at most `most` together.

    With shares the whole is as large as the scarcest name allows, and a name without a share gets
    nothing; rounding goes by largest remainder. With `fill` the whole is `most`: a name that
    cannot give its share gives all it has, and the others fill the gap in proportion to their
    shares. With counts every name gets at most its count, those not named all they have; `most` is
    then left to the caller. Raises DataError where a name with a share has nothing to give.
    """
    if not by_share(wanted):
        return {name: min(n, int(wanted.get(name, n))) for name, n in available.items()}
    if fill and most:
        found = _filled(available, wanted, most)
    else:
        found = _by_scarcest(available, wanted, most, what)
    return {name: found.get(name, 0) for name in available}


def _by_scarcest(
    available: Mapping[str, int], wanted: Wanted, most: int | None, what: str
) -> dict[str, int]:
    empty = [name for name in wanted if not available.get(name)]
    if empty:
        there = ", ".join(f"{name or 'none'} ({n:,})" for name, n in available.items() if n)
        raise DataError(
            f"{what} '{empty[0]}' has no example left for its share {wanted[empty[0]]:.2g}",
            f"see why its traces were dropped; there are: {there or 'none'}. select.fill with "
            "max_examples makes up for what is missing",
        )
    total = sum(wanted.values())
    # A rounding error of the division must not cost an example.
    whole = min(math.floor(available[n] * total / share + 1e-9) for n, share in wanted.items())
    return _rounded(min(whole, most) if most else whole, wanted)


def _filled(available: Mapping[str, int], wanted: Wanted, most: int) -> dict[str, int]:
    """Shares of `most`; what is scarce gives all, until the rest is not."""
    found: dict[str, int] = {}
    rest = dict(wanted)
    while rest:
        left, total = most - sum(found.values()), sum(rest.values())
        scarce = [n for n, share in rest.items() if left * share / total >= available.get(n, 0)]
        if not scarce:
            return found | _rounded(left, rest)
        for name in scarce:
            found[name] = available.get(name, 0)
            del rest[name]
    return found


def _rounded(whole: int, wanted: Wanted) -> dict[str, int]:
    """`whole` in proportion to the shares, by largest remainder."""
    total = sum(wanted.values())
    exact = {name: whole * share / total for name, share in wanted.items()}
    found = {name: math.floor(value + 1e-9) for name, value in exact.items()}
    left = whole - sum(found.values())
    for name in sorted(exact, key=lambda n: (found[n] - exact[n], n))[:left]:
        found[name] += 1
    return found


def notes_of(
    table: Mapping[str, Mapping[str, Any]], wanted: Wanted, what: str, *, fill: bool = False
) -> list[str]:
    """What a reader must know where the examples did not come out as `wanted`.

    `table` is name -> `{wanted, available, selected}`, as the select step's summary has it.
    """
    if not by_share(wanted):
        return [
            f"{what} '{name}' gave {row['available']:,} of the {int(row['wanted']):,} examples "
            "that are wanted of it"
            for name, row in table.items()
            if row["wanted"] and row["available"] < row["wanted"]
        ]
    notes = [
        f"{what} '{name}' has no share: its {row['available']:,} examples were left out"
        for name, row in table.items()
        if not row["wanted"] and row["available"]
    ]
    shared = {name: row for name, row in table.items() if row["wanted"]}
    scarce = [name for name, row in shared.items() if row["selected"] == row["available"]]
    left = sum(row["available"] - row["selected"] for row in shared.values())
    if fill:
        whole = sum(row["selected"] for row in table.values())
        short = {n: shared[n]["wanted"] * whole - shared[n]["selected"] for n in scarce}
        notes += [
            f"{what} '{name}' gave all it had, {shared[name]['selected']:,} examples, "
            f"{round(missing):,} fewer than its share; the others filled up"
            for name, missing in short.items()
            if missing >= 1
        ]
    elif scarce and left:
        notes.append(
            f"the whole is as large as {what} '{scarce[0]}' allows: {left:,} examples of the "
            "others were left out"
        )
    return notes
