"""A reader follows a running job: `refresh` sees what is new and whole, and each of it once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill import store_index
from distill.errors import StoreError
from distill.records import Trace
from distill.store import TracePool, encode

WRITER = """
import sys
from pathlib import Path
from distill import store_index
from distill.records import Trace
from distill.store import TracePool
store_index.LEAST_BYTES, store_index.BLOCK_TRACES = 1, 50
folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
with TracePool.open(folder, write=True) as pool:
    for i in range(first, first + count, 4):
        pool.append(Trace(problem_id="p", index=j, text=f"{j} " * 3000) for j in range(i, i + 4))
    print("done", flush=True)
    if len(sys.argv) > 4:
        sys.stdin.read()
"""


def follow(pool: TracePool, until: int) -> int:
    """Refresh until so many traces are there; how many refreshes brought something."""
    seen, steps = len(pool), 0
    deadline = time.monotonic() + 60
    while seen < until:
        assert time.monotonic() < deadline
        new = pool.refresh()
        seen, steps = seen + new, steps + bool(new)
        assert len(pool) == seen
        if new:
            last = pool.get(("p", seen - 1, 0))
            assert last is not None
            assert last.text == f"{seen - 1} " * 3000
    return steps


@pytest.mark.slow
def test_a_reader_follows_one_writer_after_another(tmp_path: Path) -> None:
    TracePool.open(tmp_path, write=True).close()
    with TracePool.open(tmp_path, write=False) as pool:
        for first, kill in ((0, True), (400, False)):
            with subprocess.Popen(
                [sys.executable, "-c", WRITER, str(tmp_path), str(first), "400", *["stay"] * kill],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as writer:
                follow(pool, first + 400)
                if kill:
                    writer.send_signal(signal.SIGKILL)
        assert [t.index for t in pool.traces()] == list(range(800))
        assert (pool.bad, pool.torn, pool.duplicates) == (0, 0, 0)
        assert pool.refresh() == 0


def test_a_line_is_seen_when_it_is_whole_and_counted_once(tmp_path: Path) -> None:
    lines = [
        encode(Trace(problem_id="p", index=0)),
        encode(Trace(problem_id="p", index=1, finish_reason="length")),
        b"damaged\n",
        encode(Trace(problem_id="p", index=0, text="again")),
        encode(Trace(problem_id="p", index=2)).rstrip(b"\n")
        + b"x"
        + encode(Trace(problem_id="q", index=3)),
    ]
    whole = b"".join(lines)
    segment = tmp_path / "000001-1.jsonl"
    segment.write_bytes(b"")
    total = 0
    with (
        TracePool.open(tmp_path, write=False) as pool,
        segment.open("ab", buffering=0) as file,
    ):
        for at in range(len(whole)):
            file.write(whole[at : at + 1])
            total += pool.refresh()
            with TracePool.open(tmp_path, write=False) as fresh:
                assert list(pool.traces()) == list(fresh.traces())
                assert len(pool) == len(fresh) == total
                counts = (pool.bad, pool.torn, pool.duplicates)
                assert counts == (fresh.bad, fresh.torn, fresh.duplicates)
        assert [t.key[:2] for t in pool.traces()] == [("p", 0), ("p", 1), ("p", 2), ("q", 3)]
        assert pool.is_cut(("p", 1, 0))
        assert counts == (2, 0, 1)


def test_a_refresh_reads_what_is_new_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0
    known = store_index._known

    def counting(line: bytes) -> store_index.Digest | None:
        nonlocal read
        read += len(line) + 1
        return known(line)

    monkeypatch.setattr(store_index, "_known", counting)
    with TracePool.open(tmp_path, write=True) as writer:
        writer.append(Trace(problem_id="p", index=i) for i in range(100))
        with TracePool.open(tmp_path, write=False) as pool:
            assert read > 0
            read = 0
            assert pool.refresh() == 0
            assert read == 0
            line = encode(Trace(problem_id="q", index=0))
            writer.append([Trace(problem_id="q", index=0)])
            assert pool.refresh() == 1
            assert read == len(line)
        # A writer need not read what it wrote.
        assert writer.refresh() == 0
        assert read == len(line)


def test_a_writer_sees_what_others_left_where_files_cannot_be_locked(tmp_path: Path) -> None:
    with TracePool.open(tmp_path, write=True) as pool:
        pool.append([Trace(problem_id="p", index=0)])
        other = tmp_path / "000002-1.jsonl"
        other.write_bytes(
            encode(Trace(problem_id="p", index=0)) + encode(Trace(problem_id="q", index=0))
        )
        assert pool.refresh() == 1
        assert pool.duplicates == 1
        assert pool.append(Trace(problem_id="r", index=i) for i in range(2)) == 2
        assert [t.problem_id for t in pool.traces()] == ["p", "q", "r", "r"]
    assert len((tmp_path / f"000001-{os.getpid()}.jsonl").read_bytes().splitlines()) == 3
    with TracePool.open(tmp_path, write=False) as pool:
        assert [t.problem_id for t in pool.traces()] == ["p", "r", "r", "q"]


def test_a_file_that_loses_what_was_read_is_noticed(tmp_path: Path) -> None:
    with TracePool.open(tmp_path, write=True) as pool:
        pool.append(Trace(problem_id="p", index=i) for i in range(3))
    (segment,) = tmp_path.glob("*.jsonl")
    with TracePool.open(tmp_path, write=False) as pool:
        os.truncate(segment, 100)
        with pytest.raises(StoreError, match="changed while"):
            pool.refresh()
        segment.unlink()
        with pytest.raises(StoreError, match="cannot be read"):
            pool.refresh()
        with pytest.raises(StoreError, match="cannot be read: No such file"):
            pool.get(("p", 0, 0))


def test_a_torn_line_that_its_writer_took_back_is_forgotten(tmp_path: Path) -> None:
    segment = tmp_path / "000001-1.jsonl"
    line = encode(Trace(problem_id="p", index=0))
    segment.write_bytes(line + line[:30])
    with TracePool.open(tmp_path, write=False) as pool:
        assert (len(pool), pool.torn) == (1, 1)
        os.truncate(segment, len(line))
        assert (pool.refresh(), pool.torn) == (0, 0)
        with segment.open("ab") as file:
            file.write(b"x" * 29 + b"\n")
        assert (pool.refresh(), pool.bad) == (0, 1)
        with segment.open("ab") as file:
            file.write(encode(Trace(problem_id="q", index=0)))
        assert (pool.refresh(), pool.torn, pool.bad) == (1, 0, 1)
