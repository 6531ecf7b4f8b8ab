"""Segment files and the sidecar indexes that spare reading them again.

`<segment>.idx` is a row of blocks, each for a stretch of the segment that ends with a whole line:

    magic, version                      "dtindex\\0", u32
    count, bad, begin, end              u64 each: records, damaged lines, the stretch in bytes
    size, modified                      u64 each: of the segment when the block was written, in
                                        bytes and nanoseconds
    probe                               u32: CRC-32 of the stretch's first and last 256 bytes
    checksum                            u32: CRC-32 of all other bytes of the block
    low, high, offsets, sizes           count x u64 each, as in `Entries`

all little-endian. An index holds nothing that its segment does not: whatever is doubtful about
it, the segment is read instead. What was written to a segment after its index is read from where
the index ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import sys
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from distill.store_lines import cut, key_of, salvage, whole
from distill.store_table import Digest, Entries, digest

log = logging.getLogger(__name__)

BLOCK_TRACES = 4096
BLOCK_BYTES = 64 << 20
LEAST_BYTES = 64 << 10
"""Segments smaller than this get no index: reading them takes as long as opening one more file."""

MAGIC, VERSION = b"dtindex\0", 1
_HEAD = struct.Struct("<8sI6QII")
_PROBE = 256


class Doubt(Exception):
    """An index that is not taken at its word; says why."""


@dataclass(slots=True)
class Segment:
    """One segment file as far as it was read.

    `end` is where the last line that is over ends: what follows may be a line under way, and is
    looked at again each time. `bad` counts the damaged lines before it, `torn` is 1 if what
    follows is no whole record. `indexed` is where the index file ends.
    """

    path: Path
    end: int = 0
    bad: int = 0
    torn: int = 0
    indexed: int = 0
    _seen: int = 0
    _loose: set[int] = field(default_factory=set)

    @property
    def index(self) -> Path:
        return self.path.with_suffix(".idx")

    def read_index(self) -> Entries:
        """What the index knows; nothing where there is none, or a doubt about it."""
        entries = Entries()
        try:
            raw = self.index.read_bytes()
        except OSError:
            return entries
        try:
            with self.path.open("rb") as file:
                self.end, self.bad = _parse(raw, file.fileno(), entries)
        except Doubt as doubt:
            log.warning("%s is not used: %s", self.index, doubt)
            self.end = self.bad = 0
            return Entries()
        self.indexed = self._seen = self.end
        return entries

    def scan(self) -> Entries:
        """What was written since the last look, read line by line."""
        entries = Entries()
        if self.path.stat().st_size == self._seen:
            return entries
        offset = self.end
        with self.path.open("rb") as file:
            file.seek(offset)
            known, self._loose, self.torn = self._loose, set(), 0
            for raw in file:
                line = raw.rstrip(b"\n")
                over = raw.endswith(b"\n")
                where = _known(line)
                found = [(offset, where, line)] if where else list(_salvaged(line, offset))
                for start, key, record in found:
                    if start not in known:
                        entries.add(key, start, len(record), cut(record))
                    if not over:
                        self._loose.add(start)
                if not over:
                    # More of it may arrive between two reads, and would look like a line.
                    self.torn = int(where is None)
                    self._seen = offset + len(raw)
                    break
                self.bad += where is None
                offset += len(raw)
                self.end = self._seen = offset
        return entries

    def shrank(self) -> bool:
        """Whether the file has lost what was read from it."""
        size = self.path.stat().st_size
        return size < self.end or (size < self._seen and bool(self._loose))

    def write_index(self, entries: Entries) -> None:
        """Replace the index by one block of the `entries` before `end`. Failures are logged."""
        while entries.offsets and entries.offsets[-1] >= self.end:
            entries = Entries(*(column[:-1] for column in entries.columns))
        temporary = self.index.with_name(f".{self.index.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(_block(entries, 0, self.end, self.bad, self.path))
            os.replace(temporary, self.index)
            self.indexed = self.end
        except OSError as error:
            log.warning("%s cannot be written (%s): opening will take longer", self.index, error)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def forget_index(self) -> None:
        """Delete the index, because the segment is not what it says."""
        self.index.unlink(missing_ok=True)


class IndexWriter:
    """Appends blocks to the index of the segment that is being written.

    A block covers what `sync` has brought to the disk, so that after a power cut no index
    promises more than its segment holds. The index itself is never synced.
    """

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self._out: int | None = None
        self._pending = Entries()
        self._given_up = False

    def add(self, where: Digest, offset: int, length: int, cut: bool) -> None:
        if not self._given_up:
            self._pending.add(where, offset, length, cut)

    def due(self) -> bool:
        """Whether it is time for a block."""
        waiting = self.segment.end - self.segment.indexed
        return len(self._pending) >= BLOCK_TRACES or (
            waiting >= BLOCK_BYTES and len(self._pending) > 0
        )

    def write(self) -> None:
        """Write a block for all of the segment, which is on the disk. Failures are logged only."""
        begin, end = self.segment.indexed, self.segment.end
        if self._given_up or not len(self._pending) or (not begin and end < LEAST_BYTES):
            return
        try:
            block = _block(self._pending, begin, end, 0, self.segment.path)
            if self._out is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
                self._out = os.open(self.segment.index, flags, 0o666)
            if os.write(self._out, block) < len(block):
                raise OSError("the disk took a part of it only")
        except OSError as error:
            # A torn block is passed over by readers; one after it would never be found.
            log.warning("%s cannot be written (%s)", self.segment.index, error)
            self.give_up()
        else:
            self.segment.indexed, self._pending = end, Entries()

    def give_up(self) -> None:
        """Write no more: what was written so far is in doubt."""
        self._given_up, self._pending = True, Entries()

    def close(self) -> None:
        if self._out is not None:
            os.close(self._out)
            self._out = None


def _known(line: bytes) -> Digest | None:
    """The hash of a whole record's key; None for anything else."""
    key = key_of(line) if whole(line) else None
    return None if key is None else digest(key)


