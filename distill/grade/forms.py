r"""Whether two answers are equal, settled exactly and without sympy, or not settled at all.

`settle` says True where both are surely equal, False where they surely differ, and None where
math-verify has to look. Equality is shown by canonical forms (`forms_exact`), difference by exact
numbers or by floating point with error bounds (`forms_float`). It never raises and its time is
bounded: an answer has at most some hundred tokens, and all arithmetic is limited.

Three rules come from math-verify: units are ignored, `50%` is 50 and 0.5, and a decimal equals a
number that is the same at six decimals (here it must agree to a thousandth of its size too).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from itertools import product

from distill.grade import forms_float, forms_units
from distill.grade.forms_exact import Node, Ratio, TooHard, same
from distill.grade.forms_float import Point
from distill.grade.forms_read import (
    ELLIPSIS,
    Based,
    Colons,
    Equation,
    Form,
    Formula,
    Joined,
    Many,
    Matrix,
    Named,
    Sequenced,
    Words,
    readings,
)

RELATIVE = Fraction(1, 1000)
"""Numbers that six decimals call equal must agree to this relative precision too."""

SIX_DECIMALS = Fraction(1, 10**6)
PRECISE = 5
"""A decimal gold with so many significant digits also takes an answer that rounds to it."""

_NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_COUNTING = frozenset((*_NUMBERS, "half", "third", "quarter", "pi", "twice", "hundred", "thousand"))
_RADIAN = ("/", ("s", "pi"), ("n", Fraction(180), False))


def settle(gold: str, answer: str) -> bool | None:
    """True: surely equal. False: surely different. None: not settled here. Never raises."""
    ours, theirs = _readings(gold), _readings(answer)
    if ours is None or theirs is None:
        return None
    verdicts = {_guarded(one, other) for one in ours for other in theirs}
    return verdicts.pop() if len(verdicts) == 1 else None


@lru_cache(maxsize=4096)
def _readings(text: str) -> tuple[Form, ...] | None:
    try:
        return tuple(readings(text))
    except (TooHard, RecursionError):
        return None


def _guarded(gold: Form, answer: Form) -> bool | None:
    try:
        return compare(gold, answer)
    except (TooHard, RecursionError, OverflowError):
        return None


def compare(gold: Form, answer: Form) -> bool | None:
    """The verdict on two forms. Raises TooHard where it cannot say."""
    if isinstance(gold, Named) or isinstance(answer, Named):
        return _named(gold, answer)
    for kinds, function in _RULES:
        if isinstance(gold, kinds[0]) and isinstance(answer, kinds[1]):
            return function(gold, answer)
        if isinstance(gold, kinds[1]) and isinstance(answer, kinds[0]):
            return function(answer, gold)
    return None


# --- formulas ------------------------------------------------------------------------------------


def formulas(gold: Formula, answer: Formula) -> bool | None:
    """The verdict on two formulas, with their percent signs, degrees and units."""
    infinite = _infinite(gold.node), _infinite(answer.node)
    if any(infinite):
        return infinite[0] == infinite[1]
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


def _plain(
    gold: Formula, answer: Formula, scales: tuple[Node, Node] | None = None
) -> bool | None:
    if scales is not None and any(scale[1] != 1 for scale in scales):
        gold, answer = _scaled(gold, scales[0]), _scaled(answer, scales[1])
    if gold.node == answer.node:
        return True
    left, right = gold.exact, answer.exact
    if left is not None and right is not None:
        a, b = left.rational, right.rational
        if a is not None and b is not None:
            return _rationals(a, b, gold, answer)
        if same(left, right):
            return True
    if _apart(gold, answer):
        return False
    loose = gold.decimal or answer.decimal
    if left is not None and right is not None and not loose and _independent(left, right):
        return False
    return None


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
    if not all(_differ(gold.node, answer.node, point, loose) for point in points):
        return False
    free = [form.symbols - {"pi", "e", "i"} for form in (gold, answer)]
    if bool(free[0]) != bool(free[1]):
        # 5J beside 5 may be a unit: not different where the letters count as 1.
        ones = Point({name: 1.0 for name in symbols - {"pi", "e"}}, "symbol")
        try:
            return _differ(gold.node, answer.node, ones, loose)
        except TooHard:
            return True
    return True


def _points(symbols: frozenset[str]) -> list[Point]:
    e = [forms_float.CONSTANTS["e"], 1.37] if "e" in symbols else [0.0]
    i = [1j, 1.23] if "i" in symbols else [0.0]
    called = any(name.startswith("call:") for name in symbols)
    calls = forms_float.CALLS if called else ("function",)
    return [Point({"e": one, "i": two}, call) for one, two, call in product(e, i, calls)]


def _differ(gold: Node, answer: Node, point: Point, loose: bool) -> bool:
    try:
        (u, du), (v, dv) = forms_float.value(gold, point), forms_float.value(answer, point)
    except TooHard:
        if point.spread == forms_float.NARROW:
            raise
        return _differ(gold, answer, replace(point, spread=forms_float.NARROW), loose)
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


def _infinite(node: Node) -> int:
    """1 or -1 for plus and minus infinity, 0 for anything else. Raises TooHard for its sums."""
    if node == ("inf",):
        return 1
    if node == ("-", ("inf",)):
        return -1
    return 0


# --- several values ------------------------------------------------------------------------------


def _any(verdicts: object) -> bool | None:
    found = list(verdicts)  # type: ignore[call-overload]
    if True in found:
        return True
    return None if None in found else False


def _every(verdicts: list[bool | None]) -> bool | None:
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _try(gold: Form, answer: Form) -> bool | None:
    try:
        return compare(gold, answer)
    except TooHard:
        return None


def _in_order(gold: list[Form], answer: list[Form]) -> bool | None:
    if len(gold) != len(answer):
        return False
    return _every([_try(a, b) for a, b in zip(gold, answer, strict=True)])


def _as_sets(gold: list[Form], answer: list[Form]) -> bool | None:
    """Both as sets: every value of one is among the others."""
    dots = [any(isinstance(i, Words) and i.text == ELLIPSIS for i in side) for side in (gold, answer)]
    if any(dots):
        ends = [_try(gold[k], answer[k]) for k in (0, -1)]
        if all(dots):
            return True if _in_order(gold, answer) else (False if False in ends else None)
        return None
    if len(gold) == len(answer) and _in_order(gold, answer):
        return True
    if len(gold) > 16 or len(answer) > 16:
        return None
    table = [[_try(a, b) for b in answer] for a in gold]
    if all(True in row for row in table) and all(True in column for column in zip(*table, strict=True)):
        return True
    lonely = any(set(row) == {False} for row in table)
    if lonely or any(set(column) == {False} for column in zip(*table, strict=True)):
        return False
    return None


def _sequences(gold: Sequenced, answer: Sequenced) -> bool | None:
    brackets = gold.opened + gold.closed == answer.opened + answer.closed
    inner = _in_order(gold.items, answer.items)
    if inner is not True:
        lists = gold.opened == "[" and answer.opened == "[" and len(gold.items) > 2
        return None if lists and _as_sets(gold.items, answer.items) else inner
    if brackets:
        return True
    ends = any(
        isinstance(item, Formula) and _infinite(item.node) for item in (*gold.items, *answer.items)
    )
    return False if ends or gold.certain or answer.certain else None


def _many(gold: Many, answer: Many) -> bool | None:
    return _as_sets(gold.items, answer.items)


def _many_sequence(gold: Many, answer: Sequenced) -> bool | None:
    """A list beside a tuple: equal in the same order, different with other values."""
    if answer.certain:
        return None
    if _in_order(gold.items, answer.items) and answer.opened == "(":
        return True if not gold.braces else None
    return False if _as_sets(gold.items, answer.items) is False else None


def _many_formula(gold: Many, answer: Formula) -> bool | None:
    return _as_sets(gold.items, [answer])


def _sequence_formula(gold: Sequenced, answer: Formula) -> bool | None:
    return None if len(gold.items) < 2 or answer.symbols - {"pi", "e", "i"} else False


def _joined(gold: Joined, answer: Joined) -> bool | None:
    if len(gold.items) == len(answer.items) and _as_sets(gold.items, answer.items):
        return True
    return False if _spans_differ(gold.items, answer.items) else None


def _joined_sequence(gold: Joined, answer: Sequenced) -> bool | None:
    return False if _spans_differ(gold.items, [answer]) else None


def _joined_formula(gold: Joined, answer: Formula) -> bool | None:
    intervals = all(isinstance(item, Sequenced) for item in gold.items)
    return False if intervals and not answer.symbols - {"pi", "e"} else None


Span = tuple[float, float]


def _spans_differ(gold: list[Form], answer: list[Form]) -> bool:
    """True where unions of intervals surely cover different numbers: their ends are apart."""
    one, other = _spans(gold), _spans(answer)
    for spans, others in ((one, other), (other, one)):
        for low, high in spans:
            for end in (low, high):
                if not any(abs(end - x) < 1e-6 * (1 + abs(x)) for pair in others for x in pair):
                    # An end within one of its own neighbours may vanish in the union.
                    inside = any(
                        a - 1e-6 <= end <= b + 1e-6 for a, b in spans if (a, b) != (low, high)
                    )
                    return not inside
    return False


def _spans(forms: list[Form]) -> list[Span]:
    spans: list[Span] = []
    for form in forms:
        if not isinstance(form, Sequenced) or len(form.items) != 2:
            raise TooHard
        spans.append((_end(form.items[0]), _end(form.items[1])))
    return spans


def _end(form: Form) -> float:
    if not isinstance(form, Formula) or form.symbols - {"pi", "e"}:
        raise TooHard
    infinite = _infinite(form.node)
    if infinite:
        return infinite * 1e300
    return forms_float.value(form.node, Point())[0].real


def _matrices(gold: Matrix, answer: Matrix) -> bool | None:
    if [len(row) for row in gold.rows] != [len(row) for row in answer.rows]:
        return False
    pairs = zip(gold.rows, answer.rows, strict=True)
    return _every([_in_order(one, other) for one, other in pairs])


def _matrix_formula(gold: Matrix, answer: Formula) -> bool | None:
    size = sum(map(len, gold.rows))
    return False if size > 1 and not answer.symbols - {"pi", "e", "i"} else None


# --- names, words and the rest -------------------------------------------------------------------


def _named(gold: Form, answer: Form) -> bool | None:
    """`x = 5` beside `5`, `x = 5` and `y = 5`."""
    if isinstance(gold, Named) and isinstance(answer, Named):
        equal = compare(gold.value, answer.value)
        if equal is False and gold.name != answer.name and "(" not in gold.name:
            return _equations(_equation(gold), _equation(answer))
        if gold.name == answer.name:
            return equal if not (gold.others or answer.others) or equal else None
        return None
    named, other = (gold, answer) if isinstance(gold, Named) else (answer, gold)
    assert isinstance(named, Named)
    if isinstance(other, Equation):
        pair_ = (_equation(named), other)
        return _equations(*(pair_ if isinstance(gold, Named) else pair_[::-1]))
    turned = isinstance(gold, Named)
    pair: Callable[[Form], bool | None] = lambda value: (
        compare(value, other) if turned else compare(other, value)
    )
    equal = pair(named.value)
    if equal is False and any(pair(value) is not False for value in named.others):
        return None
    return equal


def _words(gold: Words, answer: Words) -> bool | None:
    one, other = gold.text.replace(" ", ""), answer.text.replace(" ", "")
    if one == other:
        return True
    related = one in other or other in one or sorted(one) == sorted(other)
    single = " " not in gold.text and " " not in answer.text
    return False if single and not related and min(len(one), len(other)) > 1 else None


def _words_formula(words: Words, other: Formula) -> bool | None:
    if words.text in _NUMBERS:
        return formulas(Formula(("n", Fraction(_NUMBERS.index(words.text)), False)), other)
    if other.symbols - {"pi", "e", "i"} or _infinite(other.node):
        return None
    value = other.exact.rational if other.exact else None
    spoken = set(words.text.split())
    if value == 0 or spoken & _COUNTING or words.text == ELLIPSIS:
        return None
    return False


def _words_values(words: Words, other: Many | Sequenced | Matrix) -> bool | None:
    """Words beside several numbers: another answer, unless they count or say "all"."""
    if isinstance(other, Matrix) or getattr(other, "certain", False):
        return None
    plain = all(isinstance(item, (Formula, Sequenced)) for item in other.items)
    infinite = any(isinstance(i, Formula) and _infinite(i.node) for i in other.items)
    spoken = set(words.text.split())
    if not plain or infinite or len(other.items) < 2 or words.text == ELLIPSIS:
        return None
    return None if spoken & (_COUNTING | {"all", "every", "any"}) else False


def _based(gold: Based, answer: Based) -> bool | None:
    return gold.digits == answer.digits if gold.base == answer.base else None


def _colons(gold: Colons, answer: Colons) -> bool | None:
    if len(gold.items) != len(answer.items):
        return None
    if _in_order(gold.items, answer.items):
        return True
    first, *others = gold.items
    one, *rest = answer.items
    values = [_rational(form) for form in (*gold.items, *answer.items)]
    half = len(values) // 2
    crossed = [
        values[0] * values[half + k] == values[k] * values[half] for k in range(1, half)
    ]
    return None if all(crossed) and all(values) else False


def _rational(form: Form) -> Fraction:
    value = form.exact.rational if isinstance(form, Formula) and form.exact else None
    if value is None:
        raise TooHard
    return value


def _equation(named: Named) -> Equation:
    if named.left is None or named.others or not isinstance(named.value, Formula):
        raise TooHard
    return Equation(named.left, named.value)


def _equations(gold: Equation, answer: Equation) -> bool | None:
    """Equal where left minus right is a multiple of the same; different where solved apart."""
    sides = [Formula(("+", e.left.node, ("-", e.right.node))) for e in (gold, answer)]
    one, other = sides[0].exact, sides[1].exact
    if one and other and one.above and other.above and one.below == other.below:
        ratios = {other.above.get(m, Fraction(0)) / c for m, c in one.above.items()}
        if len(one.above) == len(other.above) and len(ratios) == 1 and ratios != {Fraction(0)}:
            return True
    if any(side.decimal for side in sides):
        return None
    symbols = sides[0].symbols & sides[1].symbols - {"pi", "e", "i"}
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


_RULES: tuple[tuple[tuple[type, type], Callable[..., bool | None]], ...] = (
    ((Formula, Formula), formulas),
    ((Sequenced, Sequenced), _sequences),
    ((Many, Many), _many),
    ((Many, Sequenced), _many_sequence),
    ((Many, Formula), _many_formula),
    ((Sequenced, Formula), _sequence_formula),
    ((Joined, Joined), _joined),
    ((Joined, Sequenced), _joined_sequence),
    ((Joined, Formula), _joined_formula),
    ((Matrix, Matrix), _matrices),
    ((Matrix, Formula), _matrix_formula),
    ((Words, Words), _words),
    ((Words, Formula), _words_formula),
    ((Words, Many), _words_values),
    ((Words, Sequenced), _words_values),
    ((Based, Based), _based),
    ((Colons, Colons), _colons),
    ((Equation, Equation), _equations),
)
