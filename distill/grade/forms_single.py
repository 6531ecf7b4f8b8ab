"""Single values: a formula with what may follow it, digits in a base, words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from distill.grade import forms_units
from distill.grade.forms_exact import TooHard
from distill.grade.forms_parse import formula
from distill.grade.forms_shapes import Based, Form, Formula, Many, Words
from distill.grade.forms_tokens import Token


def with_unit(found: Sequence[Token]) -> Form:
    """A formula with what may follow it: percent, degrees, a unit. `\\pm` makes two of it."""
    rest = list(found)
    if rest and rest[0].kind == "text":
        raise TooHard
    percent = degrees = False
    unit: list[str] = []
    while rest:
        last = rest[-1]
        if last.text in ("%", "\\%") or (
            last.kind in ("word", "text") and last.text.lower() in forms_units.PERCENT
        ):
            rest, percent = rest[:-1], True
        elif (size := _circle(rest)) > 0:
            rest, degrees = rest[:-size], True
        elif (size := _unit(rest)) > 0:
            unit.insert(0, " ".join(token.text for token in rest[-size:]))
            rest = rest[:-size]
            if len(rest) > 2 and rest[-1].text in ("cdot", "/") and _unit(rest[:-1]):
                rest.pop()
        else:
            break
    if not rest:
        raise TooHard
    words = " ".join(unit)
    if not forms_units.readable(re.sub(r"\^ (?:\{ )?(?:- )?\d(?: \})?", "", words)):
        raise TooHard
    if len(rest) == 2 and rest[0].kind == "number" and rest[1].text in forms_units.KNOWN:
        raise TooHard  # 5 m may be a length or a product
    if any(token.text in ("pm", "mp") for token in rest if token.kind == "command"):
        nodes = [formula(rest, sign) for sign in (1, -1)]
        return Many([Formula(node, percent, degrees, words) for node in nodes])
    return Formula(formula(rest), percent, degrees, words)


def _circle(found: Sequence[Token]) -> int:
    """How many tokens at the end are a degree sign."""
    texts = [token.text for token in found[-4:]]
    if texts[-2:] == ["^", "circ"]:
        return 2
    return 4 if texts == ["^", "{", "circ", "}"] else 0


def _unit(found: Sequence[Token]) -> int:
    r"""How many tokens at the end are words: `cm`, `\text{ cm}^2`, `square feet`."""
    end, size = len(found), 0
    texts = [token.text for token in found]
    for tail in (1, 2, 3, 4, 5):
        # ^2, ^{2}, ^{-1}
        if end > tail and texts[-tail] == "^":
            inner = "".join(texts[-tail + 1 :]) if tail > 1 else ""
            if re.fullmatch(r"\{?-?[1-4]\}?", inner):
                size = tail
            break
    if end <= size + 1:
        return 0
    token = found[end - size - 1]
    if token.kind == "text":
        return size + 1
    if token.kind != "word":
        return 0
    before = found[end - size - 2]
    is_unit = token.text in forms_units.SHORT or len(token.text) > 3
    near = before.kind in ("number", "e", "word", "text") or before.text in ("}", ")")
    return (
        size + 1 if near and (is_unit or (token.spaced and token.text in forms_units.KNOWN)) else 0
    )


def based(found: Sequence[Token]) -> Form:
    inner = [token for token in found[2:] if token.text not in ("{", "}")]
    if len(inner) != 1 or inner[0].kind != "number" or not inner[0].text.isdigit():
        raise TooHard
    base = int(inner[0].text[:3])
    if not 2 <= base <= 36:
        raise TooHard
    return Based(found[0].text.lstrip("0"), base)


def words_of(found: Sequence[Token]) -> Words | None:
    """Text, if the answer is nothing else. `BAC` is one too: an order of letters, no product."""
    if len(found) == 1 and found[0].kind == "word" and found[0].text.isupper():
        return Words(found[0].text.lower())
    if any(
        token.kind not in ("word", "text", "letter") and token.text not in "-'.!?,"
        for token in found
    ):
        return None
    if not any(
        token.kind == "text" or (token.kind == "word" and len(token.text) > 3) for token in found
    ):
        return None
    text = " ".join(token.text for token in found).lower()
    if re.search(r"\d", text) or len(text) > 200:
        raise TooHard
    return Words(" ".join(re.findall(r"[^\W\d_]+", text)))
