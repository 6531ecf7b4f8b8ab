r"""Whether two answers are equal, settled exactly and without sympy, or not settled at all.

`settle` says True where both are surely equal, False where they surely differ, and None where
math-verify has to look. Equality is shown by canonical forms (`forms_exact`), difference by exact
numbers or by floating point with error bounds (`forms_float`). It never raises and its time is
bounded: an answer has at most some hundred tokens, and all arithmetic is limited.

Three rules come from math-verify: units are ignored, `50%` is 50 and 0.5, and a decimal equals a
number that is the same at six decimals (here it must agree to a thousandth of its size too).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

from distill.grade.forms_exact import TooHard
from distill.grade.forms_formula import equations, formulas, infinite
from distill.grade.forms_read import readings
from distill.grade.forms_shapes import (
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
    renamed,
)
from distill.grade.forms_spans import brackets_differ, spans_differ
from distill.grade.forms_tokens import MAX_CHARS

_NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
_COUNTING = frozenset((*_NUMBERS, "half", "third", "quarter", "pi", "twice", "hundred", "thousand"))

UNSETTLED = (TooHard, RecursionError, ArithmeticError, ValueError)
"""What says that a pair is beyond the exact path: `ValueError` is Python's limit on digits."""


def settle(gold: str, answer: str) -> bool | None:
    """True: surely equal. False: surely different. None: not settled here. Never raises."""
    if len(gold) > MAX_CHARS or len(answer) > MAX_CHARS:
        return None
    return _settle(gold, answer)


@lru_cache(maxsize=8192)
def _settle(gold: str, answer: str) -> bool | None:
    ours, theirs = _readings(gold), _readings(answer)
    if ours is None or theirs is None:
        return None
    if _decimal_comma(gold) == answer or _decimal_comma(answer) == gold:
        return True
    verdicts = {_guarded(one, other) for one in ours for other in theirs}
    return verdicts.pop() if len(verdicts) == 1 else None


def _decimal_comma(text: str) -> str | None:
    """`1,22` as `1.22`."""
    return text.replace(",", ".") if re.fullmatch(r"-?\d+,\d+", text) else None


@lru_cache(maxsize=4096)
def _readings(text: str) -> tuple[Form, ...] | None:
    try:
        return tuple(readings(text))
    except UNSETTLED:
        return None


def _guarded(gold: Form, answer: Form) -> bool | None:
    try:
        return compare(gold, answer)
    except UNSETTLED:
        return None


def compare(gold: Form, answer: Form) -> bool | None:
    """The verdict on two forms. Raises TooHard where it cannot say."""
    if isinstance(gold, Named) or isinstance(answer, Named):
        return _named(gold, answer)
    if isinstance(gold, Based) and isinstance(answer, Formula):
        return _based_formula(gold, answer)
    for kinds, function in _RULES:
        if isinstance(gold, kinds[0]) and isinstance(answer, kinds[1]):
            return function(gold, answer)
        if isinstance(gold, kinds[1]) and isinstance(answer, kinds[0]):
            return function(answer, gold)
    return None


# --- several values ------------------------------------------------------------------------------


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
    dots = [
        any(isinstance(i, Words) and i.text == ELLIPSIS for i in side) for side in (gold, answer)
    ]
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
    if all(True in row for row in table) and all(
        True in column for column in zip(*table, strict=True)
    ):
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
        isinstance(item, Formula) and infinite(item.node) for item in (*gold.items, *answer.items)
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
    if len(gold.items) == len(answer.items):
        if _as_sets(gold.items, answer.items):
            return True
        if brackets_differ(gold.items, answer.items):
            return False
    return False if spans_differ(gold.items, answer.items) else None


def _joined_sequence(gold: Joined, answer: Sequenced) -> bool | None:
    return False if spans_differ(gold.items, [answer]) else None


