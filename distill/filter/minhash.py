"""Near-duplicates by MinHash: traces that are another trace but for a few words.

A trace is the set of its runs of `n` words (shingles); two traces are as alike as the Jaccard
similarity of their sets, estimated from signatures (Broder 1997). Only the lowest byte of each
minimum is kept (b-bit minwise hashing, Li and Koenig, WWW 2010), so a signature of 256 takes 256
bytes, and a band of it is its own LSH key. datasketch is the reference in the tests; it spends most
of its time on one SHA-1 per shingle, which is why the hashing here is numpy's.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator
from functools import cache, cached_property
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from distill.errors import UsageError
from distill.filter.questions import UNSPACED
from distill.records import Grade, Problem, Trace

Item = tuple[Problem, Trace, Grade]
Within = Literal["problem", "corpus"]
Bytes = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint32]

_UNSPACED = re.compile(f"[{UNSPACED}]")
_PLANE = 0x10000
_SPACE, _LETTER, _DIGIT, _SIGN = range(4)
_FACTORS = np.random.default_rng(20260122).integers(0, 2**64, 64, dtype=np.uint64) | np.uint64(1)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint32(0x2C1B3C6D)
_CACHED = 40_000
RECALL = 0.999
"""Of pairs just as alike as the threshold, the share that LSH has to propose."""


class NearDuplicates:
    """Drops traces that are at least `threshold` like one that is kept.

    Traces are taken in the order of (problem id, sample index), whatever order they arrive in;
    each is compared with those kept before it and dropped if one is alike. So of two alike the
    one with the smaller index stays, what is dropped always has its like among the kept ones,
    and a chain of small changes does not drop its far end.

    `within: problem` compares the samples of one problem with each other, all with all;
    `within: corpus` all traces, those that share one of the bands of their signature.
    """

    version = "1"

    def __init__(
        self,
        threshold: float = 0.85,
        n: int = 5,
        within: Within = "problem",
        permutations: int = 256,
    ) -> None:
        if (
            not 0.5 <= threshold <= 1
            or n < 1
            or not 32 <= permutations <= 4096
            or within not in get_args(Within)
        ):
            raise UsageError(
                f"filter 'near_duplicates': threshold = {threshold}, n = {n}, within = {within!r}, "
                f"permutations = {permutations}",
                "needs 0.5 <= threshold <= 1, n >= 1, within 'problem' or 'corpus', "
                "32 <= permutations <= 4096",
            )
        self.threshold, self.n, self.within = threshold, n, within
        self.permutations = permutations
        self.found: dict[tuple[str, int], tuple[tuple[str, int], float]] = {}
        """Dropped (problem id, index) -> the one it is like, and how much."""
        self.notes: list[str] = []

    def sketch(self, problem: Problem, trace: Trace, grade: Grade) -> bytes:
        """The signature of a trace."""
        return self._signer(trace.text).tobytes()

    def prepare(self, items: Iterable[Item]) -> None:
        """Sign all traces, then compare."""
        self.prepare_sketches(
            (item[1].problem_id, item[1].index, self.sketch(*item)) for item in items
        )

    def prepare_sketches(self, sketches: Iterable[tuple[str, int, bytes]]) -> None:
        """Compare (problem id, index, signature); `permutations` + 20 bytes per trace are held."""
        signatures, samples, owners = bytearray(), array("q"), array("I")
        problems: dict[str, int] = {}
        for problem_id, index, signature in sketches:
            signatures += signature
            samples.append(index)
            owners.append(problems.setdefault(problem_id, len(problems)))
        names = list(problems)
        rank = np.empty(len(names), np.uint32)
        rank[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
        owner, sample = np.array(owners, np.uint32), np.array(samples, np.int64)
        order = np.lexsort((sample, rank[owner]))
        table = np.frombuffer(signatures, np.uint8).reshape(-1, self.permutations)
        self.found = {
            (names[owner[at]], int(sample[at])): ((names[owner[to]], int(sample[to])), alike)
            for at, to, alike in self._alike(table, order, owner)
        }

    def __call__(self, problem: Problem, trace: Trace, grade: Grade) -> str | None:
        return self.judge_sketch(trace.problem_id, trace.index)

    def judge_sketch(self, problem_id: str, index: int, sketch: bytes = b"") -> str | None:
        """The objection to a trace that was compared."""
        hit = self.found.get((problem_id, index))
        if hit is None:
            return None
        (owner, other), alike = hit
        whose = "" if owner == problem_id else f" of problem {owner}"
        return f"{alike:.0%} alike sample {other}{whose}"

    @cached_property
    def _signer(self) -> Signer:
        return Signer(self.n, self.permutations)

    def _alike(
        self, table: Bytes, order: npt.NDArray[np.intp], owner: npt.NDArray[np.uint32]
    ) -> Iterator[tuple[int, int, float]]:
        if self.within == "corpus":
            yield from alike_by_bands(table, order, self.threshold)
            return
        ends = [*np.flatnonzero(np.diff(owner[order])) + 1, len(order)]
        for start, end in pairwise([0, *ends]):
            yield from alike_in(table, order[start:end], self.threshold)


class Signer:
    """Makes signatures: `Signer(n, size)(text)` is an array of `size` bytes.

    Letters are compared without case; numbers, words, signs and each character of a script
    without spaces are the words of a shingle. A text of fewer than `n` words is one shingle.
    """

    def __init__(self, n: int, size: int) -> None:
        self.n, self.size = n, size
        draw = np.random.default_rng(20250122)
        self._factors = draw.integers(0, 2**32, size, dtype=np.uint32) | np.uint32(1)
        self._offsets = draw.integers(0, 2**32, (size, 1), dtype=np.uint32)

    def __call__(self, text: str) -> Bytes:
        shingles = self.shingles(text)
        minima = np.empty(self.size, np.uint32)
        # As many permutations at a time as stay in the processor's cache.
        step = max(1, _CACHED // len(shingles))
        for at in range(0, self.size, step):
            part = np.multiply.outer(self._factors[at : at + step], shingles)
            part ^= part >> np.uint32(15)
            part *= _MIX
            part += self._offsets[at : at + step]
            minima[at : at + step] = part.min(axis=1)
        return minima.astype(np.uint8)

    def shingles(self, text: str) -> Hashes:
        """The distinct hashes of the text's runs of `n` words, at least one."""
        hashes = word_hashes(text)
        count = max(len(hashes) - self.n + 1, 1)
        mixed = np.zeros(count, np.uint64)
        for at in range(min(self.n, len(hashes))):
            mixed = (mixed ^ (mixed >> np.uint64(29))) * _GOLDEN + hashes[at : at + count]
        mixed *= _GOLDEN
        return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def word_hashes(text: str) -> npt.NDArray[np.uint64]:
    """One hash for each word, number and sign, in order.

    A word is hashed as the sum of its characters times a random factor for each place.
    """
    # surrogatepass: a trace may hold half a surrogate pair.
    encoded = text.casefold().encode("utf-32-le", "surrogatepass")
    codes = np.frombuffer(encoded, np.uint32)
    kinds = _kinds()[np.minimum(codes, _PLANE - 1)]
    begins = kinds == _SIGN
    begins[:1] |= True
    begins[1:] |= kinds[1:] != kinds[:-1]
    begins &= kinds != _SPACE
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.zeros(0, np.uint64)
    first = starts[0]
    word = np.cumsum(begins[first:]) - 1
    place = np.arange(first, len(codes)) - starts[word]
    values = (codes[first:].astype(np.uint64) + np.uint64(1)) * (kinds[first:] != _SPACE)
    values *= _FACTORS[np.minimum(place, len(_FACTORS) - 1)]
    return np.add.reduceat(values, starts - first)


