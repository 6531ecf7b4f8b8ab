"""The trace pool: nothing that was bought is lost, whatever happens to process, disk or bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.errors import StoreError
from distill.records import Trace
from distill.schema import Sampling
from distill.store import TracePool, encode, generation_key

TEXTS = ["", "plain", "é思考\n\r\u2028\x00", '","_crc":"00000000"}', '{"problem_id":"x"', "\\" * 3]


def some(count: int = 6, *, begin: int = 0) -> list[Trace]:
    return [
        Trace(
            problem_id=f"p{i // 2}",
            index=i % 2,
            text=TEXTS[i % len(TEXTS)],
            finish_reason="length" if i == 1 else "stop",
            token_ids=(i, 2, 3),
            flags=("one",),
        )
        for i in range(begin, begin + count)
    ]


def fill(folder: Path, traces: list[Trace]) -> Path:
    with TracePool.open(folder, write=True) as pool:
        pool.append(traces)
    (segment,) = folder.glob("*.jsonl")
    return segment


def test_what_is_appended_comes_back(tmp_path: Path) -> None:
    traces = some()
    with TracePool.open(tmp_path / "pool", write=True, content={"teacher": "t"}) as pool:
        assert pool.append(traces) == 6
        assert pool.append(traces[:3]) == 0
        assert [pool.get(t.key) for t in traces] == traces
    with TracePool.open(tmp_path / "pool", write=False, content={"teacher": "t"}) as pool:
        assert len(pool) == 6
        assert list(pool.traces()) == traces
        assert list(pool.traces([("p1", 0, 0), ("no", 0, 0)])) == [traces[2]]
        assert ("p0", 1, 0) in pool
        assert ("p0", 7, 0) not in pool
        assert pool.get(("p0", 7, 0)) is None
        assert [t.key for t in traces if pool.is_cut(t.key)] == [("p0", 1, 0)]
        assert (pool.bad, pool.torn, pool.duplicates) == (0, 0, 0)


def test_every_writer_has_a_file_and_the_first_record_of_a_key_wins(tmp_path: Path) -> None:
    fill(tmp_path, some(2))
    for text in ("second", "third"):
        with TracePool.open(tmp_path, write=True) as pool:
            pool.append([Trace(problem_id=text, index=0, text=text)])
    names = sorted(p.name.split("-")[0] for p in tmp_path.glob("*.jsonl"))
    assert names == ["000001", "000002", "000003"]
    late = encode(Trace(problem_id="p0", index=0, text="late"))
    (tmp_path / f"000004-{os.getpid()}.jsonl").write_bytes(late)
    with TracePool.open(tmp_path, write=False) as pool:
        assert pool.duplicates == 1
        assert [t.text for t in pool.traces()] == ["", "plain", "second", "third"]


def test_a_file_torn_at_any_byte_loses_the_torn_records_only(tmp_path: Path) -> None:
    traces = some(3)
    segment = fill(tmp_path, traces)
    whole = segment.read_bytes()
    ends = [i for i, byte in enumerate(whole) if byte == 10]
    for length in range(len(whole) + 1):
        segment.write_bytes(whole[:length])
        with TracePool.open(tmp_path, write=False) as pool:
            # A record is whole as soon as its last brace is there.
            complete = sum(end <= length for end in ends)
            assert list(pool.traces()) == traces[:complete], length
            assert pool.bad == 0
            assert pool.torn == (length not in {0, *ends, *(e + 1 for e in ends)})


def test_after_a_torn_file_the_next_writer_completes_the_pool(tmp_path: Path) -> None:
    traces = some(4)
    segment = fill(tmp_path, traces)
    torn = segment.read_bytes()[:-9]
    segment.write_bytes(torn)
    with TracePool.open(tmp_path, write=True) as pool:
        assert len(pool) == 3
        assert pool.append(traces) == 1
    assert segment.read_bytes() == torn
    with TracePool.open(tmp_path, write=False) as pool:
        assert list(pool.traces()) == traces


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_byte_loses_its_own_record_only(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "pool"
    segment = folder / "000001-1.jsonl"
    traces = some(6)
    lines = [encode(t) for t in traces]
    whole = b"".join(lines)
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != whole[at]))
    folder.mkdir(exist_ok=True)
    segment.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1 :])
    ends = [sum(map(len, lines[: i + 1])) for i in range(len(lines))]
    hit = next(i for i, end in enumerate(ends) if at < end)
    with TracePool.open(folder, write=False) as pool:
        found = list(pool.traces())
        others = [t for i, t in enumerate(traces) if i != hit]
        assert [t for t in found if t.key != traces[hit].key] == others
        assert all(t == traces[hit] for t in found if t.key == traces[hit].key)
        assert len(found) == 6 or pool.bad + pool.torn >= 1


def test_zeros_after_a_power_cut_are_a_torn_tail(tmp_path: Path) -> None:
    segment = fill(tmp_path, some(2))
    segment.write_bytes(segment.read_bytes() + bytes(4096))
    with TracePool.open(tmp_path, write=False) as pool:
        assert (len(pool), pool.torn, pool.bad) == (2, 1, 0)


def test_a_second_writer_is_refused_by_the_first_ones_pid(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from distill.store import TracePool\n"
        "pool = TracePool.open(Path(sys.argv[1]), write=True); print('open', flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        with pytest.raises(StoreError, match=f"process {writer.pid} is writing"):
            TracePool.open(tmp_path, write=True)
        TracePool.open(tmp_path, write=False).close()
        writer.kill()
    TracePool.open(tmp_path, write=True).close()


def test_two_writers_of_one_process_are_refused_too(tmp_path: Path) -> None:
    with (
        TracePool.open(tmp_path, write=True),
        pytest.raises(StoreError, match=f"process {os.getpid()}"),
    ):
        TracePool.open(tmp_path, write=True)


WRITER = """
import sys
from pathlib import Path
from distill.records import Trace
from distill.store import TracePool
with TracePool.open(Path(sys.argv[1]), write=True) as pool:
    for i in range(len(pool), 100_000):
        pool.append([Trace(problem_id="p", index=i, text=f"{i} " * 2000)])
        print(i, flush=True)
