"""Where each trace lies, in about 40 bytes of memory a trace.

A key is known by the 128 bits of its BLAKE2b hash: two of a billion keys share them with a
probability below 1e-20. An open-addressing table of 32-bit row numbers, at most two thirds full,
leads from a hash to its row; a row is four 64-bit numbers in plain arrays. There are no objects
per trace, and adding one moves none.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from distill.records import TraceKey
from distill.thinking import sanitise

Digest = tuple[int, int]
"""The hash of a key as two 64-bit numbers."""

_SMALL = 1024
_SLOTS = 1 << 12


def digest(key: TraceKey) -> Digest:
    """The hash of a key, the same on every machine. Lone surrogates count as U+FFFD, as stored."""
    name, index, segment = key
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        raw = sanitise(name)[0].encode()
    found = hashlib.blake2b(b"%d/%d/%b" % (index, segment, raw), digest_size=16)
    return struct.unpack("<QQ", found.digest())


def _numbers() -> array[int]:
    return array("Q")


@dataclass(slots=True)
class Entries:
    """Places of traces in one segment file, as columns: hash, offset, and size with the cut flag.

    `sizes` holds the length of the line in bytes, times two, plus one if the trace was cut off
    at a token limit.
    """

    low: array[int] = field(default_factory=_numbers)
    high: array[int] = field(default_factory=_numbers)
    offsets: array[int] = field(default_factory=_numbers)
    sizes: array[int] = field(default_factory=_numbers)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def columns(self) -> tuple[array[int], array[int], array[int], array[int]]:
        return self.low, self.high, self.offsets, self.sizes

    def add(self, where: Digest, offset: int, length: int, cut: bool) -> None:
        self.low.append(where[0])
        self.high.append(where[1])
        self.offsets.append(offset)
        self.sizes.append(length << 1 | cut)

    def extend(self, other: Entries) -> None:
        for mine, theirs in zip(self.columns, other.columns, strict=True):
            mine.extend(theirs)

    def part(self, begin: int) -> Entries:
        """A copy of the rows from `begin` on."""
        return Entries(*(column[begin:] for column in self.columns))

    def truncate(self, length: int) -> None:
        """Drop the rows from `length` on."""
        for column in self.columns:
            del column[length:]


class KeyTable:
    """Rows by hash, in the order they were added; the first row of a hash wins."""

    def __init__(self) -> None:
        self._rows = Entries()
        self._slots = array("I", bytes(4 * _SLOTS))
        self._shift = 64 - (_SLOTS.bit_length() - 1)
        # Rows of one segment lie together: where each stretch begins, and whose it is.
        self._starts: list[int] = []
        self._numbers: list[int] = []

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, where: Digest) -> int:
        """The row of a hash, or -1."""
        low, high = where
        slots, mask = self._slots, len(self._slots) - 1
        slot = low >> self._shift
        while row := slots[slot]:
            if self._rows.high[row - 1] == high and self._rows.low[row - 1] == low:
                return row - 1
            slot = (slot + 1) & mask
        return -1

    def place(self, row: int) -> tuple[int, int, int]:
        """Segment number, offset and length in bytes."""
        number = self._numbers[bisect_right(self._starts, row) - 1]
        return number, self._rows.offsets[row], self._rows.sizes[row] >> 1

    def cut(self, row: int) -> bool:
        return bool(self._rows.sizes[row] & 1)

    def add(self, where: Digest, number: int, offset: int, length: int, cut: bool) -> bool:
        """Add a row of segment `number` unless its hash is there; returns whether it was new."""
        if self.find(where) >= 0:
            return False
        self._stretch(number, len(self._rows))
        self._rows.add(where, offset, length, cut)
        if len(self._rows) * 3 > len(self._slots) * 2:
            self._rebuild()
        else:
            self._put(where[0], len(self._rows))
        return True

    def extend(self, entries: Entries, stretches: Sequence[tuple[int, int]]) -> int:
        """Add entries, which it may keep; returns how many were new.

        `stretches` says whose they are: (segment number, how many entries), in their order.
        """
        before = len(self._rows)
        if len(entries) > max(_SMALL, before // 8):
            return self._extend_at_once(entries, stretches)
        numbers = (number for number, count in stretches for _ in range(count))
        for number, low, high, offset, size in zip(numbers, *entries.columns, strict=True):
            self.add((low, high), number, offset, size >> 1, bool(size & 1))
        return len(self._rows) - before

    def _extend_at_once(self, entries: Entries, stretches: Sequence[tuple[int, int]]) -> int:
        import numpy as np

        before = len(self._rows)
        if before:
            self._rows.extend(entries)
        else:
            self._rows = entries
        ends = list(accumulate((count for _, count in stretches), initial=before))
        order = self._order()
        low, high = (np.frombuffer(c, np.uint64) for c in self._rows.columns[:2])
        again = np.zeros(len(order), bool)
        again[1:] = low[order[1:]] == low[order[:-1]]
        again[1:] &= high[order[1:]] == high[order[:-1]]
        del low, high
        if again.any():
            keep = np.ones(len(order), bool)
            keep[order[again]] = False
            self._rows = Entries(
                *(_array(np.frombuffer(c, np.uint64)[keep]) for c in self._rows.columns)
            )
            new_row = np.cumsum(keep)
            ends = [int(new_row[end - 1]) if end else 0 for end in ends]
            order = new_row[order[~again]] - 1
        for (number, _), start, end in zip(stretches, ends, ends[1:], strict=False):
            if end > start:
                self._stretch(number, start)
        self._rebuild(order)
        return len(self._rows) - before

    def _order(self) -> Any:
        """Row numbers by hash; rows of one hash in the order they were added."""
        import numpy as np

        low, high = (np.frombuffer(c, np.uint64) for c in self._rows.columns[:2])
        order = np.argsort(low, kind="stable")
        if (low[order[1:]] == low[order[:-1]]).any():
            order = np.lexsort((high, low))
        return order

    def _stretch(self, number: int, start: int) -> None:
        if not self._numbers or self._numbers[-1] != number:
            self._starts.append(start)
            self._numbers.append(number)

    def _put(self, low: int, value: int) -> None:
        slots, mask = self._slots, len(self._slots) - 1
        slot = low >> self._shift
        while slots[slot]:
            slot = (slot + 1) & mask
        slots[slot] = value

    def _rebuild(self, order: Any = None) -> None:
        """Make the table anew, between one third and two thirds full.

        A row's slot is the upper bits of its hash, or the next free one. Sorted by hash, that
        is a running maximum, so that no row needs a step of Python of its own.
        """
        import numpy as np

        order = self._order() if order is None else order
        bits = max(_SLOTS - 1, 3 * len(order) // 2).bit_length()
        self._shift = 64 - bits
        low = np.frombuffer(self._rows.low, np.uint64)[order]
        steps = np.arange(len(order), dtype=np.int64)
        home = (low >> np.uint64(self._shift)).astype(np.int64)
        slot = np.maximum.accumulate(home - steps) + steps
        inside = slot < 1 << bits
        table = np.zeros(1 << bits, np.uint32)
        table[slot[inside]] = order[inside] + 1
        self._slots = _array(table)
        for row in order[~inside].tolist():
            self._put(self._rows.low[row], row + 1)


def _array(values: Any) -> array[int]:
    made = array("I" if values.dtype.itemsize == 4 else "Q")
    made.frombytes(memoryview(values).cast("B"))
    return made