def _salvaged(line: bytes, offset: int) -> Iterator[tuple[int, Digest, bytes]]:
    for start, stop in salvage(line):
        where = _known(line[start:stop])
        if where is not None:
            yield offset + start, where, line[start:stop]


def _probe(file: int, begin: int, end: int) -> int:
    length = min(_PROBE, end - begin)
    head = os.pread(file, length, begin)
    return zlib.crc32(os.pread(file, length, end - length), zlib.crc32(head))


def _block(entries: Entries, begin: int, end: int, bad: int, path: Path) -> bytes:
    with path.open("rb") as file:
        now = os.fstat(file.fileno())
        probe = _probe(file.fileno(), begin, end)
    head = [MAGIC, VERSION, len(entries), bad, begin, end, now.st_size, now.st_mtime_ns, probe]
    body = b"".join(_swapped(column).tobytes() for column in entries.columns)
    checksum = zlib.crc32(body, zlib.crc32(_HEAD.pack(*head, 0)))
    return _HEAD.pack(*head, checksum) + body


def _parse(raw: bytes, file: int, entries: Entries) -> tuple[int, int]:
    """Fill `entries` from an index; where it ends and how many lines before that are bad.

    A last block that is not all there was under way when its writer was killed: what it would
    cover is read from the segment. Raises Doubt on anything else that is not as it should be.
    """
    now = os.fstat(file)
    at = end = bad = size = modified = 0
    while len(raw) - at >= _HEAD.size:
        magic, version, count, more, begin, stop, size_, modified_, probe, checksum = (
            _HEAD.unpack_from(raw, at)
        )
        if magic != MAGIC or version != VERSION:
            raise Doubt(f"it is no index of version {VERSION}")
        body = memoryview(raw)[at + _HEAD.size : at + _HEAD.size + 32 * count]
        if len(body) < 32 * count:
            break
        head = raw[at : at + _HEAD.size - 4] + bytes(4)
        if zlib.crc32(body, zlib.crc32(head)) != checksum:
            raise Doubt("its checksum is wrong")
        if begin != end or not begin <= stop <= now.st_size or size_ > now.st_size:
            raise Doubt("its segment is shorter, or another")
        if probe != _probe(file, begin, stop):
            raise Doubt("its segment is another")
        _take(entries, body, count, begin, stop)
        at += _HEAD.size + 32 * count
        end, bad, size, modified = stop, bad + more, size_, modified_
    if end and now.st_size == size and now.st_mtime_ns != modified:
        raise Doubt("its segment was written to since")
    return end, bad


def _take(entries: Entries, body: memoryview, count: int, begin: int, end: int) -> None:
    import numpy as np

    more = Entries(*(_column(body[8 * count * i : 8 * count * (i + 1)]) for i in range(4)))
    if count:
        offsets, sizes = (
            np.frombuffer(more.offsets, np.uint64),
            np.frombuffer(more.sizes, np.uint64),
        )
        last = offsets + (sizes >> np.uint64(1))
        if offsets.min() < begin or (last < offsets).any() or last.max() > end:
            raise Doubt("it points outside its segment")
    entries.extend(more)


def _column(raw: memoryview) -> array[int]:
    column = array("Q")
    column.frombytes(raw)
    return _swapped(column)


def _swapped(column: array[int]) -> array[int]:
    if sys.byteorder == "big":
        column = column[:]
        column.byteswap()
    return column
