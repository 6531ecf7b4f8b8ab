r"""Grader of multiple-choice tasks: the letter, exactly, however it is dressed up."""

from __future__ import annotations

import re

from distill.grade.base import Check, StagedGrader
from distill.grade.extract import answer_text, final_answer, was_cut, without_answer
from distill.records import Grade, Problem, Trace

# `B`, `(B)`, `B)`, `B. text`, `\text{B}`, `choice B`; never the first letter of a word.
_LETTER = re.compile(
    r"[\s$*(\[{]*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?[\s(\[]*"
    r"(?:(?:choice|option|answer)\s*)?[(\[]?([A-J])(?![\w'])(?=[\s)\]}.:,$*]|$)",
    re.IGNORECASE,
)


class Choice(StagedGrader):
    """`correct` if the answer begins with the letter that is the gold; any other text is unparsed.

    Only the letter counts: a choice quoted without its letter is unparsed, not guessed at.
    """

    name = "choice"
    version = "1"

    def quick(self, problem: Problem, trace: Trace) -> Grade | Check:
        if problem.gold is None:
            return self.grade("ungraded", detail="the problem has no reference answer")
        answer = final_answer(answer_text(trace), cut=was_cut(trace))
        found = _LETTER.match(answer) if answer else None
        if found is None:
            return without_answer(trace, self.name, self.version)
        letter = found.group(1).upper()
        right = letter == problem.gold.strip().upper()
        return self.grade("correct" if right else "wrong", letter)
