r"""Exact match after normalisation: for short answers that are words, not formulas."""

from __future__ import annotations

import re
import unicodedata

from distill.grade.base import Check, StagedGrader
from distill.grade.extract import answer_text, final_answer, was_cut, without_answer
from distill.records import Grade, Problem, Trace

_WORDS = re.compile(r"[^\W\d_]+(?:[ \t]+[^\W\d_]+|['’-][^\W\d_]+|[.](?=[ \t]|$))*")
_FORMULA = re.compile(
    r"\b(?:pi|sqrt|sin|cos|tan|cot|sec|csc|arc\w+|log|ln|exp|inf|infinity|infty|frac|cdot|times|deg"
    r"|degrees?|mod|dx|dy|dt|abs|min|max|gcd|lcm|alpha|beta|gamma|theta|lambda|sigma|omega"
    r"|half|third|quarter|dozen|hundred|thousand|million|billion|trillion|percent"
    r"|zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
    r"|(?:thir|four|fif|six|seven|eigh|nine)teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty"
    r"|undefined|none|empty|no solutions?|infinitely)\b",
    re.IGNORECASE,
)


def normalise(text: str, *, case: bool = False) -> str:
    r"""Unicode NFKC, white space folded, `\text{}`, dollar signs, quotes and a last dot removed."""
    text = unicodedata.normalize("NFKC", text)
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s{0,8}\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\s+", " ", text).strip().strip("$*`\"'").strip().rstrip(".").strip()
    return text if case else text.casefold()


def is_words(gold: str) -> bool:
    """Whether a gold answer is made of words: no digit, no LaTeX, no operator, nothing of algebra.

    math-verify reads `Paris` as a product of letters, which makes it equal to `pairs`.
    """
    text = normalise(gold, case=True)
    product = re.fullmatch("[a-z]{1,3}", text) and text not in ("yes", "no", "odd")  # as in `xyz`
    return in_letters(gold) and not product and not _FORMULA.search(gold)


def in_letters(gold: str) -> bool:
    """Whether a text is of letters alone, with a word of three or more among them."""
    text = normalise(gold, case=True)
    if not _WORDS.fullmatch(text):
        return False
    return text.casefold() == "no" or any(len(w) >= 3 for w in re.findall(r"[^\W\d_]+", text))


class Exact(StagedGrader):
    """`correct` if answer and gold are equal after `normalise`; `case` keeps upper case apart."""

    name = "exact"
    version = "1"

    def __init__(self, *, case: bool = False) -> None:
        self.case = case

    def equal(self, gold: str, answer: str) -> bool:
        """Whether an answer is the gold one."""
        return normalise(answer, case=self.case) == normalise(gold, case=self.case)

    def quick(self, problem: Problem, trace: Trace) -> Grade | Check:
        if problem.gold is None:
            return self.grade("ungraded", detail="the problem has no reference answer")
        answer = final_answer(answer_text(trace), cut=was_cut(trace))
        if answer is None:
            return without_answer(trace, self.name, self.version)
        return self.grade("correct" if self.equal(problem.gold, answer) else "wrong", answer)


class Words(Exact):
    """`exact` for answers in words: an article before them does not count, nor a reason after yes.

    "The Nile" answers "Nile"; "Yes, because ..." and "True: ..." answer "yes" and "true". Nothing
    else is left out: "Paris, Texas" does not answer "Paris".
    """

    name = "words"
    version = "1"

    def __init__(self) -> None:
        super().__init__()

    def equal(self, gold: str, answer: str) -> bool:
        wanted, said = (_ARTICLE.sub("", normalise(text)) for text in (gold, answer))
        if wanted in _VERDICTS:
            match = _VERDICT.match(said)
            said = match.group(1) if match else said
        return wanted == said


_ARTICLE = re.compile(r"(?:the|an?)\s+(?=\S)")
_VERDICTS = ("yes", "no", "true", "false")
_VERDICT = re.compile(r"(yes|no|true|false)\s?(?:[,.;:(—–]|- )")
