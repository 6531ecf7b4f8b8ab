r"""Mathematical answers: what is exact is settled first, then math-verify (sympy) is asked.

math-verify's own time-outs use SIGALRM and are switched off here: a worker that takes too long is
killed from outside. Two of its rules are tightened: numbers are compared with a relative
tolerance too (it rounds to six decimals, which makes 1/2004! equal to 1/2006!), and exact integers
and fractions must be equal exactly.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from distill.errors import UsageError
from distill.grade.base import Check, StagedGrader, version_of
from distill.grade.exact import Words, is_words
from distill.grade.extract import (
    answer_text,
    final_answer,
    last_boxed,
    thought_box,
    was_cut,
    without_answer,
)
from distill.grade.forms import settle
from distill.records import Grade, Problem, Trace

MAX_LENGTH = 2000
"""Characters of an answer that are handed to sympy; a longer one can only match as a string."""

RELATIVE_TOLERANCE = 1e-3
"""Numbers that math-verify's six decimals call equal must agree to this relative precision too."""

_SPACES = re.compile(r"\\[,;:! ]|\\quad|\\qquad|~|\\displaystyle|\\limits|\s+")
_SIZES = re.compile(r"\\(?:left|right|big|Big|bigg|Bigg)(?![a-zA-Z])")
_CHOICE = re.compile(
    r"(?:[Oo]ption|[Cc]hoice|[Aa]nswer)?(?:\(?([A-Z])\)?[.:)]?|\(([A-Z])\).*|([A-Z])[.:)][A-Za-z].*)",
    re.DOTALL,
)
_WORDS = re.compile(r"(?<![\\a-zA-Z{])[a-zA-Z]{3,}\s+(?:\S+\s+){0,3}?[a-zA-Z]{3,}")
_MIXED = re.compile(r"\d\s+\d")
_WORDING = Words()


def normalise(answer: str) -> str:
    r"""One way to write a formula: no white space, sizes, dollar signs; `\frac` for all fractions.

    Says nothing about value: two answers with equal normal forms are equal, the rest is open.
    """
    text = answer.strip().strip("$").strip()
    if text.startswith("\\(") and text.endswith("\\)"):
        text = text[2:-2]
    text = _SIZES.sub("", _SPACES.sub("", text)).rstrip(".")
    text = (
        text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("\\cfrac", "\\frac")
    )
    text = (
        text.replace("\\varnothing", "\\emptyset")
        .replace("{,}", ",")
        .replace("\\%", "%")
        .replace("\\$", "")
        .replace("−", "-")
    )
    text = re.sub(r"\^\{?\\circ\}?", "°", text)
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    wrapped = re.fullmatch(r"\{([^{}]*)\}", text)
    return wrapped.group(1) if wrapped else text


def quick_equal(gold: str, answer: str) -> bool | None:
    """True or False where texts or exact values settle it, None where sympy has to look."""
    if _MIXED.search(gold) or _MIXED.search(answer):
        return _settled(gold, answer)  # `1 1/2` without its space is another number
    left, right = normalise(gold), normalise(answer)
    if left and left == right:
        return True
    wanted, chosen = re.fullmatch(r"\(?([A-Z])\)?", left), _CHOICE.fullmatch(right)
    if wanted and chosen:
        return wanted[1] in chosen.groups()
    return _settled(gold, answer)


def _settled(gold: str, answer: str) -> bool | None:
    verdict = settle(gold, answer)
    if verdict is None and is_words(gold) and is_words(answer):
        # math-verify would read words as products of letters: `Paris` as `pairs`.
        return _WORDING.equal(gold, answer)
    return verdict


def sympy_equal(gold: str, answer: str) -> bool:
    """math-verify's verdict, tightened. May hang: call it where it can be killed."""
    parsed_gold, parsed = _parse(gold), _parse(answer)
    from math_verify import verify

    if not parsed_gold or not parsed:
        return False
    # -2 <= x <= 7 answers [-2, 7], which math-verify takes only the other way round by default.
    if not verify(parsed_gold, parsed, timeout_seconds=None, allow_set_relation_comp=True):
        return False
    return not _differ(parsed_gold[0], parsed[0])


