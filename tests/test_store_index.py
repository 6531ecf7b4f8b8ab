"""Indexes spare reading and are never needed: whatever happens to them, the traces are the same."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill import store, store_index
from distill.errors import StoreError
from distill.records import Trace
from distill.store import TracePool, encode
from distill.store_index import Segment

Seen = tuple[list[Trace], int, int, int]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_index, "LEAST_BYTES", 1)
    monkeypatch.setattr(store_index, "BLOCK_TRACES", 4)


def some(begin: int, end: int) -> list[Trace]:
    return [
        Trace(
            problem_id=f"p{i // 2}",
            index=i % 2,
            text="é" * (i % 7),
            finish_reason="stop" if i % 3 else "length",
        )
        for i in range(begin, end)
    ]


def fill(folder: Path, *ranges: tuple[int, int]) -> None:
    """One segment for each range, written three traces at a time."""
    for begin, end in ranges:
        with TracePool.open(folder, write=True) as pool:
            for start in range(begin, end, 3):
                pool.append(some(start, min(start + 3, end)))


def seen(folder: Path, *, write: bool = False) -> Seen:
    with TracePool.open(folder, write=write) as pool:
        for trace in (traces := list(pool.traces())):
            assert pool.is_cut(trace.key) == (trace.finish_reason == "length")
            assert pool.get(trace.key) == trace
        assert len(pool) == len(traces)
        return traces, pool.bad, pool.torn, pool.duplicates


def without_indexes(folder: Path) -> Seen:
    bare = folder.with_name(f"{folder.name}-bare")
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("*.idx"))
    try:
        return seen(bare)
    finally:
        shutil.rmtree(bare)


def scanned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many bytes of segments an opening reads line by line."""
    count = 0
    known = store_index._known

    def counting(line: bytes) -> store_index.Digest | None:
        nonlocal count
        count += len(line)
        return known(line)

    monkeypatch.setattr(store_index, "_known", counting)
    seen(folder)
    monkeypatch.setattr(store_index, "_known", known)
    return count


def test_an_index_spares_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, (0, 12), (12, 23))
    assert len(list(tmp_path.glob("*.idx"))) == 2
    assert scanned(tmp_path, monkeypatch) == 0
    for index in tmp_path.glob("*.idx"):
        index.unlink()
    assert scanned(tmp_path, monkeypatch) > 1000
    # The next writer makes them again, though it has nothing to write.
    expected = seen(tmp_path, write=True)
    assert scanned(tmp_path, monkeypatch) == 0
    assert seen(tmp_path) == expected == (some(0, 23), 0, 0, 0)


def test_what_was_written_after_the_index_is_read_from_where_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, (0, 12))
    (segment,) = tmp_path.glob("*.jsonl")
    more = encode(some(12, 13)[0])
    with segment.open("ab") as file:
        file.write(b"damaged\n" + more + more[:20])
    assert scanned(tmp_path, monkeypatch) < 2 * len(more) + 20
    assert seen(tmp_path) == (some(0, 13), 1, 1, 0)
    for _ in range(2):
        assert seen(tmp_path, write=True) == (some(0, 13), 1, 1, 0)
    assert scanned(tmp_path, monkeypatch) == 20


def test_damaged_lines_and_duplicates_are_counted_by_an_index_too(tmp_path: Path) -> None:
    fill(tmp_path, (0, 6), (6, 12))
    first, second = sorted(tmp_path.glob("*.jsonl"))
    lines = first.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"p1", b"q1")
    lines[3] = lines[3].rstrip(b"\n") + lines[4]
    del lines[4]
    first.write_bytes(b"".join([*lines, b"\n", lines[0]]))
    with second.open("ab") as file:
        file.write(lines[1] + lines[0].rstrip(b"\n"))
    expected = without_indexes(tmp_path)
    assert expected[1:] == (3, 0, 3)
    assert len(expected[0]) == 11
    for _ in range(3):
        assert seen(tmp_path, write=True) == expected


MUTATIONS = ["flip", "cut", "grow", "swap", "zero", "empty", "drop"]