@cache
def _kinds() -> npt.NDArray[np.uint8]:
    """What each character of the basic plane is; all beyond it are signs."""
    kinds = np.full(_PLANE, _SIGN, np.uint8)
    for code in range(_PLANE - 1):
        character = chr(code)
        if character.isspace():
            kinds[code] = _SPACE
        elif character.isdecimal():
            kinds[code] = _DIGIT
        elif character.isalpha() and not _UNSPACED.match(character):
            kinds[code] = _LETTER
    return kinds


def similarity(kept: Bytes, one: Bytes) -> npt.NDArray[np.float64]:
    """Estimated Jaccard similarity of each row of `kept` with `one`.

    Two different minima have the same lowest byte once in 256 times, which is taken off.
    """
    same = (kept == one).mean(axis=1)
    return np.maximum((same - 1 / 256) / (1 - 1 / 256), 0)


def alike_in(
    table: Bytes, group: npt.NDArray[np.intp], threshold: float
) -> Iterator[tuple[int, int, float]]:
    """(row, kept row, similarity) for each row of the group that is like one kept before it."""
    kept = np.empty((len(group), table.shape[1]), np.uint8)
    rows: list[int] = []
    for at in group:
        alike = similarity(kept[: len(rows)], table[at])
        best = int(alike.argmax()) if rows else 0
        if rows and alike[best] >= threshold:
            yield int(at), rows[best], float(alike[best])
        else:
            kept[len(rows)] = table[at]
            rows.append(int(at))


def alike_by_bands(
    table: Bytes, order: npt.NDArray[np.intp], threshold: float
) -> Iterator[tuple[int, int, float]]:
    """As `alike_in` over all rows, but only those that share a band are compared."""
    members: dict[int, list[tuple[int, int]]] = {}
    width = band_rows(threshold, table.shape[1])
    for band, start in enumerate(range(0, table.shape[1] - width + 1, width)):
        keys = _band_keys(table[:, start : start + width])
        _, bucket, counts = np.unique(keys, return_inverse=True, return_counts=True)
        for at in np.flatnonzero(counts[bucket] > 1):
            members.setdefault(int(at), []).append((band, int(bucket[at])))
    kept: dict[tuple[int, int], list[int]] = {}
    """Band and bucket -> the places in `order` of the rows kept."""
    for place, at in enumerate(map(int, order)):
        shared = members.get(at)
        if shared is None:
            continue
        places = sorted({other for key in shared for other in kept.get(key, ())})
        if places:
            rows = order[places]
            alike = similarity(table[rows], table[at])
            best = int(alike.argmax())
            if alike[best] >= threshold:
                yield at, int(rows[best]), float(alike[best])
                continue
        for key in shared:
            kept.setdefault(key, []).append(place)


def band_rows(threshold: float, size: int) -> int:
    """The most minima per band at which LSH finds `RECALL` of the pairs at the threshold."""
    for rows in range(8, 3, -1):
        if 1 - (1 - threshold**rows) ** (size // rows) >= RECALL:
            return rows
    return 3


def _band_keys(band: Bytes) -> npt.NDArray[np.uint64]:
    keys = np.zeros(len(band), np.uint64)
    for column in band.T:
        keys = (keys << np.uint64(8)) | column
    return keys
