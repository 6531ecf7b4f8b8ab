"""Runs of words as 64-bit hashes, for finding what a text says again and again.

A text is taken as an array of characters, so that a character costs a few passes of numpy and no
Python object. Equal hashes are taken for equal runs: among 10^5 different runs the chance that any
two are mistaken for each other is about 10^-9.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

LONGEST = 64
"""Bytes of a word; a longer one counts as several, so that a text without spaces has some, too."""

LETTERS = 3
"""Letters in a row that make a word of what may otherwise be a formula."""

U64 = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]

_STEP = 0xD1342543DE82EF95
"""Odd, so that it has an inverse modulo 2^64, by which a word's place is divided out of its sum."""
_POWER = 0xDA942042E4DD58B5
_KEPT = 1 << 20

# White space becomes a zero byte, which adds nothing to a sum; with a mask digits become one sign.
_BLANK = bytes(0 if byte < 128 and chr(byte).isspace() else byte for byte in range(256))
_MASK = bytes(ord("#") if chr(byte) in "0123456789" else _BLANK[byte] for byte in range(256))

# Letters of ASCII, and in UTF-8 the bytes of those that follow it up to U+1FFF.
_LETTER = np.array([chr(b).isalpha() if b < 128 else b < 0xE2 for b in range(256)])

_FIRST, _LAST = 0xE3, 0xED
"""First bytes of the characters from U+3000 to U+DFFF: scripts without spaces, mostly."""


@dataclass(frozen=True)
class Words:
    """The words of a text. `codes` are its bytes, white space 0; `starts` where words begin.

    Characters of unspaced scripts are words of their own, and so are pieces of very long words.
    """

    codes: Bytes
    starts: Places
    hashes: U64
    long: bool
    """Whether any word was cut, here or where numbers are not masked: then the words of the two
    need not be the same ones, and repeats in the one say nothing of the other."""

    def quoted(self, first: int, count: int) -> str:
        """`count` words from the first on, with single spaces between them."""
        ends = [*self.starts[first + 1 : first + count + 1].tolist(), len(self.codes)]
        starts = self.starts[first : first + count].tolist()
        pieces = (self.codes[a:b].tobytes() for a, b in zip(starts, ends, strict=False))
        return b" ".join(piece.strip(b"\0") for piece in pieces).decode("utf-8", "replace")

    def wordy(self, size: int) -> Places:
        """For each run of `size` words how many of them are of letters, not of formulas.

        A word that holds `LETTERS` letters in a row, or a character of an unspaced script.
        """
        letter = np.pad(_LETTER[self.codes], (0, LETTERS - 1))
        count = len(self.codes)
        word = (self.codes >= _FIRST) & (self.codes <= _LAST)
        word |= letter[:count] & letter[1 : count + 1] & letter[2 : count + 2]
        hits = np.add.reduceat(word.astype(np.int64), self.starts) > 0
        sums = np.concatenate(([0], np.cumsum(hits)))
        return sums[size:] - sums[:-size]


def words_of(text: str, *, masked: bool = False) -> Words:
    """The words of a text; with `masked`, numbers (points and commas inside included) as `#`."""
    data = text.encode("utf-8", "surrogatepass").translate(_MASK if masked else _BLANK)
    codes = np.frombuffer(data, dtype=np.uint8)
    unbroken = False
    if masked:
        unbroken = _unbroken(codes) > LONGEST
        codes = _collapsed(codes)
    inside = codes != 0
    new = inside.copy()
    new[1:] &= ~inside[:-1]
    if not text.isascii():
        alone = (codes >= _FIRST) & (codes <= _LAST)
        if alone.any():
            new |= alone
            new[3:] |= alone[:-3] & inside[3:]
    starts = np.flatnonzero(new)
    if not len(starts):
        return Words(codes, starts, np.zeros(0, np.uint64), unbroken)
    # The distance to the next word holds the white space between; the words may still be short.
    long = int(np.diff(starts, append=len(codes)).max()) > LONGEST
    if long:
        pieces = _cut(starts, inside)
        long = len(pieces) > len(starts)
        starts = pieces
    return Words(codes, starts, _hashes(codes, starts), long or unbroken)


