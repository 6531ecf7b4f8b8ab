"""The trace pool: append-only files that lose nothing that was bought, whatever happens.

A pool is a folder of segment files `<number>-<pid>.jsonl`, one for each writer that ever was,
so nothing is appended to a line that a crash has torn. Every line is a trace with a checksum
(`store_lines`); beside a segment may lie an index of it (`store_index`), which is never needed.

What is promised: a batch is one `write`; it is on the disk (`fsync`) when the next batch comes
a second or more after the last `fsync`, and when the pool is closed. So a killed process loses
nothing that `append` has returned for, and a power cut only what was not yet synced.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from distill.errors import StoreError
from distill.records import Trace, TraceKey, from_row
from distill.store_folder import PoolLocked, check_content, generation_key, lock, unlock
from distill.store_index import IndexWriter, Segment
from distill.store_lines import encode, key_of, whole
from distill.store_table import Digest, Entries, KeyTable, digest
from distill.thinking import sanitise

__all__ = ["PoolLocked", "TracePool", "encode", "generation_key", "is_pool"]

log = logging.getLogger(__name__)

SYNC_EVERY_S = 1.0
OPEN_FILES = 64

_NAME = re.compile(r"(\d+)-(\d+)\.jsonl")


class TracePool:
    """The traces of one generation key, by (problem id, sample index, segment).

    `with TracePool.open(folder, write=True) as pool:`. One process writes at a time (an
    exclusive lock on `<folder>/lock`, which holds its pid); any number may read, and see what
    was there when they opened or last called `refresh`. The first complete record of a key wins.

    `bad` counts damaged lines, `torn` last lines that a crash cut off (or that are being
    written), `duplicates` records whose key was there already. A pool takes about 40 bytes of
    memory a trace. One thread uses a pool at a time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.duplicates = 0
        self._table = KeyTable()
        self._segments: list[Segment] = []
        self._readers: dict[int, int] = {}
        self._lock: int | None = None
        self._out: int | None = None
        self._index: IndexWriter | None = None
        self._own = -1
        self._synced = 0.0
        self._writable = False

    @classmethod
    def open(
        cls, folder: Path, *, write: bool, content: Mapping[str, Any] | None = None
    ) -> TracePool:
        """Open a pool: read its indexes, and what of its files they do not cover.

        A writer makes the folder and, with `content` (of `generation_key`), its `pool.json`.
        Raises PoolLocked (a StoreError) if another process writes, StoreError if there is no
        such pool to read or it belongs to other sampling.
        """
        pool = cls(folder)
        try:
            if write:
                pool._lock = lock(pool.folder)
                pool._writable = True
            elif not pool.folder.is_dir():
                raise StoreError(f"no trace pool at {folder}", "sample first")
            if content is not None:
                check_content(pool.folder, content, write=write)
            pool._catch_up()
            if pool.bad:
                log.warning("%s: %d damaged lines were passed over", folder, pool.bad)
        except OSError as error:
            pool.close()
            raise StoreError(
                f"the trace pool {folder} cannot be opened: {error}",
                "check its permissions and the free space on its disk",
            ) from error
        except BaseException:
            pool.close()
            raise
        return pool

    def __enter__(self) -> TracePool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __contains__(self, key: TraceKey) -> bool:
        return self._table.find(digest(key)) >= 0

    def __len__(self) -> int:
        return len(self._table)

    @property
    def bad(self) -> int:
        return sum(segment.bad for segment in self._segments)

    @property
    def torn(self) -> int:
        return sum(segment.torn for segment in self._segments)

    def is_cut(self, key: TraceKey) -> bool:
        """Whether the stored trace ended at a token limit; reads no file."""
        row = self._table.find(digest(key))
        return row >= 0 and self._table.cut(row)

    def get(self, key: TraceKey) -> Trace | None:
        """The stored trace, or None. Raises StoreError if the file changed since opening."""
        where = digest(key)
        row = self._table.find(where)
        if row < 0:
            return None
        line = self._line(row)
        found = key_of(line)
        if _same(found, key):
            return from_row(Trace, json.loads(line))
        if found is not None and digest(found) == where:
            return None  # another key of the same hash
        raise self._changed(row)

    def traces(
        self,
        keys: Iterable[TraceKey] | None = None,
        *,
        last: int | None = None,
        start: int = 0,
    ) -> Iterator[Trace]:
        """The traces of `keys` that are stored, in that order; by default all, oldest first.

        Without `keys`, `last` takes those of the newest so many segment files alone, and `start`
        passes over so many of the oldest.
        """
        if keys is None:
            first = 0 if last is None else len(self._segments) - last
            for row in range(start, len(self._table)):
                if self._table.place(row)[0] >= first:
                    yield from_row(Trace, json.loads(self._line(row)))
            return
        for key in keys:
            trace = self.get(key)
            if trace is not None:
                yield trace

    def refresh(self) -> int:
        """See what a running job has stored since; returns how many traces are new.

        Reads the folder's listing and what was added, nothing else. Raises StoreError if a
        file became shorter than what was read of it.
        """
        try:
            return self._catch_up()
        except OSError as error:
            raise StoreError(
                f"the trace pool {self.folder} cannot be read: {error}", "open it again"
            ) from error

    def append(self, traces: Iterable[Trace]) -> int:
        """Store traces whose keys are new, in one write. Returns how many were new.

        Raises StoreError when the disk is full; what was written whole is kept.
        """
        if not self._writable:
            raise StoreError(f"the trace pool {self.folder} is open for reading only")
        fresh: dict[Digest, tuple[bytes, bool]] = {}
        for trace in traces:
            where = digest(trace.key)
            if where in fresh or self._table.find(where) >= 0:
                self.duplicates += 1
            else:
                fresh[where] = (encode(trace), trace.finish_reason == "length")
        if not fresh:
            return 0
        written, error = self._write(b"".join(line for line, _ in fresh.values()))
        for where, (line, cut) in fresh.items():
            if written < len(line):
                break
            self._note(where, len(line), cut)
            written -= len(line)
        if error is None and self._index and self._index.due():
            error = self._write_index()
        if error is not None:
            self._refuse(error)
        return len(fresh)

    def close(self) -> None:
        """Sync, close all files and give the lock back. May be called twice.

        Raises StoreError if the disk did not take what was written.
        """
        for reader in self._readers.values():
            os.close(reader)
        self._readers.clear()
        self._writable = False
        out, self._out = self._out, None
        held, self._lock = self._lock, None
        try:
            if out is not None:
                try:
                    os.fsync(out)
                    if self._index:
                        self._index.write()
                except OSError as error:
                    raise StoreError(
                        f"the trace pool {self.folder} could not be synced: {error.strerror}",
                        "see to the disk and run the same command again",
                    ) from error
                finally:
                    os.close(out)
                    if self._index:
                        self._index.close()
        finally:
            if held is not None:
                unlock(held)

    def _catch_up(self) -> int:
        """Read what was added to the segments, and segments that are new, to their ends."""
        known = {segment.path.name for segment in self._segments}
        paths = (p for p in self.folder.iterdir() if _NAME.fullmatch(p.name))
        self._segments += map(
            Segment, sorted((p for p in paths if p.name not in known), key=_order)
        )
        entries, stretches, found = Entries(), list[tuple[int, int]](), 0
        try:
            for number, segment in enumerate(self._segments):
                before = len(entries)
                try:
                    if number != self._own:
                        self._read(segment, entries, new=segment.path.name not in known)
                finally:
                    stretches.append((number, len(entries) - before))
        finally:
            # What was read of a segment is not read again, so an error may not lose it.
            seen = len(entries)
            found = self._table.extend(entries, stretches)
            self.duplicates += seen - found
        return found

    def _read(self, segment: Segment, into: Entries, *, new: bool) -> None:
        before = len(into)
        if new:
            segment.read_index(into)
        elif segment.shrank():
            raise self._gone(segment)
        segment.scan(into)
        if new and self._writable and segment.outgrew_index():
            segment.write_index(into.part(before))

    def _note(self, where: Digest, length: int, cut: bool) -> None:
        """Enter a line that was just written, its end of line included in `length`."""
        segment = self._segments[self._own]
        self._table.add(where, self._own, segment.end, length - 1, cut)
        if self._index:
            self._index.add(where, segment.end, length - 1, cut)
        segment.end += length

    def _line(self, row: int) -> bytes:
        number, offset, length = self._table.place(row)
        try:
            line = os.pread(self._reader(number), length, offset)
        except OSError as error:
            raise StoreError(
                f"{self._segments[number].path} cannot be read: {error.strerror}",
                "see to the file and run the same command again",
            ) from error
        if whole(line):
            return line
        raise self._changed(row)

    def _changed(self, row: int) -> StoreError:
        """The error of a line that is not what it was; the next opening will look for itself."""
        number, *_ = self._table.place(row)
        segment, hint = self._segments[number], "run the same command again"
        try:
            segment.forget_index()
        except OSError:
            hint = f"delete {segment.index} and {hint}"
        if self._index and number == self._own:
            self._index.give_up()
        return self._gone(segment, hint)

    def _gone(self, segment: Segment, hint: str = "run the same command again") -> StoreError:
        return StoreError(f"{segment.path} changed while it was read", hint)

    def _reader(self, number: int) -> int:
        reader = self._readers.get(number)
        if reader is None:
            if len(self._readers) >= OPEN_FILES:
                os.close(self._readers.pop(next(iter(self._readers))))
            reader = os.open(self._segments[number].path, os.O_RDONLY | os.O_CLOEXEC)
            self._readers[number] = reader
        return reader

    def _begin_segment(self) -> int:
        last = max((_order(segment.path)[0] for segment in self._segments), default=0)
        path = self.folder / f"{last + 1:06}-{os.getpid()}.jsonl"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        out = os.open(path, flags, 0o666)
        self._own = len(self._segments)
        self._segments.append(Segment(path))
        self._index = IndexWriter(self._segments[self._own])
        # The new name must survive a power cut too; not every file system can promise it.
        with contextlib.suppress(OSError):
            folder = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return out

    def _write(self, data: bytes) -> tuple[int, OSError | None]:
        """Write all of `data`; how much arrived, and what went wrong."""
        written = 0
        try:
            if self._out is None:
                self._out = self._begin_segment()
            view = memoryview(data)
            while written < len(data):
                written += os.write(self._out, view[written:])
            if time.monotonic() - self._synced >= SYNC_EVERY_S:
                os.fsync(self._out)
                self._synced = time.monotonic()
        except OSError as error:
            return written, error
        return written, None

    def _write_index(self) -> OSError | None:
        """Index what was written; on the disk first, so that a power cut takes it from neither."""
        assert self._out is not None
        assert self._index is not None
        try:
            os.fsync(self._out)
        except OSError as error:
            return error
        self._synced = time.monotonic()
        self._index.write()
        return None

    def _refuse(self, error: OSError) -> None:
        """Take back the torn line, so that the file ends with a whole one, and say so."""
        if self._out is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._out, self._segments[self._own].end)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise StoreError(
            f"the trace pool {self.folder} cannot be written: {error.strerror}",
            ("free some disk space" if full else "repair the disk")
            + f" and run the same command again: the {len(self):,} traces that are there are kept",
        ) from error


def is_pool(folder: Path) -> bool:
    """Whether a folder is a trace pool, be it empty."""
    return folder.is_dir() and any(
        path.name == "pool.json" or _NAME.fullmatch(path.name) for path in folder.iterdir()
    )


def _order(path: Path) -> tuple[int, int]:
    number, _, pid = path.stem.partition("-")
    return int(number), int(pid)


def _same(key: TraceKey | None, asked: TraceKey) -> bool:
    """Whether a stored key is the one asked for, which may hold lone surrogates."""
    return key == asked or (
        key is not None and key[1:] == asked[1:] and sanitise(key[0])[0] == sanitise(asked[0])[0]
    )
