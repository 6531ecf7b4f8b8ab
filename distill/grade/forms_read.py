r"""What an answer is: a formula, a tuple, a set, an interval, a matrix, an equation, words.

`readings` gives every sensible reading of a text: `1,234` in a bracket is a number or two, `0,5`
a decimal or a list. Raises `TooHard` for what is not surely understood.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Union

from distill.grade import forms_units
from distill.grade.forms_exact import Node, Ratio, TooHard, exact
from distill.grade.forms_parse import decimal, formula, names
from distill.grade.forms_tokens import Token, clean, tokens

MAX_ITEMS = 40
ELLIPSIS = "..."
_MERGED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_DECIMAL_COMMA = re.compile(r"([-+]?\d+),(\d+)")
_SIGNED_E = re.compile(r"(?<=\d)[eE](?=[-+]\d)")
_MATRIX = ("pmatrix", "bmatrix", "vmatrix", "matrix", "array", "Bmatrix", "smallmatrix")
_RELATIONS = {"<": "<", ">": ">", "le": "<=", "ge": ">="}


@dataclass(slots=True)
class Formula:
    """One formula; `unit` holds the words that followed it."""

    node: Node
    percent: bool = False
    degrees: bool = False
    unit: str = ""
    _exact: Ratio | None = None
    _known: bool = False

    @property
    def symbols(self) -> frozenset[str]:
        return names(self.node)

    @property
    def decimal(self) -> bool:
        return decimal(self.node)

    @property
    def exact(self) -> Ratio | None:
        """The canonical form; None where it was too hard."""
        if not self._known:
            self._known = True
            try:
                self._exact = exact(self.node)
            except (TooHard, RecursionError):
                self._exact = None
        return self._exact


@dataclass(slots=True)
class Sequenced:
    """`(a, b)`, `[a, b)`: a tuple or an interval; `certain` says that it is an interval."""

    opened: str
    items: list[Form]
    closed: str
    certain: bool = False


@dataclass(slots=True)
class Many:
    """Values in any order: `1, 2`, `{1, 2}`, `1 or 2`, `1 \\pm 2`."""

    items: list[Form]
    braces: bool = False


@dataclass(slots=True)
class Joined:
    r"""`A \\cup B`."""

    items: list[Form]


@dataclass(slots=True)
class Matrix:
    """Rows of formulas."""

    rows: list[list[Form]]


@dataclass(slots=True)
class Words:
    """Text without mathematics, in lower case."""

    text: str


@dataclass(slots=True)
class Based:
    """Digits in a stated base."""

    digits: str
    base: int


@dataclass(slots=True)
class Colons:
    """A time or a ratio, `12:30`."""

    items: list[Form]


@dataclass(slots=True)
class Named:
    """`x = 5`, `f(x) = ... = ...`: the name, the last value, and the values between."""

    name: str
    value: Form
    others: list[Form] = field(default_factory=list)
    left: Formula | None = None


@dataclass(slots=True)
class Equation:
    """An equation that gives no name a value: both sides."""

    left: Formula
    right: Formula


Form = Union[
    Formula, Sequenced, Many, Joined, Matrix, Words, Based, Colons, Named, Equation
]  # fmt: skip


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
    return [read(tokens(text)) for text in texts]


def read(found: Sequence[Token]) -> Form:
    """The form of a whole answer."""
    if not found:
        raise TooHard
    words = _words(found)
    if words is not None:
        return words
    depths = _depths(found)
    parts, kinds = _split(found, depths)
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
        flat.extend(item.items if isinstance(item, kind) and not getattr(item, "braces", 0) else [item])
    return flat


def _words(found: Sequence[Token]) -> Words | None:
    """Text, if the answer is nothing else."""
    if any(token.kind not in ("word", "text", "letter") and token.text not in "-'.!?," for token in found):
        return None
    if not any(token.kind == "text" or (token.kind == "word" and len(token.text) > 3) for token in found):
        return None
    text = " ".join(token.text for token in found).lower()
    if re.search(r"\d", text) or len(text) > 200:
        raise TooHard
    return Words(" ".join(re.findall(r"[^\W\d_]+", text)))


def _depths(found: Sequence[Token]) -> list[int]:
    """How many brackets stand open before each token. Raises TooHard where they do not pair."""
    depths: list[int] = []
    stack: list[str] = []
    for token in found:
        text = token.text if token.kind == "sign" else ""
        closes = text in (")", "]", "}", "\\}")
        if closes:
            opened = stack.pop() if stack else ""
            if (text in (")", "]")) != (opened in ("(", "[")) or (
                text in ("}", "\\}") and opened + "|" + text not in ("{|}", "\\{|\\}")
            ):
                raise TooHard
        depths.append(len(stack))
        if text in ("(", "[", "{", "\\{"):
            stack.append(text)
    if stack:
        raise TooHard
    return depths


def _split(found: Sequence[Token], depths: list[int]) -> tuple[list[list[Token]], set[str]]:
    """The parts between commas, semicolons, "and" and "or" outside brackets."""
    parts: list[list[Token]] = [[]]
    kinds: set[str] = set()
    inside = 0
    for token, depth in zip(found, depths, strict=True):
        if token.kind == "command" and token.text in ("begin", "end"):
            inside += 1 if token.text == "begin" else -1
        word = token.text.lower() if token.kind in ("word", "text") else ""
        breaks = token.kind == "sign" and token.text in (",", ";")
        if depth == 0 and not inside and (breaks or word in ("and", "or")):
            kinds.add(word or token.text)
            if parts[-1]:
                parts.append([])
            elif breaks:
                raise TooHard
            continue
        parts[-1].append(token)
    if not parts[-1]:
        parts.pop()
    if {",", ";"} <= kinds or ({"and", "or"} <= kinds) or not parts:
        raise TooHard
    return parts, kinds


def _part(found: Sequence[Token]) -> Form:
    """One part of an answer: a relation, a union or a value."""
    depths = _depths(found)
    at = [
        i
        for i, (token, depth) in enumerate(zip(found, depths, strict=True))
        if depth == 0 and _relation(token)
    ]
    if at:
        pieces = [found[i + 1 : j] for i, j in zip([-1, *at], [*at, len(found)], strict=True)]
        signs = [_relation(found[i]) for i in at]
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


def _relation(token: Token) -> str:
    if token.kind == "sign" and token.text in ("=", "<", ">"):
        return token.text
    if token.kind == "command" and token.text in ("le", "ge", "in", "<", ">", "ne", "approx"):
        return token.text
    return ""


def _related(pieces: Sequence[Sequence[Token]], signs: list[str]) -> Form:
    if signs == ["in"]:
        return _part(pieces[1])
    if set(signs) == {"="}:
        return _equal(pieces)
    if set(signs) <= set(_RELATIONS):
        return _inequality(pieces, [_RELATIONS[sign] for sign in signs])
    raise TooHard


def _equal(pieces: Sequence[Sequence[Token]]) -> Form:
    first = pieces[0]
    named = not any(
        token.kind in ("number", "e", "text") or token.text in ("+", "-", "*", "/", "frac")
        for token, under in zip(first, _under(first), strict=True)
        if not under
    )
    if not named:
        if len(pieces) != 2:
            raise TooHard
        left, right = _value(pieces[0]), _value(pieces[1])
        if not isinstance(left, Formula) or not isinstance(right, Formula):
            raise TooHard
        return Equation(left, right)
    values = [_value(piece) for piece in pieces[1:]]
    if isinstance(values[-1], (Words, Named)):
        raise TooHard
    try:
        left: Formula | None = Formula(formula(first))
    except TooHard:
        left = None
    return Named("".join(token.text for token in first), values[-1], values[:-1], left)


def _under(found: Sequence[Token]) -> list[bool]:
    """For each token whether it belongs to a subscript."""
    flags: list[bool] = []
    depth = -1
    for i, token in enumerate(found):
        begins = i > 0 and found[i - 1].text == "_"
        if depth < 0 and begins:
            flags.append(True)
            if token.text == "{":
                depth = 1
            continue
        flags.append(depth > 0)
        if depth > 0:
            depth += {"{": 1, "}": -1}.get(token.text, 0)
            depth = -1 if depth == 0 else depth
    return flags


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
    words = _words(found)
    if words is not None:
        return words
    first = found[0]
    if all(token.text in (".", "ldots", "dots", "cdots") for token in found):
        return Words(ELLIPSIS)
    if first.kind == "command" and first.text == "begin":
        return _matrix(found)
    if first.kind == "sign" and first.text in ("(", "[", "{", "\\{") and _encloses(found):
        return _bracketed(found)
    colons = [i for i, token in enumerate(found) if token.text == ":" and token.kind == "sign"]
    if colons:
        return _colons(found, colons)
    if (
        len(found) >= 3
        and first.kind == "number"
        and found[1].text == "_"
        and first.text.isdigit()
    ):
        return _based(found)
    return _formula(found)


def _encloses(found: Sequence[Token]) -> bool:
    """True if the first token's bracket is closed by the last token."""
    depths = _depths(found)
    return all(depth > 0 for depth in depths[1:-1]) and depths[-1] == 0 and len(found) > 1