def mutate(path: Path, how: str, data: st.DataObject) -> None:
    raw = path.read_bytes()
    at = data.draw(st.integers(0, len(raw) - 1), "at")
    if how == "flip":
        raw = raw[:at] + bytes([raw[at] ^ data.draw(st.integers(1, 255), "bits")]) + raw[at + 1 :]
    elif how == "cut":
        raw = raw[:at]
    elif how == "grow":
        raw += raw[at:]
    elif how == "swap":
        other = data.draw(st.sampled_from(sorted(path.parent.glob(f"*{path.suffix}"))), "other")
        raw = other.read_bytes()
    elif how == "zero":
        raw = raw[:at] + bytes(len(raw) - at)
    elif how == "empty":
        raw = b""
    elif how == "drop":
        raw = raw[:at] + raw[at + data.draw(st.integers(1, 40), "length") :]
    path.write_bytes(raw)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_index, "LEAST_BYTES", 1)
        patch.setattr(store_index, "BLOCK_TRACES", 4)
        folder = tmp_path_factory.mktemp("pristine") / "pool"
        fill(folder, (0, 14), (14, 17), (17, 30))
        yield folder


def damage(pristine: Path, folder: Path, suffixes: str, most: int, data: st.DataObject) -> None:
    """Make `folder` a copy of a pool with up to `most` files changed, or one changed again."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(pristine, folder)
    files = sorted(p for p in folder.iterdir() if p.suffix in suffixes.split())
    chosen = st.lists(st.sampled_from(files), min_size=1, max_size=most)
    for path in data.draw(chosen, "files"):
        before = path.stat()
        if before.st_size:
            mutate(path, data.draw(st.sampled_from(MUTATIONS), "how"), data)
        if most > 2 and data.draw(st.booleans(), "same time"):
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


BREAKING = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@BREAKING
@given(data=st.data())
def test_whatever_happens_to_indexes_the_traces_are_the_same(
    pristine: Path, tmp_path: Path, data: st.DataObject
) -> None:
    damage(pristine, folder := tmp_path / "pool", ".idx", 2, data)
    for write in (False, True, False):
        assert seen(folder, write=write) == (some(0, 30), 0, 0, 0)


@BREAKING
@given(data=st.data())
def test_whatever_happens_to_a_segment_its_index_changes_nothing(
    pristine: Path, tmp_path: Path, data: st.DataObject
) -> None:
    damage(pristine, folder := tmp_path / "pool", ".jsonl", 1, data)
    expected = without_indexes(folder)
    for write in (False, True, False):
        assert seen(folder, write=write) == expected


@BREAKING
@given(data=st.data())
def test_what_no_index_can_see_is_found_when_it_is_read(
    pristine: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """Changes of both files that together look right, and changes that left the clock alone."""
    damage(pristine, folder := tmp_path / "pool", ".jsonl .idx", 4, data)
    expected = without_indexes(folder)
    for _ in range(3):
        try:
            found = seen(folder)
        except StoreError as error:
            assert error.hint == "run the same command again"  # noqa: PT017
        else:
            break
    else:
        found = seen(folder)
    assert found == expected
    assert seen(folder, write=True) == expected
    assert seen(folder) == expected


@pytest.mark.parametrize("shift", [-2 * 10**18, -1, 1, 10**18])
def test_a_clock_that_jumped_costs_a_reading_and_nothing_else(
    tmp_path: Path, shift: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, (0, 12))
    (segment,) = tmp_path.glob("*.jsonl")
    was = segment.stat().st_mtime_ns
    os.utime(segment, ns=(was + shift, was + shift))
    assert scanned(tmp_path, monkeypatch) > 500
    assert seen(tmp_path, write=True) == (some(0, 12), 0, 0, 0)
    assert scanned(tmp_path, monkeypatch) == 0


def test_an_index_of_another_version_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, (0, 12))
    (index,) = tmp_path.glob("*.idx")
    index.write_bytes(index.read_bytes().replace(b"dtindex\0\1", b"dtindex\0\2", 1))
    assert seen(tmp_path) == (some(0, 12), 0, 0, 0)
    assert "no index of version 1" in caplog.text


def test_an_index_that_points_elsewhere_is_passed_over(tmp_path: Path) -> None:
    """Checksums right, content wrong: the line that is read has the last word."""
    fill(tmp_path, (0, 12))
    (path,) = tmp_path.glob("*.jsonl")
    for change in ("outside", "hash"):
        segment, entries = Segment(path), store_index.Entries()
        segment.scan(entries)
        if change == "outside":
            entries.offsets[3] = 2**63
        else:
            entries.low[0], entries.low[2] = entries.low[2], entries.low[0]
            entries.high[0], entries.high[2] = entries.high[2], entries.high[0]
        block = store_index._block(entries, 0, segment.end, 0, path)
        segment.index.write_bytes(block)
        if change == "hash":
            with TracePool.open(tmp_path, write=False) as pool, pytest.raises(StoreError):
                pool.get(("p0", 0, 0))
        assert seen(tmp_path) == (some(0, 12), 0, 0, 0)


def test_a_disk_too_full_for_the_index_costs_no_trace(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    tmp_path.joinpath(f"000001-{os.getpid()}.idx").symlink_to("/dev/full")
    with caplog.at_level(logging.WARNING):
        fill(tmp_path, (0, 12))
    assert "No space left" in caplog.text
    assert caplog.text.count("No space left") == 1
    assert without_indexes(tmp_path) == (some(0, 12), 0, 0, 0)
    (tmp_path / f"000001-{os.getpid()}.idx").unlink()
    assert seen(tmp_path) == (some(0, 12), 0, 0, 0)


FULL = """
import resource, sys
from pathlib import Path
from distill import store_index
from distill.store import TracePool
store_index.LEAST_BYTES = 1
resource.setrlimit(resource.RLIMIT_FSIZE, (100, -1))
with TracePool.open(Path(sys.argv[1]), write=True) as pool:
    print(len(pool))
