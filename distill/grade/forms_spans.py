"""Unions of intervals: where their ends or brackets show that they are different."""

from __future__ import annotations

from itertools import pairwise

from distill.grade import forms_float
from distill.grade.forms_exact import TooHard
from distill.grade.forms_float import Point
from distill.grade.forms_formula import infinite
from distill.grade.forms_shapes import Form, Formula, Sequenced

Span = tuple[float, float]


def spans_differ(gold: list[Form], answer: list[Form]) -> bool:
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
                    if not inside:
                        return True
    return False


def brackets_differ(gold: list[Form], answer: list[Form]) -> bool:
    """True for separate intervals with the same ends and other brackets."""
    sides = []
    for forms in (gold, answer):
        spans = sorted(zip(_spans(forms), forms, strict=True), key=lambda pair: pair[0])
        if any(a[0][1] > b[0][0] - 1e-6 for a, b in pairwise(spans)):
            return False
        sides.append(spans)
    found = False
    for (one, left), (other, right) in zip(*sides, strict=True):
        if any(abs(a - b) > 1e-9 * (1 + abs(a)) for a, b in zip(one, other, strict=True)):
            return False
        assert isinstance(left, Sequenced)
        assert isinstance(right, Sequenced)
        found |= left.opened != right.opened and abs(one[0]) < 1e299
        found |= left.closed != right.closed and abs(one[1]) < 1e299
    return found


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
    if sign := infinite(form.node):
        return sign * 1e300
    return forms_float.value(form.node, Point())[0].real
