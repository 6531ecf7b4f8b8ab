"""Values of formulas in floating point, each with a bound on its error.

This only ever shows that two formulas are different: where their values at the same point are
further apart than both errors. Symbols get fixed values that depend on their names without regard
to case. `f(x)` may be a function, a product or another way to write the symbol `f`: a point
says which.
"""

from __future__ import annotations

import cmath
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from distill.grade.forms_exact import Node, TooHard

EPSILON = 4e-16
TINY = 1e-300
"""Added to every error, so that what underflows to zero does not pass for zero."""

Bounded = tuple[complex, float]
"""A value and how far it may be from the true one."""

CONSTANTS = {"pi": math.pi, "e": math.e}
_REAL = {
    "sin": (math.sin, 1.0),
    "cos": (math.cos, 1.0),
    "arctan": (math.atan, 1.0),
    "tanh": (math.tanh, 1.0),
}
_DERIVED = {
    "tan": ("sin", "cos"),
    "cot": ("cos", "sin"),
    "sec": (None, "cos"),
    "csc": (None, "sin"),
}


CALLS = ("function", "product", "symbol")
"""The ways to read `f(x)`."""

WIDE, NARROW, WHOLE, BROKEN = 1.2, 0.01, 0.0, -1.0
"""How far symbols' values spread around 1: the narrow ones bear high powers. The last two are
numbers from 11 to 48, whole and not, at which binomials and floors differ."""


@dataclass(frozen=True, slots=True)
class Point:
    """Where formulas are compared: values of symbols, the spread of others, what a call is."""

    values: Mapping[str, complex] = field(default_factory=dict)
    calls: str = "function"
    spread: float = WIDE

    def of(self, name: str) -> complex:
        """The value of a symbol."""
        if name in self.values:
            return self.values[name]
        if name in CONSTANTS:
            return CONSTANTS[name]
        code = zlib.crc32(name.lower().encode())
        if self.spread in (WHOLE, BROKEN):
            return 11.0 + code % 37 + (0.37 if self.spread == BROKEN else 0)
        return 1 + self.spread * ((code % 99_991) / 99_991 - 0.5)


def value(node: Node, point: Point) -> Bounded:
    """The value at a point, with its error. Raises TooHard."""
    try:
        return _checked(node, point)
    except (OverflowError, ZeroDivisionError, ValueError):
        raise TooHard from None


def _checked(node: Node, point: Point) -> Bounded:
    found, error = _value(node, point)
    if not (math.isfinite(found.real) and math.isfinite(found.imag) and math.isfinite(error)):
        raise TooHard
    return found, error


def _value(node: Node, point: Point) -> Bounded:
    found, error = _apply(node, point)
    return found, error + TINY


def _apply(node: Node, point: Point) -> Bounded:
    kind = node[0]
    if kind == "n":
        number = complex(float(node[1]))
        return number, EPSILON * abs(number)
    if kind == "s":
        number = complex(point.of(node[1]))
        return number, EPSILON * abs(number)
    if kind == "f":
        arguments = [_value(part, point) for part in node[2:]]
        if node[1].startswith("call:"):
            return _call(node[1][5:], arguments[0], point)
        return _function(node[1], arguments)
    if kind not in ("+", "-", "*", "/", "^", "!", "binom"):
        raise TooHard
    parts = [_value(part, point) for part in node[1:]]
    if kind == "!":
        return _factorial(parts[0])
    if kind == "-":
        return -parts[0][0], parts[0][1]
    (a, da), (b, db) = parts
    if kind == "+":
        total = a + b
        return total, da + db + EPSILON * (abs(a) + abs(b))
    if kind == "*":
        return _times((a, da), (b, db))
    if kind == "/":
        return _divide((a, da), (b, db))
    if kind == "^":
        return _power((a, da), (b, db))
    return _binomial((a, da), (b, db))


