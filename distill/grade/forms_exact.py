r"""Exact values of formulas: quotients of polynomials over symbols and roots of primes.

A formula is a `Node` (see `forms_parse`). `exact` brings it into a form in which equal forms are
equal values: a polynomial is a dict from monomials to rational coefficients, a monomial the sorted
powers of its atoms, where `√12` is 2 times the atom `#3` to the power 1/2. Products of
fractional powers of primes are linearly independent over the rationals (Besicovitch 1940), so for
numbers made of rationals and real roots different forms are different values too.

Everything is bounded: too many terms, digits or steps raise `TooHard`, which says nothing about
the value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Node = tuple[Any, ...]
"""("n", Fraction, decimal) | ("s", name) | ("inf",) | (operator, operand, ...)."""

Monomial = tuple[tuple[str, Fraction], ...]
Poly = dict[Monomial, Fraction]

MAX_TERMS = 48
MAX_BITS = 40_000
MAX_WORK = 6_000
ONE: Poly = {(): Fraction(1)}
HALF = Fraction(1, 2)


class TooHard(Exception):
    """The exact path does not settle this; nothing is said about its value."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A numerator and a denominator, both polynomials; the denominator is not zero."""

    above: Poly
    below: Poly

    @property
    def rational(self) -> Fraction | None:
        """The value where it is a rational number."""
        above, below = _constant(self.above), _constant(self.below)
        return None if above is None or below is None else above / below


def exact(node: Node) -> Ratio:
    """The canonical form of a formula. Raises TooHard."""
    return _Exact().value(node)


def same(left: Ratio, right: Ratio) -> bool:
    """True where the two are equal as formulas. Raises TooHard where that costs too much."""
    if left.below == right.below:
        return left.above == right.above
    work = _Exact()
    return work.times(left.above, right.below) == work.times(right.above, left.below)


def proportional(left: Ratio, right: Ratio) -> bool:
    """True where one numerator is the other times one term, so that both are zero together."""
    if len(left.above) != len(right.above) or not left.above:
        return False
    work = _Exact()
    first, coefficient = next(iter(left.above.items()))
    for monomial, other in right.above.items():
        inverse = tuple((atom, -exponent) for atom, exponent in first if atom[0] not in "#i")
        if len(inverse) != len(first):
            return left.above == right.above
        term, factor = _merge(monomial, inverse)
        if work.times(left.above, {term: other * factor / coefficient}) == right.above:
            return True
    return False


def key(value: Ratio) -> str:
    """A name of the value: equal names are equal values."""
    parts = [
        "+".join(f"{c}*{m}" for m, c in sorted(_plain(p).items(), key=repr))
        for p in (value.above, value.below)
    ]
    return "/".join(parts)


def _plain(poly: Poly) -> dict[str, str]:
    return {"*".join(f"{a}^{e}" for a, e in m): str(c) for m, c in poly.items()}


def _constant(poly: Poly) -> Fraction | None:
    if not poly:
        return Fraction(0)
    return poly.get(()) if len(poly) == 1 else None


def check_bits(value: Fraction) -> Fraction:
    """The value itself; raises TooHard where it has too many digits."""
    if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
        raise TooHard
    return value


def integer_power(base: Fraction, exponent: int) -> Fraction:
    """base ** exponent, with its size looked at before it is computed."""
    bits = max(abs(base.numerator).bit_length(), base.denominator.bit_length())
    if abs(exponent) * bits > MAX_BITS or (base == 0 and exponent <= 0):
        raise TooHard
    return Fraction(base**exponent)


