"""The filter for thinking that is none: empty, a phrase, the question again, or the answer."""

from __future__ import annotations

import re

from distill.errors import UsageError
from distill.filter.text import UNSPACED, quote
from distill.records import Grade, Problem, Trace
from distill.thinking import split

RUN = 4
"""Words in a row by which a passage is recognised in another text."""

BEGINNING = 2000

_WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")


class Thinking:
    """Drops traces whose thinking teaches nothing.

    That is: fewer than `min_words` different words or numbers ("Okay, let me think."); or more than
    `max_copied` of its runs of four words stand in the question, or in the answer. A trace without
    any thinking is the filter `format`'s affair, and passes here.

    The defaults come from 468 published chains of R1, QwQ and Sky-T1: the shortest sound one has 88
    words, none takes more than 0.20 of its runs from the question or more than 0.64 from its own
    answer. They are set far from these, for short tasks have short chains: of the pocket teacher's
    the shortest sound ones have 6 words, and its lucky guesses ("Hmm, I guess 1.") at most 5.
    """

    version = "2"

    def __init__(self, min_words: int = 6, max_copied: float = 0.9) -> None:
        if min_words < 0 or not 0 < max_copied <= 1:
            raise UsageError(
                f"filter 'thinking': min_words = {min_words}, max_copied = {max_copied}",
                "needs min_words >= 0, 0 < max_copied <= 1",
            )
        self.min_words, self.max_copied = min_words, max_copied

    def __call__(self, problem: Problem, trace: Trace, grade: Grade) -> str | None:
        parts = split(trace.text)
        if parts.reasoning is None:
            return None
        if not parts.reasoning:
            return "empty thinking"
        different = self._different(parts.reasoning)
        if different < self.min_words:
            return (
                f"thinking of {different} different words, fewer than {self.min_words}: "
                f"{quote(parts.reasoning)}"
            )
        for name, text in (("question", problem.question), ("answer", parts.answer)):
            if len(parts.reasoning) <= 2 * len(text) + 200:
                share = copied(parts.reasoning, text)
                if share > self.max_copied:
                    return (
                        f"{share:.0%} of the thinking stands in the {name}: "
                        f"{quote(parts.reasoning)}"
                    )
        return None

    def _different(self, text: str) -> int:
        """Different words, of a long text those of its beginning if they are enough."""
        found = len(set(_WORD.findall(text[:BEGINNING].casefold())))
        if found >= self.min_words or len(text) <= BEGINNING:
            return found
        return len(set(_WORD.findall(text.casefold())))


def copied(text: str, other: str) -> float:
    """The share of runs of `RUN` words of `text` that stand in `other`, in upper or lower case."""
    import numpy as np

    from distill.filter.runs import run_hashes, words_of

    runs, there = (run_hashes(words_of(t.casefold()).hashes, RUN) for t in (text, other))
    return float(np.isin(runs, there).mean()) if len(runs) else 0.0
