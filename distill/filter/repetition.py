"""The filter for traces that run in circles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill.errors import UsageError
from distill.filter.text import quote
from distill.records import Grade, Problem, Trace
from distill.thinking import split

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from distill.filter.runs import U64, Words


WORDY = 4
"""One in so many words of a run must be of letters, where numbers are taken for alike."""

COUNTED = 300
"""Runs that differ in numbers alone, below which a chain may count through cases as it likes."""


class Repetition:
    """Drops traces that loop. Four signs are looked for:

    1. The thinking or the answer ends in the same characters `times` times over, at least
       `cycle_chars` in all.
    2. It ends in `tail_chars` characters or more that stood there, word for word, just before.
    3. More than `max_share` of all runs of `words` words are said at least `times` times.
    4. The same with all numbers alike: more than `max_counting` of all runs, tables and formulas
       aside, and 300 of them at least: a chain may count through cases for a while.

    The defaults come from 1,214 published traces (docs/filters.md has the table). Time grows with
    the length of the text, n log n at most.
    """

    version = "2"

    def __init__(
        self,
        max_share: float = 0.25,
        words: int = 20,
        times: int = 4,
        cycle_chars: int = 200,
        tail_chars: int | None = 1000,
        max_counting: float | None = 0.5,
    ) -> None:
        if (
            not 0 < max_share <= 1
            or words < 2
            or times < 2
            or cycle_chars < 1
            or (tail_chars is not None and tail_chars < 1)
            or (max_counting is not None and not 0 < max_counting <= 1)
        ):
            raise UsageError(
                f"filter 'repetition': max_share = {max_share}, words = {words}, times = {times}, "
                f"cycle_chars = {cycle_chars}, tail_chars = {tail_chars}, "
                f"max_counting = {max_counting}",
                "needs 0 < max_share <= 1, words >= 2, times >= 2, cycle_chars >= 1; "
                "tail_chars >= 1 and 0 < max_counting <= 1, or null to leave out a sign",
            )
        self.max_share, self.words, self.times = max_share, words, times
        self.cycle_chars, self.tail_chars = cycle_chars, tail_chars
        self.max_counting = 1.0 if max_counting is None else max_counting

    def __call__(self, problem: Problem, trace: Trace, grade: Grade) -> str | None:
        parts = split(trace.text)
        last = "answer" if parts.closed else "text"
        for where, text in (("thinking", parts.reasoning or ""), (last, parts.answer)):
            reason = self._tail(text)
            if reason:
                return f"the {where} ends in {reason}"
        return self._phrases(trace.text)

    def _tail(self, text: str) -> str | None:
        length, period = cycle(text)
        said = quote(text.rstrip()[-period:])
        if length >= self.cycle_chars and length >= self.times * period:
            return f"a loop: {said} {length // period} times"
        if self.tail_chars is not None and length - period >= self.tail_chars:
            return f"{length - period} characters that it has just said: {said}"
        return None

    def _phrases(self, text: str) -> str | None:
        from distill.filter.runs import repeated, run_hashes, words_of

        alike = words_of(text, masked=True)
        runs = run_hashes(alike.hashes, self.words)
        # Where numbers are alike there are no fewer repeats than where they are not: one look
        # settles both questions for all but a few texts.
        least = min(self.max_share, self.max_counting)
        if not alike.long and repeated(runs, self.times) <= least * len(runs):
            return None
        found = words_of(text)
        share, phrase, count = _share(found, run_hashes(found.hashes, self.words), self)
        if share > self.max_share:
            return f"{share:.0%} of the text is repeated: {quote(phrase)} {count} times"
        if self.max_counting == 1 or not len(runs):
            return None
        wordy = alike.wordy(self.words) >= self.words / WORDY
        share, phrase, count = _share(alike, runs, self, wordy)
        if share > self.max_counting and share * len(runs) >= COUNTED:
            return (
                f"{share:.0%} of the text is repeated but for numbers: {quote(phrase)} "
                f"{count} times"
            )
        return None


def repeated_share(text: str, words: int, times: int) -> tuple[float, str, int]:
    """Share of runs of `words` words that occur `times` times or more, the commonest, its count."""
    from distill.filter.runs import run_hashes, words_of

    found = words_of(text)
    return _share(found, run_hashes(found.hashes, words), Repetition(words=words, times=times))


def _share(
    found: Words, runs: U64, rule: Repetition, counted: npt.NDArray[np.bool_] | None = None
) -> tuple[float, str, int]:
    """The share of the runs that are said often, and are `counted`; the commonest; its count."""
    import numpy as np

    if not len(runs):
        return 0.0, "", 0
    _, first, group, counts = np.unique(
        runs, return_index=True, return_inverse=True, return_counts=True
    )
    often = counts[group] >= rule.times
    if counted is not None:
        often &= counted
        counts = np.where(counted[first], counts, 0)
    most = int(counts.max())
    # The earliest of equals is the same in every process.
    start = int(first[counts == most].min())
    return int(often.sum()) / len(runs), found.quoted(start, rule.words), most


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