def _unbroken(codes: Bytes) -> int:
    """The greatest number of bytes without white space between them."""
    blanks = np.flatnonzero(codes == 0)
    return int(np.diff(blanks, prepend=-1, append=len(codes)).max()) - 1


def _collapsed(codes: Bytes) -> Bytes:
    """Of each number, whose digits are `#`, the first sign: 12,345.6 -> ##,###.# -> #."""
    number = codes == ord("#")
    if len(codes) < 3 or not number.any():
        return codes
    inner = (codes[1:-1] == ord(".")) | (codes[1:-1] == ord(","))
    inner &= number[:-2] & number[2:]
    number[1:-1] |= inner
    keep = np.ones(len(codes), dtype=np.bool_)
    np.logical_and(number[1:], number[:-1], out=keep[1:])
    np.logical_not(keep[1:], out=keep[1:])
    return codes[keep]


def run_hashes(hashes: U64, size: int) -> U64:
    """A polynomial hash of each run of `size` words, by its first word; none for a shorter text.

    Runs are put together from runs of 1, 2, 4, ... words.
    """
    count = len(hashes) - size + 1
    if count < 1:
        return hashes[:0]
    total: U64 | None = None
    done, covered, power, runs = 1, 0, _POWER, hashes
    while True:
        if size & done:
            part = runs[covered : covered + count]
            total = part if total is None else total * np.uint64(power) + part
            covered += done
        if covered == size and total is not None:
            return total
        runs = runs[: len(runs) - done] * np.uint64(power) + runs[done:]
        done, power = 2 * done, power * power % 2**64


def repeated(runs: U64, times: int) -> int:
    """How many runs occur at least `times` times (two or more)."""
    if len(runs) < times:
        return 0
    ordered = np.sort(runs)
    same = ordered[times - 1 :] == ordered[: len(ordered) - times + 1]
    if not same.any():
        return 0
    # A group of n equal ones shows as n - times + 1 equal pairs in a row.
    groups = int(same[0]) + int((same[1:] & ~same[:-1]).sum())
    return int(same.sum()) + groups * (times - 1)


def _hashes(codes: Bytes, starts: Places) -> U64:
    """A hash of the characters from each start to the next; white space counts for nothing."""
    powers, inverses = _powers(len(codes))
    sums = codes * powers[: len(codes)]
    np.cumsum(sums, out=sums)
    ends = sums[np.append(starts[1:], len(codes)) - 1]
    before = np.concatenate((np.zeros(1, np.uint64), ends[:-1]))
    # What precedes the first word is white space, and adds nothing.
    return _mix((ends - before) * inverses[starts])


def _mix(values: U64) -> U64:
    # The finaliser of splitmix64: any difference changes about half of the bits.
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _powers(size: int) -> tuple[U64, U64]:
    """At least `size` powers of the step and of its inverse."""
    return _kept_powers() if size <= _KEPT else _made_powers(size)


@cache
def _kept_powers() -> tuple[U64, U64]:
    return _made_powers(_KEPT)


def _made_powers(size: int) -> tuple[U64, U64]:
    inverse = pow(_STEP, -1, 2**64)
    return (
        np.multiply.accumulate(np.full(size, _STEP, dtype=np.uint64)),
        np.multiply.accumulate(np.full(size, inverse, dtype=np.uint64)),
    )


def _cut(starts: Places, inside: npt.NDArray[np.bool_]) -> Places:
    """The starts of pieces of at most `LONGEST` characters of each word."""
    last = inside.copy()
    last[:-1] &= ~inside[1:]
    ends = np.flatnonzero(last) + 1
    # Words that follow one another without white space end where the next begins.
    ends = np.minimum(
        ends[np.searchsorted(ends, starts, side="right")], np.append(starts[1:], len(inside))
    )
    pieces = -(-(ends - starts) // LONGEST)
    before = np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin: Places = np.repeat(starts, pieces) + (np.arange(len(before)) - before) * LONGEST
    return begin
