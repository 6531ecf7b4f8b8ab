"""The shapes that an answer can have: a formula, a tuple, a set, an interval, a matrix, words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from distill.grade.forms_exact import Node, Ratio, TooHard, exact

ELLIPSIS = "..."
"""The text of `Words` that stand for \\ldots."""


def decimal(node: Node) -> bool:
    """True where a number of the formula was written as a decimal."""
    if node[0] == "n":
        return bool(node[2])
    return any(decimal(part) for part in node[1:] if isinstance(part, tuple))


def names(node: Node) -> frozenset[str]:
    """The symbols of a formula, with constants (`pi`, `e`, `i`) and called functions."""
    if node[0] == "s":
        return frozenset((node[1],))
    found: frozenset[str] = frozenset()
    if node[0] == "f":
        found = frozenset((node[1],)) if node[1].startswith("call:") else found
    for part in node[1:]:
        if isinstance(part, tuple):
            found |= names(part)
    return found


def renamed(node: Node, name: str, new: str) -> Node:
    """The formula with another name for one of its symbols."""
    if node == ("s", name):
        return ("s", new)
    return tuple(renamed(p, name, new) if isinstance(p, tuple) else p for p in node)


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
            except (TooHard, RecursionError, ValueError):
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
    """An equation that gives no name a value: both sides, each None where it was too hard."""

    left: Formula | None
    right: Form


Form: TypeAlias = (
    Formula | Sequenced | Many | Joined | Matrix | Words | Based | Colons | Named | Equation
)