class _Exact:
    """One evaluation: counts its steps."""

    def __init__(self) -> None:
        self.work = 0

    def spend(self, steps: int) -> None:
        self.work += steps
        if self.work > MAX_WORK:
            raise TooHard

    def value(self, node: Node) -> Ratio:
        """The canonical form of a node."""
        self.spend(1)
        kind = node[0]
        if kind == "n":
            return _number(node[1])
        if kind == "s":
            return _atom(node[1])
        if kind == "f":
            return self.function(node)
        method = getattr(self, _METHODS.get(kind, ""), None)
        if method is None:
            raise TooHard
        result: Ratio = method(*(self.value(part) for part in node[1:]))
        return result

    def add(self, left: Ratio, right: Ratio) -> Ratio:
        if left.below == right.below:
            return Ratio(self.plus(left.above, right.above), left.below)
        above = self.plus(self.times(left.above, right.below), self.times(right.above, left.below))
        return Ratio(above, self.times(left.below, right.below))

    def negative(self, value: Ratio) -> Ratio:
        return Ratio({m: -c for m, c in value.above.items()}, value.below)

    def multiply(self, left: Ratio, right: Ratio) -> Ratio:
        return Ratio(self.times(left.above, right.above), self.times(left.below, right.below))

    def divide(self, left: Ratio, right: Ratio) -> Ratio:
        if not right.above:
            raise TooHard
        return _tidy(
            Ratio(self.times(left.above, right.below), self.times(left.below, right.above))
        )

    def plus(self, left: Poly, right: Poly) -> Poly:
        total = dict(left)
        for monomial, coefficient in right.items():
            _gather(total, monomial, coefficient)
        self.spend(len(right))
        if len(total) > MAX_TERMS:
            raise TooHard
        return total

    def times(self, left: Poly, right: Poly) -> Poly:
        self.spend(len(left) * len(right))
        total: Poly = {}
        for m, c in left.items():
            for n, d in right.items():
                monomial, factor = _merge(m, n)
                _gather(total, monomial, check_bits(c * d * factor))
        if len(total) > MAX_TERMS:
            raise TooHard
        return total

    def power(self, base: Ratio, exponent: Ratio) -> Ratio:
        wanted = exponent.rational
        if wanted is None:
            return _atom(f"pow({key(base)},{key(exponent)})")
        number = base.rational
        if number is not None and wanted.denominator == 1:
            return _number(integer_power(number, int(wanted)))
        if wanted < 0:
            return self.divide(_number(Fraction(1)), self.power(base, _number(-wanted)))
        if wanted.denominator == 1:
            return self.whole(base, int(wanted))
        return self.root(base, wanted)

    def whole(self, base: Ratio, exponent: int) -> Ratio:
        if exponent > 24:
            raise TooHard
        result = _number(Fraction(1))
        for _ in range(exponent):
            result = self.multiply(result, base)
        return result

    def root(self, base: Ratio, exponent: Fraction) -> Ratio:
        """A fractional power: of numbers by their primes, of a single symbol, else an atom."""
        if exponent.denominator > 60 or exponent.numerator > 60:
            raise TooHard
        value = base.rational
        if value is not None:
            return self.root_of(value, exponent)
        if base.below == ONE and len(base.above) == 1:
            ((monomial, coefficient),) = base.above.items()
            if len(monomial) == 1 and monomial[0][1] == 1 and monomial[0][0] != "i":
                part = _power_of(monomial[0][0], exponent)
                return self.multiply(self.root_of(coefficient, exponent), part)
        return _power_of(f"root({key(base)})", exponent)

    def root_of(self, value: Fraction, exponent: Fraction) -> Ratio:
        if value == 0:
            return _number(Fraction(0))
        if value < 0:
            # Only square roots of negative numbers have one meaning everywhere.
            if exponent.denominator != 2 or exponent.numerator != 1:
                raise TooHard
            return self.multiply(_atom("i"), self.root_of(-value, exponent))
        coefficient, powers = Fraction(1), dict[str, Fraction]()
        for number, sign in ((value.numerator, 1), (value.denominator, -1)):
            for prime, count in _factors(number).items():
                total = sign * count * exponent
                whole = total.numerator // total.denominator
                coefficient *= integer_power(Fraction(prime), whole) if whole else 1
                if total != whole:
                    powers[f"#{prime}"] = total - whole
        self.spend(20)
        return Ratio({tuple(sorted(powers.items())): coefficient}, ONE)

    def factorial(self, value: Ratio) -> Ratio:
        number = value.rational
        if number is None:
            return _atom(f"fact({key(value)})")
        if number.denominator != 1 or not 0 <= number <= 3000:
            raise TooHard
        self.spend(int(number))
        return _number(check_bits(Fraction(math.factorial(int(number)))))

    def binomial(self, above: Ratio, below: Ratio) -> Ratio:
        n, k = above.rational, below.rational
        if n is None or k is None:
            return _atom(f"binom({key(above)},{key(below)})")
        if n.denominator != 1 or k.denominator != 1 or not 0 <= k <= n <= 5000:
            raise TooHard
        self.spend(int(min(k, n - k)))
        return _number(check_bits(Fraction(math.comb(int(n), int(k)))))

    def function(self, node: Node) -> Ratio:
        """A named function of its arguments: an atom, except for what is plain arithmetic."""
        name, *arguments = node[1:]
        values = [self.value(argument) for argument in arguments]
        number = values[0].rational if values else None
        if number is not None and name in ("abs", "floor", "ceil"):
            if name == "abs":
                return _number(abs(number))
            return _number(Fraction(math.floor(number) if name == "floor" else math.ceil(number)))
        return _atom(f"{name}({';'.join(key(value) for value in values)})")