def _call(name: str, argument: Bounded, point: Point) -> Bounded:
    (x, error), factor = argument, complex(point.of(name))
    if point.calls == "symbol":
        return factor, EPSILON
    if point.calls == "product":
        return factor * x, abs(factor) * error + EPSILON * abs(factor * x)
    if x.imag:
        raise TooHard
    # Some smooth function that belongs to the name.
    return complex(2 + math.sin(3 * factor.real * x.real + factor.real)), 5 * error + 8 * EPSILON


def _divide(left: Bounded, right: Bounded) -> Bounded:
    (a, da), (b, db) = left, right
    if abs(b) <= 100 * db:
        raise TooHard
    quotient = a / b
    return quotient, (da + abs(quotient) * db) / (abs(b) - db) + EPSILON * abs(quotient)


def _power(base: Bounded, exponent: Bounded) -> Bounded:
    (a, da), (b, db) = base, exponent
    if abs(b) > 1e4:
        raise TooHard
    whole = b.imag == 0 and db < 1e-12 and abs(b.real - round(b.real)) < 1e-12
    if whole:
        power = complex(a) ** round(b.real)
        rate = abs(b.real) * da / abs(a) if abs(a) > 100 * da else None
        if rate is None:
            if b.real < 1 or abs(a) + da > 1:
                raise TooHard
            return power, (abs(a) + da) ** round(b.real)
        return power, 2 * abs(power) * (rate + EPSILON * (1 + abs(b.real)))
    if a.imag == 0 and a.real < 0 and b == 0.5 and -a.real > 100 * da:
        (root, error) = _power((-a, da), exponent)
        return 1j * root, error
    if a.imag or a.real <= 100 * da:
        raise TooHard
    power = cmath.exp(b * math.log(a.real))
    rate = abs(b) * da / a.real + abs(math.log(a.real)) * db
    return power, 2 * abs(power) * (rate + EPSILON * (2 + abs(b * math.log(a.real))))


def _factorial(operand: Bounded) -> Bounded:
    number, error = operand
    whole = round(number.real)
    if number.imag or error > 1e-9 or abs(number.real - whole) > 1e-9 or not 0 <= whole <= 150:
        raise TooHard
    found = complex(float(math.factorial(whole)))
    return found, EPSILON * abs(found)


def _binomial(above: Bounded, below: Bounded) -> Bounded:
    (n, dn), (k, dk) = above, below
    rest = n - k, dn + dk
    return _divide(_factorial(above), _times(_factorial(below), _factorial(rest)))


def _times(left: Bounded, right: Bounded) -> Bounded:
    (a, da), (b, db) = left, right
    return a * b, abs(a) * db + abs(b) * da + da * db + EPSILON * abs(a * b)


def _function(name: str, arguments: list[Bounded]) -> Bounded:
    x, error = arguments[0]
    if x.imag and name != "abs":
        raise TooHard
    if name in _REAL:
        function, slope = _REAL[name]
        return complex(function(x.real)), slope * error + EPSILON * (1 + abs(x))
    if name in _DERIVED:
        above, below = _DERIVED[name]
        top = _function(above, [(x, error)]) if above else (complex(1), 0.0)
        return _divide(top, _function(below, [(x, error)]))
    if name in ("ln", "logb"):
        return _logarithm(name, arguments)
    if name in ("arcsin", "arccos") and abs(x.real) < 1 - 1e-6:
        found = complex(math.asin(x.real) if name == "arcsin" else math.acos(x.real))
        return found, 2 * error / math.sqrt(1 - x.real**2) + 4 * EPSILON
    if name == "abs":
        return complex(abs(x)), error
    if name in ("floor", "ceil") and not x.imag:
        low, high = x.real - error - 1e-9, x.real + error + 1e-9
        step = math.floor if name == "floor" else math.ceil
        if step(low) == step(high):
            return complex(step(low)), 0.0
    raise TooHard


def _logarithm(name: str, arguments: list[Bounded]) -> Bounded:
    (x, error), *more = arguments
    if x.imag or x.real <= 100 * error:
        raise TooHard
    found = complex(math.log(x.real)), 2 * error / x.real + EPSILON * (1 + abs(math.log(x.real)))
    if name == "ln":
        return found
    return _divide(found, _logarithm("ln", more))
