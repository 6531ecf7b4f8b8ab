r"""What an answer is: a formula, a tuple, a set, an interval, a matrix, an equation, words.

`readings` gives every sensible reading of a text: `1,234` in a bracket is a number or two, `0,5`
a decimal or a list. Raises `TooHard` for what is not surely understood.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from distill.grade.forms_brackets import depths_of, encloses, relation, split, subscripts
from distill.grade.forms_exact import TooHard
from distill.grade.forms_parse import formula
from distill.grade.forms_shapes import (
    ELLIPSIS,
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
    names,
)
from distill.grade.forms_single import based, with_unit, words_of
from distill.grade.forms_tokens import Token, clean, tokens

MAX_ITEMS = 40
ELLIPSES = frozenset((".", "ldots", "dots", "cdots"))
_MERGED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_DECIMAL_COMMA = re.compile(r"([-+]?\d+),(\d+)")
_SIGNED_E = re.compile(r"(?<=\d)[eE](?=[-+]\d)")
_MATRIX = ("pmatrix", "bmatrix", "vmatrix", "matrix", "array", "Bmatrix", "smallmatrix")
_RELATIONS = {"<": "<", ">": ">", "le": "<=", "ge": ">="}


def readings(text: str) -> list[Form]:
    """All readings of an answer. Raises TooHard where any of them is not understood."""
    texts = [clean(text)]
    plain = texts[0]
    if not plain:
        raise TooHard
    if _MERGED.search(plain):
        merged = _MERGED.sub(lambda m: m.group().replace(",", ""), plain)
        alone = "," not in merged and not re.search(r"[(\[{]", merged)
        texts = [merged] if alone else [merged, plain]
    elif comma := _DECIMAL_COMMA.fullmatch(plain):
        point = f"{comma[1]}.{comma[2]}"
        short = len(comma[1].lstrip("+-")) > 3 and len(comma[2]) < 3
        texts = [point] if short else [point, plain]
    if _SIGNED_E.search(plain) and not re.fullmatch(r"[-+]?[\d.]+[eE][-+]\d+\D*", plain):
        texts += [_SIGNED_E.sub(" e ", text) for text in texts]
    found, failed = [], None
    for text in texts:
        try:
            found.append(read(tokens(text)))
        except TooHard as error:
            failed = error
    if not found:
        raise failed or TooHard
    return found


def read(found: Sequence[Token]) -> Form:
    """The form of a whole answer."""
    if not found:
        raise TooHard
    words = words_of(found)
    if words is not None:
        return words
    depths = depths_of(found)
    parts, kinds = split(found, depths)
    if len(parts) == 1:
        return _part(parts[0])
    if len(parts) > MAX_ITEMS:
        raise TooHard
    items = [_part(part) for part in parts]
    if "or" in kinds and all(isinstance(i, (Sequenced, Joined)) and _certain(i) for i in items):
        if kinds != {"or"}:
            raise TooHard
        return Joined(_flat(items, Joined))
    if any(_certain(item) for item in items):
        raise TooHard
    return Many(_flat(items, Many))


def _certain(form: Form) -> bool:
    if isinstance(form, Joined):
        return all(_certain(item) for item in form.items)
    return isinstance(form, Sequenced) and form.certain


def _flat(items: list[Form], kind: type) -> list[Form]:
    flat: list[Form] = []
    for item in items:
        if isinstance(item, (Many, Joined)) and isinstance(item, kind) and not _braced(item):
            flat.extend(item.items)
        else:
            flat.append(item)
    return flat


def _braced(form: Form) -> bool:
    return isinstance(form, Many) and form.braces


def _part(found: Sequence[Token]) -> Form:
    """One part of an answer: a relation, a union or a value."""
    depths = depths_of(found)
    at = [
        i
        for i, (token, depth) in enumerate(zip(found, depths, strict=True))
        if depth == 0 and relation(token)
    ]
    if at:
        pieces = [found[i + 1 : j] for i, j in zip([-1, *at], [*at, len(found)], strict=True)]
        signs = [relation(found[i]) for i in at]
        if not all(pieces):
            raise TooHard
        return _related(pieces, signs)
    cups = [
        i
        for i, (token, depth) in enumerate(zip(found, depths, strict=True))
        if depth == 0 and token.kind == "command" and token.text == "cup"
    ]
    if cups:
        pieces = [found[i + 1 : j] for i, j in zip([-1, *cups], [*cups, len(found)], strict=True)]
        return Joined([_value(piece) for piece in pieces])
    return _value(found)


def _related(pieces: Sequence[Sequence[Token]], signs: list[str]) -> Form:
    if signs == ["in"]:
        return _part(pieces[1])
    if signs == ["sim"]:
        # 67 ~ 75 is neither of them.
        return Sequenced("~", [_value(piece) for piece in pieces], "~", True)
    if set(signs) == {"="}:
        return _equal(pieces)
    if set(signs) <= set(_RELATIONS):
        return _inequality(pieces, [_RELATIONS[sign] for sign in signs])
    raise TooHard


def _equal(pieces: Sequence[Sequence[Token]]) -> Form:
    first = pieces[0]
    named = not any(
        token.kind in ("number", "e", "text") or token.text in ("+", "-", "*", "^")
        for token, under in zip(first, subscripts(first), strict=True)
        if not under
    )
    if not named:
        if len(pieces) != 2:
            raise TooHard
        return Equation(_left(first), _value(pieces[1]))
    values = [_value(piece) for piece in pieces[1:]]
    if isinstance(values[-1], (Words, Named)):
        raise TooHard
    name = "".join(token.text for token in first)
    return Named(name, values[-1], values[:-1], _left(first))


def _left(found: Sequence[Token]) -> Formula | None:
    try:
        return Formula(formula(found))
    except TooHard:
        return None


def _inequality(pieces: Sequence[Sequence[Token]], signs: list[str]) -> Form:
    """An interval, for one symbol between or beside numbers."""
    sides = [formula(piece) for piece in pieces]
    infinite: Form = Formula(("inf",))
    low: Form = Formula(("-", ("inf",)))
    if signs[0].startswith(">"):
        sides, signs = sides[::-1], [s.replace(">", "<") for s in signs[::-1]]
    if any(sign.startswith(">") for sign in signs):
        raise TooHard
    symbolic = [bool(names(side) - {"pi", "e"}) for side in sides]
    opened = ["(" if sign == "<" else "[" for sign in signs]
    closed = [")" if sign == "<" else "]" for sign in signs]
    alone = [side[0] == "s" or (side[0] == "f" and side[1].startswith("call:")) for side in sides]
    if len(sides) == 2 and alone[0] and not symbolic[1]:
        return Sequenced("(", [low, Formula(sides[1])], closed[0], True)
    if len(sides) == 2 and alone[1] and not symbolic[0]:
        return Sequenced(opened[0], [Formula(sides[0]), infinite], ")", True)
    if len(sides) == 3 and alone[1] and not symbolic[0] and not symbolic[2]:
        ends: list[Form] = [Formula(sides[0]), Formula(sides[2])]
        return Sequenced(opened[0], ends, closed[1], True)
    raise TooHard


def _value(found: Sequence[Token]) -> Form:
    """A value without relations."""
    if not found:
        raise TooHard
    words = words_of(found)
    if words is not None:
        return words
    first = found[0]
    if all(token.text in ELLIPSES for token in found):
        return Words(ELLIPSIS)
    if first.kind == "command" and first.text == "begin":
        return _matrix(found)
    if first.kind == "sign" and first.text in ("(", "[", "{", "\\{") and encloses(found):
        return _bracketed(found)
    colons = [i for i, token in enumerate(found) if token.text == ":" and token.kind == "sign"]
    if colons:
        return _colons(found, colons)
    if len(found) >= 3 and first.kind == "number" and found[1].text == "_" and first.text.isdigit():
        return based(found)
    return with_unit(found)


def _bracketed(found: Sequence[Token]) -> Form:
    opened, inner, closed = found[0].text, found[1:-1], found[-1].text
    if closed not in (")", "]", "}", "\\}"):
        return with_unit(found)
    if not inner:
        raise TooHard
    if inner[0].kind == "command" and inner[0].text == "begin":
        return _matrix(inner)
    depths = depths_of(inner)
    separators = {
        token.text
        for token, depth in zip(inner, depths, strict=True)
        if depth == 0 and token.kind == "sign" and token.text in (",", ";")
    }
    braces = opened in ("{", "\\{")
    if not separators:
        if opened == "\\{":
            return Many([_part(inner)], braces=True)
        if braces or opened + closed == "()":
            return _part(inner) if braces else with_unit(found)
        if opened + closed == "[]":
            return with_unit(found)
        raise TooHard
    parts, kinds = split(inner, depths)
    if len(parts) > MAX_ITEMS or kinds & {"and", "or"}:
        raise TooHard
    items = [_part(part) for part in parts]
    if len(items) != 1 + sum(
        1
        for token, depth in zip(inner, depths, strict=True)
        if depth == 0 and token.text in separators
    ):
        raise TooHard
    if braces:
        return Many(items, braces=True)
    return Sequenced(opened, items, closed, opened + closed in ("[)", "(]"))


def _colons(found: Sequence[Token], colons: list[int]) -> Form:
    if len(colons) > 3:
        raise TooHard
    pieces = [found[i + 1 : j] for i, j in zip([-1, *colons], [*colons, len(found)], strict=True)]
    items: list[Form] = []
    for piece in pieces:
        if all(token.text in ELLIPSES for token in piece):
            items.append(Words(ELLIPSIS))
            continue
        item = with_unit(piece)
        if not isinstance(item, Formula) or item.unit or item.symbols:
            raise TooHard
        items.append(item)
    return Colons(items)


def _matrix(found: Sequence[Token]) -> Form:
    texts = [token.text for token in found]
    if len(texts) < 8 or texts[1] != "{" or texts[3] != "}" or texts[2] not in _MATRIX:
        raise TooHard
    if texts[-4:-1] != ["end", "{", texts[2]] or texts.count("begin") != 1:
        raise TooHard
    body = list(found[4:-4])
    if texts[2] == "array":
        if not body or body[0].text != "{":
            raise TooHard
        body = body[[token.text for token in body].index("}") + 1 :]
    rows: list[list[list[Token]]] = [[[]]]
    for token in body:
        if token.text == "\\\\":
            rows.append([[]])
        elif token.text == "&":
            rows[-1].append([])
        else:
            rows[-1][-1].append(token)
    if rows[-1] == [[]]:
        rows.pop()
    if sum(map(len, rows)) > MAX_ITEMS:
        raise TooHard
    return Matrix([[_value(cell) for cell in row] for row in rows])
