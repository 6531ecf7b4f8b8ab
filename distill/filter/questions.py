"""Questions as words, so that two ways of writing the same one are the same."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from distill.records import Problem


def generated_by(problem: Problem) -> tuple[str, str] | None:
    """(task, its own question) of a problem that reasoning-gym generated, None for any other.

    Only white space is folded: in a generated question a bracket may be what makes it another.
    """
    made = problem.metadata.get("reasoning_gym")
    if not isinstance(made, Mapping):
        return None
    entry = made.get("entry")
    question = entry.get("question") if isinstance(entry, Mapping) else None
    return str(made.get("task", "")), " ".join(str(question or problem.question).split())


# Commands that only change how mathematics looks, so that \dfrac{1}{2} is \frac12 is \frac{1}{2}.
_LAYOUT = re.compile(
    r"\\(?:left|right|[bB]ig+[lr]?|displaystyle|textstyle|limits|nolimits|quad|qquad|text|mbox|"
    r"mathrm|mathbf|mathit|textbf|textit|mathcal|operatorname|hspace|vspace|noindent|ldots|cdots|"
    r"dots)(?![a-zA-Z])\*?|\\[,;:!\\ ()\[\]]|[$~&]"
)
_SAME = {
    "dfrac": "frac",
    "tfrac": "frac",
    "le": "leq",
    "ge": "geq",
    "ne": "neq",
    "cdot": "*",
    "times": "*",
    "div": "/",
    "lt": "<",
    "gt": ">",
    "geqslant": "geq",
    "leqslant": "leq",
    "≤": "leq",
    "≥": "geq",
    "≠": "neq",
    "÷": "/",
}
UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
"""Character ranges of scripts that put no spaces between words, for a regular expression."""
_TOKEN = re.compile(rf"\d+(?:\.\d+)?|[{UNSPACED}]|[^\W\d_{UNSPACED}]+|[-+*/=<>^%!|()\[\]≤≥≠÷]")
_SHORT_FRACTION = re.compile(r"(\\[dt]?frac)\s*(\d)\s*(\d)")
_DIAGRAM = re.compile(r"\[asy\].*?(?:\[/asy\]|\Z)", re.DOTALL)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))|(?<=\d)\{,\}(?=\d{3}(?!\d))")
_DASHES = str.maketrans({"−": "-", "–": "-", "×": "*", "·": "*", "⁄": "/"})


def tokens(question: str) -> list[str]:
    """Words, numbers and operators of a question, in lower case, without LaTeX's layout."""
    text = question
    if not text.isascii():
        # Full-width digits and signs, ligatures, "½": the same text from another keyboard.
        text = unicodedata.normalize("NFKC", text).translate(_DASHES)
    text = _SHORT_FRACTION.sub(r"\1{\2}{\3}", _THOUSANDS.sub("", text))
    return [_SAME.get(token, token) for token in _TOKEN.findall(_LAYOUT.sub(" ", text).casefold())]


def words(question: str) -> list[str]:
    """`tokens` without operators, brackets and the code of diagrams: what runs are made of."""
    return [token for token in tokens(without_diagrams(question)) if token[0].isalnum()]


def without_diagrams(question: str) -> str:
    """The question without the code of its diagrams."""
    return _DIAGRAM.sub(" ", question) if "[asy]" in question else question


@dataclass(frozen=True, slots=True)
class Parsed:
    """A question taken apart once, for all that compare it."""

    text: str
    key: bytes
    """Stands for the whole question, operators and diagrams included (16 bytes)."""
    tokens: list[str]
    words: list[str]
    """Both without diagrams."""


def parse(question: str) -> Parsed:
    """Take a question apart."""
    everything = tokens(question)
    key = hashlib.blake2b(" ".join(everything).encode(), digest_size=16).digest()
    plain = without_diagrams(question)
    kept = everything if plain is question else tokens(plain)
    return Parsed(question, key, kept, [token for token in kept if token[0].isalnum()])
