"""Questions as words, so that two ways of writing the same one are the same."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

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
}
UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
"""Character ranges of scripts that put no spaces between words, for a regular expression."""
_TOKEN = re.compile(rf"\d+(?:\.\d+)?|[{UNSPACED}]|[^\W\d_{UNSPACED}]+|[-+*/=<>^%!|()\[\]]")
_SHORT_FRACTION = re.compile(r"(\\[dt]?frac)\s*(\d)\s*(\d)")
_DIAGRAM = re.compile(r"\[asy\].*?(?:\[/asy\]|\Z)", re.DOTALL)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))|(?<=\d)\{,\}(?=\d{3}(?!\d))")


def tokens(question: str) -> list[str]:
    """Words, numbers and operators of a question, in lower case, without LaTeX's layout."""
    text = _SHORT_FRACTION.sub(r"\1{\2}{\3}", _THOUSANDS.sub("", question))
    text = _LAYOUT.sub(" ", text)
    text = text.replace("−", "-").replace("–", "-").replace("×", "*").replace("·", "*")
    return [_SAME.get(token, token) for token in _TOKEN.findall(text.casefold())]


def words(question: str) -> list[str]:
    """`tokens` without operators, brackets and the code of diagrams: what runs are made of."""
    return [token for token in tokens(_DIAGRAM.sub(" ", question)) if token[0].isalnum()]


def fingerprint(question: str) -> tuple[bytes, list[str]]:
    """What stands for the whole question (16 bytes, diagrams included), and its words."""
    everything = tokens(question)
    key = hashlib.blake2b(" ".join(everything).encode(), digest_size=16).digest()
    if "[asy]" in question:
        return key, words(question)
    return key, [token for token in everything if token[0].isalnum()]