_METHODS = {
    "+": "add",
    "-": "negative",
    "*": "multiply",
    "/": "divide",
    "^": "power",
    "!": "factorial",
    "binom": "binomial",
}


def _number(value: Fraction) -> Ratio:
    return Ratio({(): value} if value else {}, ONE)


def _atom(name: str) -> Ratio:
    return Ratio({((name, Fraction(1)),): Fraction(1)}, ONE)


def _power_of(name: str, exponent: Fraction) -> Ratio:
    return Ratio({((name, exponent),): Fraction(1)}, ONE)


def _tidy(value: Ratio) -> Ratio:
    # A quotient by a single term without roots is a polynomial again if it divides every term.
    if len(value.below) == 1:
        ((monomial, coefficient),) = value.below.items()
        if not monomial and coefficient != 1:
            return Ratio({m: c / coefficient for m, c in value.above.items()}, ONE)
    return value


def _gather(total: Poly, monomial: Monomial, coefficient: Fraction) -> None:
    new = total.get(monomial, 0) + coefficient
    if new:
        total[monomial] = Fraction(new)
    else:
        total.pop(monomial, None)


def _merge(left: Monomial, right: Monomial) -> tuple[Monomial, Fraction]:
    """The product of two monomials: the new monomial, and the number that came out of it."""
    if not left or not right:
        return left or right, Fraction(1)
    powers, factor = dict(left), Fraction(1)
    for atom, exponent in right:
        total = powers.get(atom, Fraction(0)) + exponent
        if atom == "i":
            factor *= (1, 1, -1, -1)[int(total) % 4]
            total = Fraction(int(total) % 2)
        elif atom[0] == "#" and total >= 1:
            factor *= int(atom[1:])
            total -= 1
        if total:
            powers[atom] = total
        else:
            powers.pop(atom, None)
    return tuple(sorted(powers.items())), factor


def _factors(number: int) -> dict[int, int]:
    if number.bit_length() > 200:
        raise TooHard
    found: dict[int, int] = {}
    prime = 2
    while prime * prime <= number and prime < 3000:
        while number % prime == 0:
            found[prime] = found.get(prime, 0) + 1
            number //= prime
        prime += 1 if prime == 2 else 2
    if number >= 3000**2:
        raise TooHard
    if number > 1:
        found[number] = found.get(number, 0) + 1
    return found