"""


@pytest.mark.slow
def test_a_writer_killed_again_and_again_loses_nothing_it_had_stored(tmp_path: Path) -> None:
    stored = -1
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            for _ in range(20):
                stored = int(writer.stdout.readline())
            time.sleep(0.003)
            writer.send_signal(signal.SIGKILL)
            stored = max([stored, *map(int, writer.stdout.read().split())])
        with TracePool.open(tmp_path, write=False) as pool:
            assert len(pool) >= stored + 1
            assert pool.bad == 0
            assert all(t.text == f"{t.index} " * 2000 for t in pool.traces())


FULL = """
import resource, sys
from pathlib import Path
from distill.errors import StoreError
from distill.records import Trace
from distill.store import TracePool
traces = [Trace(problem_id="p", index=i, text="x" * 300) for i in range(20)]
with TracePool.open(Path(sys.argv[1]), write=True) as pool:
    pool.append(traces[:2])
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, -1))
    try:
        pool.append(traces[2:])
    except StoreError as error:
        print(len(pool), [pool.get(t.key) == t for t in traces].count(True), error)
"""


def test_a_full_disk_keeps_whole_lines_and_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    kept, readable, *_ = done.stdout.split()
    assert kept == readable
    assert 2 < int(kept) < 20
    assert "free some disk space" in done.stdout
    (segment,) = tmp_path.glob("*.jsonl")
    assert segment.read_bytes().endswith(b'"}\n')
    with TracePool.open(tmp_path, write=True) as pool:
        assert (len(pool), pool.torn, pool.bad) == (int(kept), 0, 0)


def test_pool_json_says_whose_traces_these_are(tmp_path: Path) -> None:
    key, content = generation_key("teacher@1", Sampling(), 7)
    TracePool.open(tmp_path / key, write=True, content=content).close()
    assert json.loads((tmp_path / key / "pool.json").read_text()) == content
    other = generation_key("teacher@2", Sampling(), 7)[1]
    with pytest.raises(StoreError, match="other sampling"):
        TracePool.open(tmp_path / key, write=False, content=other)
    (tmp_path / key / "pool.json").write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        TracePool.open(tmp_path / key, write=True, content=content)


def test_a_reader_can_neither_make_a_pool_nor_write_to_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no trace pool"):
        TracePool.open(tmp_path / "none", write=False)
    fill(tmp_path, some(1))
    with (
        TracePool.open(tmp_path, write=False) as pool,
        pytest.raises(StoreError, match="reading only"),
    ):
        pool.append(some(2))


def test_a_folder_that_is_a_file_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be opened"):
        TracePool.open(tmp_path / "file", write=True)


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    segment = fill(tmp_path, some(2))
    with TracePool.open(tmp_path, write=False) as pool:
        segment.write_bytes(bytes(segment.stat().st_size))
        with pytest.raises(StoreError, match="changed while"):
            pool.get(("p0", 0, 0))


def test_lone_surrogates_cannot_break_a_batch(tmp_path: Path) -> None:
    fill(tmp_path, [Trace(problem_id="p", index=0, text="a\ud800b"), *some(1)])
    with TracePool.open(tmp_path, write=False) as pool:
        assert [t.text for t in pool.traces()] == ["a\ufffdb", ""]


def test_many_segments_need_few_open_files(tmp_path: Path) -> None:
    for number in range(1, 200):
        line = encode(Trace(problem_id="p", index=number))
        (tmp_path / f"{number:06}-1.jsonl").write_bytes(line)
    with TracePool.open(tmp_path, write=False) as pool:
        assert [t.index for t in pool.traces()] == list(range(1, 200))
        assert len(os.listdir("/proc/self/fd")) < 120


def test_the_generation_key_holds_what_changes_a_text_and_nothing_else() -> None:
    base = generation_key("t", Sampling(), 0)[0]
    assert len(base) == 16
    for same in (
        Sampling(n=9),
        Sampling(max_tokens=5),
        Sampling(concurrency=1, retries=0, timeout_s=1, max_cost=3),
        Sampling(temperature=0.6, top_p=0.95, top_k=None, stop=[]),
    ):
        assert generation_key("t", same, 0)[0] == base
    others = {
        generation_key("u", Sampling(), 0)[0],
        generation_key("t", Sampling(), 1)[0],
        generation_key("t", Sampling(temperature=1), 0)[0],
        generation_key("t", Sampling(top_p=1), 0)[0],
        generation_key("t", Sampling(top_k=5), 0)[0],
        generation_key("t", Sampling(stop=["x"]), 0)[0],
    }
    assert len(others | {base}) == 7


def test_the_generation_key_of_today_stays_valid() -> None:
    # Traces were paid for: whoever changes this orphans every pool there is.
    assert generation_key("teacher@1", Sampling(), 0)[0] == "5abd006bc64f715d"
