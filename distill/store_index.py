"""Segment files and the sidecar indexes that spare reading them again.

`<segment>.idx` is a row of blocks, each for a stretch of the segment that ends with a whole line:

    magic, version                      "dtindex\\0", u32
    count, bad, begin, end              u64 each: records, damaged lines, the stretch in bytes
    size, modified                      u64 each: of the segment when the block was written, in
                                        bytes and nanoseconds
    probe                               u32: CRC-32 of the stretch's first and last 256 bytes
    checksum                            u32: CRC-32 of all other bytes of the block
    low, high, offsets, sizes           count x u64 each, as in `Entries`

in the byte order of the machine: another one sees an unknown version. An index holds nothing
that its segment does not: whatever is doubtful about it, the segment is read instead. What was
written to a segment after its index is read from where the index ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from distill.store_lines import cut, key_of, salvage, whole
from distill.store_table import Digest, Entries, digest

log = logging.getLogger(__name__)

BLOCK_TRACES = 4096
BLOCK_BYTES = 64 << 20
LEAST_BYTES = 64 << 10
"""Segments smaller than this get no index: reading them takes as long as opening one more file."""

MAGIC, VERSION = b"dtindex\0", 1
_HEAD = struct.Struct("=8sI6QII")
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

    def read_index(self, into: Entries) -> None:
        """Add what the index knows; nothing where there is none, or a doubt about it."""
        before = len(into)
        try:
            with self.index.open("rb") as index, self.path.open("rb") as file:
                self.end, self.bad = _parse(index, file.fileno(), into)
        except FileNotFoundError:
            return
        except (Doubt, OSError) as doubt:
            log.warning("%s is not used: %s", self.index, doubt)
            into.truncate(before)
        self.indexed = self._seen = self.end

    def scan(self, into: Entries) -> None:
        """Add what was written since the last look, read line by line."""
        if self.path.stat().st_size == self._seen:
            return
        offset = self.end
        with self.path.open("rb") as file:
            file.seek(offset)
            known, self._loose, self.torn, self._seen = self._loose, set(), 0, offset
            for raw in file:
                line = raw.rstrip(b"\n")
                over = raw.endswith(b"\n")
                where = _known(line)
                found = [(offset, where, line)] if where else list(_salvaged(line, offset))
                for start, key, record in found:
                    if start not in known:
                        into.add(key, start, len(record), cut(record))
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

    def shrank(self) -> bool:
        """Whether the file has lost what was read from it."""
        size = self.path.stat().st_size
        return size < self.end or (size < self._seen and bool(self._loose))

    def outgrew_index(self) -> bool:
        """Whether an index of all that is there would spare reading."""
        return self.indexed < self.end >= LEAST_BYTES

    def write_index(self, entries: Entries) -> None:
        """Replace the index by one block of the `entries` before `end`. Failures are logged."""
        entries.truncate(bisect_left(entries.offsets, self.end))
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


def _modified(now: os.stat_result) -> int:
    # A clock before 1970 or after 2262 is no reason to fail.
    return now.st_mtime_ns % (1 << 64)


def _block(entries: Entries, begin: int, end: int, bad: int, path: Path) -> bytes:
    with path.open("rb") as file:
        now = os.fstat(file.fileno())
        probe = _probe(file.fileno(), begin, end)
    head = [MAGIC, VERSION, len(entries), bad, begin, end, now.st_size, _modified(now), probe]
    body = b"".join(column.tobytes() for column in entries.columns)
    checksum = zlib.crc32(body, zlib.crc32(_HEAD.pack(*head, 0)))
    return _HEAD.pack(*head, checksum) + body


def _parse(index: BinaryIO, file: int, into: Entries) -> tuple[int, int]:
    """Add the entries of an index to `into`; where it ends, and the bad lines before that.

    A last block that is not all there was under way when its writer was killed: what it would
    cover is read from the segment. Raises Doubt on anything else that is not as it should be.
    """
    now, left = os.fstat(file), os.fstat(index.fileno()).st_size
    end = bad = size = modified = 0
    while left >= _HEAD.size:
        head = index.read(_HEAD.size)
        if len(head) < _HEAD.size:
            raise Doubt("it became shorter while it was read")
        magic, version, count, more, begin, stop, was, changed, probe, checksum = _HEAD.unpack(head)
        if magic != MAGIC or version != VERSION:
            raise Doubt(f"it is no index of version {VERSION}")
        left -= _HEAD.size + 32 * count
        if left < 0:
            break
        if begin != end or not begin <= stop <= was <= now.st_size:
            raise Doubt("its segment is shorter, or another")
        if _take(index, into, count, zlib.crc32(head[:-4] + bytes(4)), begin, stop) != checksum:
            raise Doubt("its checksum is wrong")
        if probe != _probe(file, begin, stop):
            raise Doubt("its segment is another")
        end, bad, size, modified = stop, bad + more, was, changed
    if end and now.st_size == size and _modified(now) != modified:
        raise Doubt("its segment was written to since")
    return end, bad


def _take(index: BinaryIO, into: Entries, count: int, checksum: int, begin: int, end: int) -> int:
    """Add the columns of a block; the checksum over them. Raises Doubt if one is out of range."""
    before = len(into)
    for column in into.columns:
        try:
            column.fromfile(index, count)
        except EOFError:
            raise Doubt("it became shorter while it was read") from None
        with memoryview(column) as view, view[before:] as part:
            checksum = zlib.crc32(part, checksum)
    if not _inside(into, before, begin, end):
        raise Doubt("it points outside its segment")
    return checksum


def _inside(entries: Entries, first: int, begin: int, end: int) -> bool:
    """Whether all entries from `first` on lie between two offsets.

    A function of its own, because its views must be gone before the columns can change again.
    """
    import numpy as np

    offsets = np.frombuffer(entries.offsets, np.uint64)[first:]
    last = offsets + (np.frombuffer(entries.sizes, np.uint64)[first:] >> np.uint64(1))
    low, high = offsets.min(initial=end), last.max(initial=begin)
    return bool(low >= begin and high <= end and (last >= offsets).all())
