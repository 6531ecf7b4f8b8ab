"""Units after a number: told from mathematics, ignored in general, compared where both are known.

math-verify ignores every unit. So does this, except that 5 cm is not 5 m: two known units of one
dimension are converted.
"""

from __future__ import annotations

import re
from fractions import Fraction

_SCALES: dict[str, dict[str, str]] = {
    "length": {
        "1/1000": "mm millimeter millimeters millimetre millimetres",
        "1/100": "cm centimeter centimeters centimetre centimetres",
        "1": "m meter meters metre metres",
        "1000": "km kilometer kilometers kilometre kilometres",
    },
    "imperial length": {
        "1": "in inch inches",
        "12": "ft foot feet",
        "36": "yd yard yards",
        "63360": "mi mile miles",
    },
    "mass": {"1/1000": "mg milligrams", "1": "g gram grams", "1000": "kg kilogram kilograms"},
    "time": {
        "1": "s sec second seconds",
        "60": "min minute minutes",
        "3600": "h hr hour hours",
        "86400": "day days",
        "604800": "week weeks",
    },
    "money": {"1": "cent cents", "100": "dollar dollars"},
    "angle": {"1": "degree degrees deg"},
    "volume": {"1/1000": "mL ml", "1": "L l liter liters litre litres"},
}
KNOWN = {
    name: (dimension, Fraction(scale))
    for dimension, scales in _SCALES.items()
    for scale, names in scales.items()
    for name in names.split()
}
PERCENT = frozenset(("percent", "pct", "percentage", "percentages"))
SHORT = frozenset(("cm", "mm", "km", "kg", "mg", "ft", "yd", "mL", "ml", "mph", "kmh", "Hz"))
"""Raw letters after a number that are a unit, not a product of symbols."""

_CHANGES = frozenset(
    re.findall(
        r"\w+",
        "or and more less least most not no million billion thousand hundred dozen half twice if "
        "when infinite infinity infinitely many pi mod modulo base plus minus times over squared "
        "cubed root between to from than about approximately remainder none undefined",
    )
)
"""Words that change a value, or leave a doubt about it."""

_SAYS_SQUARE = re.compile(r"sq(?:uare|\.)?\s|cubic\s")


def readable(words: str) -> bool:
    """True for words that can be a unit or a name of what was counted, and change no value."""
    found = re.findall(r"[A-Za-z]+", words)
    return not re.search(r"\d", words) and not (_CHANGES & {word.lower() for word in found})


def factor(gold: str, answer: str) -> Fraction | None:
    """How much of the gold's unit the answer's unit is; None where either is not known."""
    if _SAYS_SQUARE.search(gold) or _SAYS_SQUARE.search(answer):
        return None
    one, other = KNOWN.get(gold.strip(" .")), KNOWN.get(answer.strip(" ."))
    if one is None or other is None or one[0] != other[0]:
        return None
    return other[1] / one[1]
