"""The filter for traces that run in circles."""

from __future__ import annotations

import re

from distill.errors import UsageError
from distill.filter.text import UNSPACED, quote
from distill.records import Grade, Problem, Trace
from distill.thinking import split


class Repetition:
    """Drops traces that loop.

    Two signs are looked for. (1) Phrases: more than `max_share` of all runs of `words` words
    belong to a run that is said at least `times` times. (2) A tail that cycles: the thinking
    or the answer ends in the same characters `times` times over, at least `cycle_chars` in all.

    The defaults come from 1,200 published traces: of sound R1 and QwQ chains (up to 126,000
    characters) none has a share above 0.08; chains that never found their way out have between
    0.3 and 0.98. Time is linear in the length of the text.
    """

    version = "1"

    def __init__(
        self,
        max_share: float = 0.25,
        words: int = 20,
        times: int = 4,
        cycle_chars: int = 200,
    ) -> None:
        if not 0 < max_share <= 1 or words < 2 or times < 2 or cycle_chars < 1:
            raise UsageError(
                f"filter 'repetition': max_share = {max_share}, words = {words}, "
                f"times = {times}, cycle_chars = {cycle_chars}",
                "needs 0 < max_share <= 1, words >= 2, times >= 2, cycle_chars >= 1",
            )
        self.max_share, self.words, self.times = max_share, words, times
        self.cycle_chars = cycle_chars

    def __call__(self, problem: Problem, trace: Trace, grade: Grade) -> str | None:
        parts = split(trace.text)
        last = "answer" if parts.closed else "text"
        for where, text in (("thinking", parts.reasoning or ""), (last, parts.answer)):
            length, period = cycle(text)
            if length >= self.cycle_chars and length >= self.times * period:
                return (
                    f"the {where} ends in a loop: {quote(text[-period:])} {length // period} times"
                )
        share, phrase, count = repeated_share(trace.text, self.words, self.times)
        if share > self.max_share:
            return f"{share:.0%} of the text is repeated: {quote(phrase)} {count} times"
        return None


# Scripts without spaces are taken character by character; endless "words" are cut.
_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]{{1,24}}")


_BASE = 0x9E3779B97F4A7C15


def repeated_share(text: str, words: int, times: int) -> tuple[float, str, int]:
    """Share of runs of `words` words that occur `times` times or more, the commonest, its count.

    Runs are compared by a 64-bit polynomial hash, in a third of the time that strings take.
    """
    import numpy as np

    found = _WORD.findall(text)
    size = len(found) - words + 1
    if size < 1:
        return 0.0, "", 0
    hashes = np.fromiter(map(hash, found), dtype=np.int64, count=len(found)).view(np.uint64)
    runs = np.zeros(size, dtype=np.uint64)
    for at in range(words):
        runs = runs * np.uint64(_BASE) + hashes[at : at + size]
    _, first, counts = np.unique(runs, return_index=True, return_counts=True)
    most = int(counts.max())
    # The earliest of equals: hashes of strings, and so their order, change from run to run.
    start = int(first[counts == most].min())
    repeated = int(counts[counts >= times].sum())
    return repeated / size, " ".join(found[start : start + words]), most


def cycle(text: str, anchor: int = 16, candidates: int = 200) -> tuple[int, int]:
    """(length, period) in characters of the longest ending that repeats itself; (0, 1) if none.

    The last `anchor` characters are looked up further ahead; each place where they stand is a
    candidate period, and how far it reaches back is found by bisection over slices.
    """
    text = text.rstrip()
    if len(text) < 2 * anchor:
        return 0, 1
    tail = text[-anchor:]
    place = len(text) - anchor
    for _ in range(candidates):
        place = text.rfind(tail, 0, place + anchor - 1)
        if place < 0:
            break
        period = len(text) - anchor - place
        reach = _common_ending(text, period)
        if reach >= period:
            return reach + period, period
    return 0, 1


def _common_ending(text: str, period: int) -> int:
    """The largest n for which the last n characters also stand `period` characters earlier."""
    low, high = 0, len(text) - period
    while low < high:
        middle = (low + high + 1) // 2
        if text.endswith(text[-middle - period : len(text) - period]):
            low = middle
        else:
            high = middle - 1
    return low
