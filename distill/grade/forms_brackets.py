"""Where brackets, separators and relations stand among tokens."""

from __future__ import annotations

from collections.abc import Sequence

from distill.grade.forms_exact import TooHard
from distill.grade.forms_tokens import Token

_COMPARED = frozenset(("le", "ge", "in", "<", ">", "ne", "approx", "sim"))


def depths_of(found: Sequence[Token]) -> list[int]:
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


def split(found: Sequence[Token], depths: list[int]) -> tuple[list[list[Token]], set[str]]:
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


def encloses(found: Sequence[Token]) -> bool:
    """True if the first token's bracket is closed by the last token."""
    depths = depths_of(found)
    return all(depth > 0 for depth in depths[1:-1]) and depths[-1] == 0 and len(found) > 1


def subscripts(found: Sequence[Token]) -> list[bool]:
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


def relation(token: Token) -> str:
    if token.kind == "sign" and token.text in ("=", "<", ">"):
        return token.text
    if token.kind == "command" and token.text in (
        "le",
        "ge",
        "in",
        "<",
        ">",
        "ne",
        "approx",
        "sim",
    ):
        return token.text
    return ""
