"""The trace pool: append-only files that lose nothing that was bought, whatever happens.

A pool is a folder of segment files `<number>-<pid>.jsonl`, one for each writer that ever was,
so nothing is appended to a line that a crash has torn. Every line is a trace as a JSON object
whose last member is `"_crc":"<8 hex>"`: the CRC-32 of all bytes before `,"_crc"`.

What is promised: a batch is one `write`; it is on the disk (`fsync`) when the next batch comes
a second or more after the last `fsync`, and when the pool is closed. So a killed process loses
nothing that `append` has returned for, and a power cut only what was not yet synced.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import time
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from distill.errors import StoreError
from distill.records import Trace, TraceKey, dumps, from_row, to_row
from distill.schema import Sampling
from distill.thinking import sanitise

log = logging.getLogger(__name__)

SYNC_EVERY_S = 1.0
OPEN_FILES = 64
NOT_GENERATION = frozenset(
    {"n", "max_tokens", "limits"}
    | {"want", "max", "give_up", "budget_tokens", "budget_cost", "floor"}
)

_NAME = re.compile(r"(\d+)-(\d+)\.jsonl")
_HEAD = re.compile(rb'\{"problem_id":"([^"\\]*)","index":(\d+),"segment":(\d+)[,}]')
# Inside a JSON string every quote is escaped, so neither pattern can be part of a text.
_TAIL = re.compile(rb',"_crc":"([0-9a-f]{8})"\}')
_TAIL_LENGTH = 19
_CUT = b'"finish_reason":"length"'


class PoolLocked(StoreError):
    """Another process is writing to the pool."""


def generation_key(
    teacher_identity: str, sampling: Sampling, seed: int
) -> tuple[str, dict[str, Any]]:
    """The 16 hex digits that own a pool, and the plain content they are the hash of.

    `n`, `max_tokens` and run-time fields are left out because they change no text that is
    already there. Unset fields are left out so that a field added later leaves the pools of
    today in use.
    """
    asked = {
        name: value
        for name, value in sampling.identity().items()
        if name not in NOT_GENERATION and value is not None and value != []
    }
    content = {"teacher": teacher_identity, "seed": seed, "sampling": asked}
    text = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16], content


class TracePool:
    """The traces of one generation key, by (problem id, sample index, segment).

    `with TracePool.open(folder, write=True) as pool:`. One process writes at a time (an
    exclusive lock on `<folder>/lock`, which holds its pid); any number may read, and see what
    was there when they opened. The first complete record of a key wins.

    `bad` counts damaged lines, `torn` last lines that a crash cut off, `duplicates` records
    whose key was there already. One thread uses a pool at a time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.bad = self.torn = self.duplicates = 0
        self._place: dict[TraceKey, int] = {}
        self._file, self._offset, self._length = array("L"), array("Q"), array("L")
        self._cut: set[TraceKey] = set()
        self._paths: list[Path] = []
        self._readers: dict[int, int] = {}
        self._lock: int | None = None
        self._out: int | None = None
        self._end = 0
        self._synced = 0.0
        self._writable = False

    @classmethod
    def open(
        cls, folder: Path, *, write: bool, content: Mapping[str, Any] | None = None
    ) -> TracePool:
        """Open a pool and read its index.

        A writer makes the folder and, with `content` (of `generation_key`), its `pool.json`.
        Raises PoolLocked (a StoreError) if another process writes, StoreError if there is no
        such pool to read or it belongs to other sampling.
        """
        pool = cls(folder)
        try:
            if write:
                pool._begin_writing()
            elif not pool.folder.is_dir():
                raise StoreError(f"no trace pool at {folder}", "sample first")
            if content is not None:
                pool._check_content(content)
            pool._scan_all()
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
        return key in self._place

    def __len__(self) -> int:
        return len(self._place)

    def is_cut(self, key: TraceKey) -> bool:
        """Whether the stored trace ended at a token limit; reads no file."""
        return key in self._cut

    def get(self, key: TraceKey) -> Trace | None:
        """The stored trace, or None. Raises StoreError if the file changed since opening."""
        place = self._place.get(key)
        if place is None:
            return None
        number, length = self._file[place], self._length[place]
        with contextlib.suppress(OSError):
            line = os.pread(self._reader(number), length, self._offset[place])
            if _whole(line):
                return from_row(Trace, json.loads(line))
        raise StoreError(
            f"{self._paths[number]} changed while it was read", "run the same command again"
        )

    def traces(self, keys: Iterable[TraceKey] | None = None) -> Iterator[Trace]:
        """The traces of `keys` that are stored, in that order; by default all, oldest first."""
        for key in list(self._place) if keys is None else keys:
            trace = self.get(key)
            if trace is not None:
                yield trace

    def append(self, traces: Iterable[Trace]) -> int:
        """Store traces whose keys are new, in one write. Returns how many were new.

        Raises StoreError when the disk is full; what was written whole is kept.
        """
        if not self._writable:
            raise StoreError(f"the trace pool {self.folder} is open for reading only")
        fresh: dict[TraceKey, tuple[bytes, bool]] = {}
        for trace in traces:
            if trace.key in self._place or trace.key in fresh:
                self.duplicates += 1
            else:
                fresh[trace.key] = (encode(trace), trace.finish_reason == "length")
        if not fresh:
            return 0
        written, error = self._write(b"".join(line for line, _ in fresh.values()))
        number = len(self._paths) - 1
        for key, (line, cut) in fresh.items():
            if written < len(line):
                break
            self._index(key, number, self._end, len(line) - 1, cut)
            self._end += len(line)
            written -= len(line)
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
        lock, self._lock = self._lock, None
        try:
            if out is not None:
                try:
                    os.fsync(out)
                except OSError as error:
                    raise StoreError(
                        f"the trace pool {self.folder} could not be synced: {error.strerror}",
                        "see to the disk and run the same command again",
                    ) from error
                finally:
                    os.close(out)
        finally:
            if lock is not None:
                # A forked child may hold the same descriptor; unlocking frees it for all.
                with contextlib.suppress(OSError):
                    fcntl.flock(lock, fcntl.LOCK_UN)
                os.close(lock)

    def _begin_writing(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(lock)
            raise PoolLocked(
                f"process {pid} is writing to the trace pool {self.folder}",
                "wait for it or stop it, then run the same command again",
            ) from None
        except OSError as error:
            # Segment files have one writer each, so the worst is that a trace is bought twice.
            log.warning("%s cannot be locked (%s): start one run at a time", self.folder, error)
        self._lock = lock
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        self._writable = True

    def _check_content(self, content: Mapping[str, Any]) -> None:
        path = self.folder / "pool.json"
        if path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise StoreError(
                    f"{path} is damaged: {error}", "delete that one file; the traces are elsewhere"
                ) from None
            if found != json.loads(json.dumps(content)):
                raise StoreError(
                    f"{self.folder} holds traces of other sampling: {dumps(found)}",
                    f"expected {dumps(content)}; move the folder away",
                )
        elif self._writable:
            temporary = path.with_name(f".pool.json.{os.getpid()}.tmp")
            with temporary.open("w", encoding="utf-8") as file:
                file.write(json.dumps(content, indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)

    def _scan_all(self) -> None:
        for path in sorted(
            (p for p in self.folder.iterdir() if _NAME.fullmatch(p.name)), key=_order
        ):
            self._paths.append(path)
            self._scan(len(self._paths) - 1, path)
        if self.bad:
            log.warning("%s: %d damaged lines were passed over", self.folder, self.bad)

    def _scan(self, number: int, path: Path) -> None:
        offset = 0
        with path.open("rb") as file:
            for raw in file:
                line = raw.rstrip(b"\n")
                if not self._admit(number, offset, line):
                    if raw.endswith(b"\n"):
                        self.bad += 1
                    else:
                        self.torn += 1
                    for start, end in _salvage(line):
                        self._admit(number, offset + start, line[start:end])
                offset += len(raw)

    def _admit(self, number: int, offset: int, line: bytes) -> bool:
        key = _key(line) if _whole(line) else None
        if key is None:
            return False
        if key in self._place:
            self.duplicates += 1
        else:
            self._index(key, number, offset, len(line), _CUT in line)
        return True

    def _index(self, key: TraceKey, number: int, offset: int, length: int, cut: bool) -> None:
        self._place[key] = len(self._offset)
        self._file.append(number)
        self._offset.append(offset)
        self._length.append(length)
        if cut:
            self._cut.add(key)

    def _reader(self, number: int) -> int:
        reader = self._readers.get(number)
        if reader is None:
            if len(self._readers) >= OPEN_FILES:
                os.close(self._readers.pop(next(iter(self._readers))))
            reader = os.open(self._paths[number], os.O_RDONLY | os.O_CLOEXEC)
            self._readers[number] = reader
        return reader

    def _begin_segment(self) -> int:
        last = _order(self._paths[-1])[0] if self._paths else 0
        path = self.folder / f"{last + 1:06}-{os.getpid()}.jsonl"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        out = os.open(path, flags, 0o666)
        self._paths.append(path)
        self._end = 0
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

    def _refuse(self, error: OSError) -> None:
        """Take back the torn line, so that the file ends with a whole one, and say so."""
        if self._out is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._out, self._end)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise StoreError(
            f"the trace pool {self.folder} cannot be written: {error.strerror}",
            ("free some disk space" if full else "repair the disk")
            + f" and run the same command again: the {len(self):,} traces that are there are kept",
        ) from error


def encode(trace: Trace) -> bytes:
    """The line of a trace, with its checksum and its end of line."""
    text, broken = sanitise(dumps(to_row(trace)))
    if broken:
        log.warning("trace %s: lone surrogates were replaced by U+FFFD", trace.key)
    body = text[:-1].encode()
    return b'%s,"_crc":"%08x"}\n' % (body, zlib.crc32(body))


def _order(path: Path) -> tuple[int, int]:
    number, _, pid = path.stem.partition("-")
    return int(number), int(pid)


def _whole(line: bytes) -> bool:
    match = _TAIL.fullmatch(line, max(0, len(line) - _TAIL_LENGTH))
    return match is not None and int(match[1], 16) == zlib.crc32(line[:-_TAIL_LENGTH])


def _key(line: bytes) -> TraceKey | None:
    head = _HEAD.match(line)
    try:
        if head:
            return (head[1].decode(), int(head[2]), int(head[3]))
        row = json.loads(line)
        return (str(row["problem_id"]), int(row["index"]), int(row["segment"]))
    except (ValueError, KeyError, TypeError):
        return None


def _salvage(line: bytes) -> Iterator[tuple[int, int]]:
    """Where whole records may lie in a damaged line, as when the byte between two was lost."""
    begin = 0
    for tail in _TAIL.finditer(line):
        start = line.rfind(b'{"problem_id"', begin, tail.start())
        if start >= 0:
            yield start, tail.end()
        begin = tail.end()