@functools.lru_cache(maxsize=1024)
def _parse(text: str) -> list[Any]:
    from math_verify import parse

    _quiet()
    if not re.search(r"(?<!\\)\\[a-zA-Z]", text):
        # Every command has two backslashes: the text was escaped once too often on its way.
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text)
    marked = any(mark in text for mark in ("$", "\\(", "\\[", "\\boxed"))
    # A sentence is searched for its formula or number; anything else is a formula itself.
    formula = text if marked or _WORDS.search(text) else f"${text}$"
    return list(parse(formula, parsing_timeout=None))


@functools.cache
def _quiet() -> None:
    # math-verify warns once per process that its own time-outs are off, which is on purpose here.
    from math_verify import grader, parser

    for module in (grader, parser):
        if hasattr(module, "TIMEOUT_WARNING_SHOWN"):
            module.TIMEOUT_WARNING_SHOWN = True


def _differ(gold: Any, answer: Any) -> bool:
    """True for two numbers that math-verify took for equal only because they are small or long."""
    import sympy

    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return False
    if not (gold.is_number and answer.is_number) or _has_percent(gold) or _has_percent(answer):
        return False
    try:
        left, right = gold.doit(), answer.doit()
        if isinstance(left, sympy.Rational) and isinstance(right, sympy.Rational):
            return bool(left != right)
        if not (left.has(sympy.Float) or right.has(sympy.Float)):
            gap = sympy.N(left - right, 20, maxn=600)
            return bool(gap != 0 and getattr(gap, "_prec", 53) > 1)
        scale = max(abs(left), abs(right)).evalf(30)
        return bool(abs(left - right).evalf(30) > RELATIVE_TOLERANCE * scale)
    except (TypeError, ValueError, ArithmeticError):
        return False


def _has_percent(expression: Any) -> bool:
    import sympy

    return bool(expression.has(sympy.UnevaluatedExpr))


class Math(StagedGrader):
    """`correct` if the final answer equals the gold one mathematically.

    With `in_thinking` the last box of the thinking counts where there is no answer after it; the
    grade's detail says so. Without it nothing inside the thinking is ever looked at.
    """

    name = "math"

    def __init__(self, in_thinking: bool = False) -> None:
        if not isinstance(in_thinking, bool):
            raise UsageError(f"math: in_thinking is {in_thinking!r}", "give true or false")
        self.in_thinking = in_thinking
        packages = ("math-verify", "latex2sympy2_extended", "sympy")
        self.version = ", ".join(["3", *(version_of(p) for p in packages)])

    def warm(self, part: str) -> None:
        sympy_equal("\\frac{1}{2}", "0.5")

    def quick(self, problem: Problem, trace: Trace) -> Grade | Check:
        if problem.gold is None:
            return self.grade("ungraded", detail="the problem has no reference answer")
        answer, detail = final_answer(answer_text(trace), cut=was_cut(trace)), ""
        if answer is None and self.in_thinking:
            answer, detail = thought_box(trace), "no answer after the thinking: its last box"
        if answer is None:
            return without_answer(trace, self.name, self.version)
        return self.compare(problem.gold, answer, detail)

    def compare(self, gold: str, answer: str, detail: str = "") -> Grade | Check:
        """Settle exactly, or leave it to sympy. `detail` goes into the grade."""
        gold = last_boxed(gold) or gold
        equal = quick_equal(gold, answer)
        if equal is None and max(len(gold), len(answer)) > MAX_LENGTH:
            long = f"longer than {MAX_LENGTH} characters: compared as text only"
            return self.grade("wrong", answer, detail=f"{detail}; {long}" if detail else long)
        if equal is None:
            return Check((gold, answer, detail), (gold, answer, detail))
        return self.grade("correct" if equal else "wrong", answer, detail=detail)

    def check(self, *args: Any) -> Grade:
        gold, answer, detail = args
        equal = sympy_equal(gold, answer)
        return self.grade("correct" if equal else "wrong", answer, detail=detail)