"""


def test_a_disk_too_full_to_index_what_is_there_costs_nothing_either(tmp_path: Path) -> None:
    fill(tmp_path, (0, 12))
    (index,) = tmp_path.glob("*.idx")
    index.unlink()
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "12\n"
    assert "cannot be written" in done.stderr
    assert sorted(p.suffix for p in tmp_path.iterdir()) == ["", ".jsonl"]


FULL_DATA = """
import resource, sys
from pathlib import Path
from distill import store_index
from distill.errors import StoreError
from distill.records import Trace
from distill.store import TracePool
store_index.LEAST_BYTES, store_index.BLOCK_TRACES = 1, 2
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, -1))
with TracePool.open(Path(sys.argv[1]), write=True) as pool:
    for _ in range(2):
        try:
            for i in range(0, 30, 3):
                pool.append(Trace(problem_id="p", index=j, text="x" * 99) for j in range(i, i + 3))
        except StoreError as error:
            print(len(pool))
"""


def test_a_full_disk_leaves_an_index_of_what_was_kept(tmp_path: Path) -> None:
    folder = tmp_path / "pool"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DATA, str(folder)], capture_output=True, text=True, check=True
    )
    kept = int(done.stdout.split()[-1])
    found = seen(folder)
    assert found == without_indexes(folder)
    assert (len(found[0]), *found[1:]) == (kept, 0, 0, 0)
    assert 3 < kept < 30
    assert list(folder.glob("*.idx"))


WRITER = """
import sys
from pathlib import Path
from distill import store_index
from distill.records import Trace
from distill.store import TracePool
store_index.LEAST_BYTES, store_index.BLOCK_TRACES = 1, 3
with TracePool.open(Path(sys.argv[1]), write=True) as pool:
    for i in range(len(pool), 10**9, 2):
        pool.append(Trace(problem_id="p", index=j, text=f"{j} " * 500) for j in (i, i + 1))
        print(i + 1, flush=True)
"""


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_indexes_that_hold(tmp_path: Path) -> None:
    folder, stored = tmp_path / "pool", -1
    for lines in (1, 40, 173):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            for _ in range(lines):
                stored = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            stored = max([stored, *map(int, writer.stdout.read().split())])
        for index in folder.glob("*.idx"):
            assert Segment(index.with_suffix(".jsonl")).path.stat().st_size > 0
        found = seen(folder)
        assert found == without_indexes(folder)
        assert len(found[0]) > stored
        assert found[1] == found[3] == 0
    assert all(t.text == f"{t.index} " * 500 for t in found[0])


def test_fsync_is_called_as_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a second at most and at the end; for a new segment its folder; never for an index."""
    monkeypatch.setattr(store_index, "BLOCK_TRACES", 1000)
    clock, synced = [1000.0], list[str]()
    monkeypatch.setattr(store.time, "monotonic", lambda: clock[0])
    real = os.fsync

    def fsync(file: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{file}")).suffix or "folder")
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with TracePool.open(tmp_path / "pool", write=True) as pool:
        assert synced == []
        pool.append(some(0, 2))
        assert synced == ["folder", ".jsonl"]
        for i in range(2, 9):
            pool.append(some(i, i + 1))
            clock[0] += 0.1
        assert synced == ["folder", ".jsonl"]
        clock[0] += 0.5
        pool.append(some(9, 10))
        assert synced == ["folder", ".jsonl", ".jsonl"]
        # An index covers what is on the disk only.
        monkeypatch.setattr(store_index, "BLOCK_TRACES", 1)
        pool.append(some(10, 11))
        assert synced == ["folder", *[".jsonl"] * 3]
        assert list((tmp_path / "pool").glob("*.idx"))
        pool.append(some(0, 11))
    assert synced == ["folder", *[".jsonl"] * 4]
