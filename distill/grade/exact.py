r"""Exact match after normalisation: for short answers that are words, not formulas."""

from __future__ import annotations

import re
import unicodedata

from distill.grade.base import Check, StagedGrader
from distill.grade.extract import answer_text, final_answer, was_cut, without_answer
from distill.records import Grade, Problem, Trace


def normalise(text: str, *, case: bool = False) -> str:
    r"""Unicode NFKC, white space folded, `\text{}`, dollar signs, quotes and a last dot removed."""
    text = unicodedata.normalize("NFKC", text)
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s{0,8}\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\s+", " ", text).strip().strip("$*`\"'").strip().rstrip(".").strip()
    return text if case else text.casefold()


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
