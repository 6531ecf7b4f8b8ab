"""Two formulas or two equations: surely equal, surely different, or not settled."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from itertools import product

from distill.grade import forms_float, forms_units
from distill.grade.forms_exact import Node, Ratio, TooHard, proportional, same
from distill.grade.forms_float import Point
from distill.grade.forms_shapes import Equation, Formula, renamed

RELATIVE = Fraction(1, 1000)
"""Numbers that six decimals call equal must agree to this relative precision too."""
SIX_DECIMALS = Fraction(1, 10**6)
PRECISE = 5
"""A decimal gold with so many significant digits also takes an answer that rounds to it."""
_RADIAN = ("/", ("s", "pi"), ("n", Fraction(180), False))


def formulas(gold: Formula, answer: Formula) -> bool | None:
    """The verdict on two formulas, with their percent signs, degrees and units."""
    endless = infinite(gold.node), infinite(answer.node)
    if any(endless):
        return endless[0] == endless[1]
    if gold.percent != answer.percent:
        return _any(_plain(gold, answer, scale) for scale in _percent(gold, answer))
    if gold.degrees != answer.degrees and "pi" in (gold.symbols | answer.symbols):
        left = _scaled(gold, _RADIAN) if gold.degrees else gold
        right = _scaled(answer, _RADIAN) if answer.degrees else answer
        return _any((_plain(left, right), _plain(gold, answer)))
    scale = forms_units.factor(gold.unit, answer.unit)
    if scale is not None and scale != 1:
        return _plain(gold, _scaled(answer, ("n", scale, False)))
    return _plain(gold, answer)


def _percent(gold: Formula, answer: Formula) -> tuple[tuple[Node, Node], ...]:
    one, hundredth = ("n", Fraction(1), False), ("n", Fraction(1, 100), False)
    return ((one, one), (hundredth, one) if gold.percent else (one, hundredth))


def _scaled(form: Formula, scale: Node) -> Formula:
    return Formula(("*", form.node, scale))


def _plain(gold: Formula, answer: Formula, scales: tuple[Node, Node] | None = None) -> bool | None:
    if scales is not None and any(scale[1] != 1 for scale in scales):
        gold, answer = _scaled(gold, scales[0]), _scaled(answer, scales[1])
    if gold.node == answer.node:
        return True
    left, right = gold.exact, answer.exact
    equal: bool | None = None
    if left is not None and right is not None:
        a, b = left.rational, right.rational
        if a is not None and b is not None:
            return _rationals(a, b, gold, answer)
        equal = _same(left, right)
        if equal or _same_but_case(gold, answer):
            return True
    if _apart(gold, answer):
        return False
    exactly = not (gold.decimal or answer.decimal) and _free(gold) == _free(answer)
    if left is not None and right is not None and equal is False and exactly:
        return False if _independent(left, right) else None
    return None


def _same(left: Ratio, right: Ratio) -> bool | None:
    """Whether the canonical forms are equal; None where that costs too much."""
    try:
        return same(left, right)
    except TooHard:
        return None


def _same_but_case(gold: Formula, answer: Formula) -> bool:
    """As math-verify has it, C and c are one symbol where neither side uses both."""
    one, other = gold.symbols, answer.symbols
    swaps = {name: name.swapcase() for name in other - one if name.swapcase() in one - other}
    if (
        not swaps
        or swaps.keys() & {"e", "i", "E", "I"}
        or any(s.startswith("call:") for s in swaps)
    ):
        return False
    node = answer.node
    for old, new in swaps.items():
        node = renamed(node, old, new)
    changed = Formula(node)
    return bool(gold.exact and changed.exact and _same(gold.exact, changed.exact))


def _rationals(a: Fraction, b: Fraction, gold: Formula, answer: Formula) -> bool | None:
    """Two rational numbers: equal, or a decimal that stands for the other at six decimals."""
    if a == b:
        return True
    if not (gold.decimal or answer.decimal):
        return False
    difference = abs(a - b)
    if _rounds_to(gold.node, a, b):
        return True
    if difference > RELATIVE * max(abs(a), abs(b)) or difference > SIX_DECIMALS:
        return False
    close = difference <= SIX_DECIMALS / 2 and difference * 10**5 < max(abs(a), abs(b))
    return True if close and round(a, 6) == round(b, 6) else None


def _rounds_to(gold: Node, a: Fraction, b: Fraction) -> bool:
    """A gold written with many digits is the rounded answer."""
    while gold[0] == "-":
        gold = gold[1]
    if gold[0] != "n" or not gold[2]:
        return False
    decimals = 0
    while (a * 10**decimals).denominator != 1 and decimals < 12:
        decimals += 1
    digits = len(str(abs(int(a * 10**decimals))))
    return digits > PRECISE and abs(a - b) * 2 <= Fraction(1, 10**decimals) and decimals < 12


def _apart(gold: Formula, answer: Formula) -> bool:
    """True where the two are surely different, in every reading of e, i and f(x)."""
    symbols = gold.symbols | answer.symbols
    loose = gold.decimal or answer.decimal
    points = _points(symbols)
    spreads = [forms_float.WIDE]
    if symbols - {"pi", "e", "i"}:
        spreads += [forms_float.WHOLE, forms_float.BROKEN]
    if not any(
        all(_differ(gold.node, answer.node, replace(p, spread=spread), loose) for p in points)
        for spread in spreads
    ):
        return False
    if _free(gold) != _free(answer):
        # 5J beside 5 may be a unit: not different where the letters count as 1.
        ones = Point(dict.fromkeys(symbols - {"pi", "e"}, 1.0), "symbol")
        return _differ(gold.node, answer.node, ones, loose, otherwise=True)
    return True


def _free(form: Formula) -> bool:
    """True if the formula has symbols that are no constants."""
    return bool(form.symbols - {"pi", "e", "i"})


def _points(symbols: frozenset[str]) -> list[Point]:
    e = [forms_float.CONSTANTS["e"], 1.37] if "e" in symbols else [0.0]
    i = [1j, 1.23] if "i" in symbols else [0.0]
    called = any(name.startswith("call:") for name in symbols)
    calls = forms_float.CALLS if called else ("function",)
    return [Point({"e": one, "i": two}, call) for one, two, call in product(e, i, calls)]


def _differ(
    gold: Node, answer: Node, point: Point, loose: bool, *, otherwise: bool = False
) -> bool:
    """True where both are surely apart at a point; `otherwise` where they have no value there."""
    try:
        (u, du), (v, dv) = forms_float.value(gold, point), forms_float.value(answer, point)
    except TooHard:
        if point.spread != forms_float.WIDE:
            return otherwise
        narrow = replace(point, spread=forms_float.NARROW)
        return _differ(gold, answer, narrow, loose, otherwise=otherwise)
    gap, size = abs(u - v), max(abs(u), abs(v))
    if gap <= 1000 * (du + dv) or gap <= 1e-9 * size:
        return False
    return not loose or gap > 2e-6 or gap > 2e-3 * size


def _independent(left: Ratio, right: Ratio) -> bool:
    """True if both are polynomials over rationals, roots of primes, pi and plain symbols."""
    atoms = {
        atom for ratio in (left, right) for poly in (ratio.above, ratio.below)
        for monomial in poly for atom, _ in monomial
    }  # fmt: skip
    symbols = {atom for atom in atoms if not atom.startswith("#")}
    if any("(" in atom for atom in symbols) or {"e", "pi"} <= symbols:
        return False
    return len({atom.lower() for atom in symbols}) == len(symbols)


def infinite(node: Node) -> int:
    """1 or -1 for plus and minus infinity, 0 for anything else."""
    if node == ("inf",):
        return 1
    if node == ("-", ("inf",)):
        return -1
    return 0


def _any(verdicts: Iterable[bool | None]) -> bool | None:
    found = list(verdicts)
    if True in found:
        return True
    return None if None in found else False


def equations(gold: Equation, answer: Equation) -> bool | None:
    """Equal where left minus right is a multiple of the same; different where solved apart.

    A multiple is one by a number or by a product of symbols, which are taken not to be zero.
    """
    sides: list[Formula] = []
    for each in (gold, answer):
        if each.left is None or not isinstance(each.right, Formula):
            return None
        sides.append(Formula(("+", each.left.node, ("-", each.right.node))))
    if sides[0].exact and sides[1].exact and proportional(sides[0].exact, sides[1].exact):
        return True
    if any(side.decimal for side in sides):
        return None
    symbols = (sides[0].symbols & sides[1].symbols) - {"pi", "e", "i"}
    points = _points(sides[0].symbols | sides[1].symbols)
    for name in sorted(symbols)[:8]:
        if not name.startswith("call:"):
            solved = [[_solved(side.node, name, point) for side in sides] for point in points]
            if all(a is not None and b is not None and _far(a, b) for a, b in solved):
                return False
    return None


def _far(one: complex, other: complex) -> bool:
    return abs(one - other) > 1e-6 * (abs(one) + abs(other))


def _solved(node: Node, name: str, point: Point) -> complex | None:
    """Where an equation that is linear in a symbol puts it; None where it is not linear."""
    at = (0.7, 1.1, 1.9)
    try:
        values = [
            forms_float.value(node, replace(point, values={**point.values, name: x})) for x in at
        ]
    except TooHard:
        return None
    (f, df), (g, dg), (h, dh) = values
    slope, again = (g - f) / (at[1] - at[0]), (h - g) / (at[2] - at[1])
    size = abs(slope) + abs(again)
    if abs(slope - again) > 1e-9 * size or size < 1e-6 or 1000 * (df + dg + dh) > 1e-7 * size:
        return None
    return at[0] - f / slope