def _joined_formula(gold: Joined, answer: Formula) -> bool | None:
    intervals = all(isinstance(item, Sequenced) for item in gold.items)
    return False if intervals and not answer.symbols - {"pi", "e"} else None


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
        return _both_named(gold, answer)
    if isinstance(gold, Named):
        if isinstance(answer, Equation):
            return equations(_equation(gold), answer)
        verdicts = [compare(value, answer) for value in (gold.value, *gold.others)]
    else:
        assert isinstance(answer, Named)
        if isinstance(gold, Equation):
            return equations(gold, _equation(answer))
        verdicts = [compare(gold, value) for value in (answer.value, *answer.others)]
    if verdicts[0] is False and any(verdict is not False for verdict in verdicts):
        return None
    return verdicts[0]


_BOUND = re.compile(r"([A-Za-z])\(([a-z])\)")


def _both_named(gold: Named, answer: Named) -> bool | None:
    one, other = _BOUND.fullmatch(gold.name), _BOUND.fullmatch(answer.name)
    if one and other and one[1] == other[1] and one[2] != other[2]:
        # f(n) = n is f(x) = x.
        if not isinstance(answer.value, Formula) or one[2] in answer.value.symbols:
            return None
        value = Formula(renamed(answer.value.node, other[2], one[2]))
        answer = Named(gold.name, value, answer.others)
    equal = compare(gold.value, answer.value)
    if gold.name == answer.name:
        return None if equal is False and (gold.others or answer.others) else equal
    if equal is False and "(" not in gold.name + answer.name:
        return equations(_equation(gold), _equation(answer))
    return None


def _equation_value(answer: Equation, gold: Form) -> bool | None:
    """A value beside an equation: surely different where it is neither side."""
    if not isinstance(gold, Formula):
        return None
    sides = [side for side in (answer.left, answer.right) if side is not None]
    return False if all(_try(gold, side) is False for side in sides) else None


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
    if other.symbols - {"pi", "e", "i"} or infinite(other.node):
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
    plain = all(_numeric(item) for item in other.items)
    endless = any(isinstance(i, Formula) and infinite(i.node) for i in other.items)
    spoken = set(words.text.split())
    if not plain or endless or len(other.items) < 2 or words.text == ELLIPSIS:
        return None
    return None if spoken & (_COUNTING | {"all", "every", "any"}) else False


def _numeric(form: Form) -> bool:
    if isinstance(form, Sequenced):
        return all(_numeric(item) for item in form.items)
    return isinstance(form, Formula) and not form.symbols - {"pi", "e", "i"}


def _based(gold: Based, answer: Based) -> bool | None:
    if gold.base == answer.base:
        return gold.digits == answer.digits
    try:
        values = int(gold.digits, gold.base), int(answer.digits, answer.base)
    except ValueError:
        return None
    return None if values[0] == values[1] else False


def _based_formula(gold: Based, answer: Formula) -> bool | None:
    """A base may be left out: 204 answers 204_5. Its value in base ten is not settled here."""
    value = answer.exact.rational if answer.exact else None
    if value is None or answer.decimal:
        return None
    if str(value) == gold.digits:
        return True
    try:
        return None if int(gold.digits, gold.base) == value else False
    except ValueError:
        return None


def _colons(gold: Colons, answer: Colons) -> bool | None:
    if len(gold.items) != len(answer.items):
        return None
    if _in_order(gold.items, answer.items):
        return True
    pairs = list(zip(gold.items, answer.items, strict=True))
    if any(isinstance(item, Words) for item in (*gold.items, *answer.items)):
        return False if any(_try(one, other) is False for one, other in pairs) else None
    values = [(_rational(one), _rational(other)) for one, other in pairs]
    # 2:4 is 1:2 as a ratio, not as a time.
    crossed = [values[0][0] * other == one * values[0][1] for one, other in values]
    return None if all(crossed) and all(one and other for one, other in values) else False


def _rational(form: Form) -> Fraction:
    value = form.exact.rational if isinstance(form, Formula) and form.exact else None
    if value is None:
        raise TooHard
    return value


def _equation(named: Named) -> Equation:
    if named.others:
        raise TooHard
    return Equation(named.left, named.value)


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
    ((Equation, Formula), _equation_value),
    ((Equation, Equation), equations),
)