def _bracketed(found: Sequence[Token]) -> Form:
    opened, inner, closed = found[0].text, found[1:-1], found[-1].text
    if closed not in (")", "]", "}", "\\}"):
        return _formula(found)
    if not inner:
        raise TooHard
    if inner[0].kind == "command" and inner[0].text == "begin":
        return _matrix(inner)
    depths = _depths(inner)
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
            return _part(inner) if braces else _formula(found)
        if opened + closed == "[]":
            return _formula(found)
        raise TooHard
    parts, kinds = _split(inner, depths)
    if len(parts) > MAX_ITEMS or kinds & {"and", "or"}:
        raise TooHard
    items = [_part(part) for part in parts]
    if len(items) != 1 + sum(
        1 for token, depth in zip(inner, depths, strict=True) if depth == 0 and token.text in separators
    ):
        raise TooHard
    if braces:
        return Many(items, braces=True)
    return Sequenced(opened, items, closed, opened + closed in ("[)", "(]"))


def _formula(found: Sequence[Token]) -> Form:
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
        else:
            break
    if not rest:
        raise TooHard
    words = " ".join(unit)
    if not forms_units.readable(words):
        raise TooHard
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
    for tail in (1, 2, 3, 4):
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
    return size + 1 if near and (is_unit or (token.spaced and token.text in forms_units.KNOWN)) else 0


def _colons(found: Sequence[Token], colons: list[int]) -> Form:
    if len(colons) > 3:
        raise TooHard
    pieces = [found[i + 1 : j] for i, j in zip([-1, *colons], [*colons, len(found)], strict=True)]
    items: list[Form] = []
    for piece in pieces:
        item = _formula(piece)
        if not isinstance(item, Formula) or item.unit or item.symbols:
            raise TooHard
        items.append(item)
    return Colons(items)


def _based(found: Sequence[Token]) -> Form:
    inner = [token for token in found[2:] if token.text not in ("{", "}")]
    if len(inner) != 1 or inner[0].kind != "number" or not inner[0].text.isdigit():
        raise TooHard
    base = int(inner[0].text[:3])
    if not 2 <= base <= 36:
        raise TooHard
    return Based(found[0].text.lstrip("0"), base)


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
