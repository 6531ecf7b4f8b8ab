"""The table of keys: a dict in forty bytes a trace."""

from __future__ import annotations

import random
import re
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import store, store_index, store_table
from distill.records import Trace
from distill.store import TracePool
from distill.store_table import Digest, Entries, KeyTable, digest

TOP = 2**64 - 1
# Few distinct values, close together and at the end of the range: long runs of taken slots
# that go on at the table's beginning.
LOW = st.sampled_from([0, 1, 2, 2**63, TOP, TOP - 1, TOP - 2**60, 12345])
DIGESTS = st.tuples(LOW, st.integers(0, 5))


def check(table: KeyTable, model: dict[Digest, tuple[int, int, int, bool]]) -> None:
    assert len(table) == len(model)
    for row, (where, expected) in enumerate(model.items()):
        assert table.find(where) == row
        assert (*table.place(row), table.cut(row)) == expected
    for where in [(3, 0), (TOP, 6), (0, 7)]:
        assert table.find(where) == -1


@settings(max_examples=100)
@given(
    batches=st.lists(
        st.tuples(st.lists(st.lists(DIGESTS, max_size=12), max_size=3), st.booleans()), max_size=6
    )
)
def test_it_is_a_dict_in_which_the_first_wins(
    batches: list[tuple[list[list[Digest]], bool]],
) -> None:
    table, model = KeyTable(), dict[Digest, tuple[int, int, int, bool]]()
    small, offset = store_table._SMALL, 0
    try:
        for batch, at_once in batches:
            store_table._SMALL = -1 if at_once else 10**9
            entries, stretches, new = Entries(), [], 0
            for number, digests in enumerate(batch):
                stretches.append((number, len(digests)))
                for where in digests:
                    offset += 10
                    entries.add(where, offset, offset + 1, offset % 3 == 0)
                    new += where not in model
                    model.setdefault(where, (number, offset, offset + 1, offset % 3 == 0))
            assert table.extend(entries, stretches) == new
            check(table, model)
    finally:
        store_table._SMALL = small


@pytest.mark.parametrize("count", [2_000, 2_730, 2_731, 30_000])
def test_it_grows_one_by_one_and_at_once(count: int) -> None:
    rng = random.Random(0)
    digests = [digest((f"{rng.random()}", i % 4, 0)) for i in range(count)]
    one_by_one, at_once, entries = KeyTable(), KeyTable(), Entries()
    for offset, where in enumerate(digests):
        assert one_by_one.add(where, 3, offset, 1, False)
        entries.add(where, offset, 1, False)
    assert not one_by_one.add(digests[7], 4, 0, 1, True)
    assert at_once.extend(entries, [(3, count)]) == count
    for table in (one_by_one, at_once):
        assert [table.find(where) for where in digests] == list(range(count))
        assert table.find(digest(("no", 0, 0))) == -1
        assert table.place(count - 1) == (3, count - 1, 1)


def test_the_hash_of_a_key_is_the_same_everywhere() -> None:
    # Index files hold it.
    assert digest(("p", 1, 0)) == (14120318334818633299, 10814989027946950290)
    assert digest(("a\ud800", 0, 0)) == digest(("a\ufffd", 0, 0))
    assert len({digest((f"{a}", b, c)) for a in (1, 11) for b in (1, 11) for c in (1, 11)}) == 8


def test_a_shared_hash_never_returns_another_keys_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (store, store_index):
        monkeypatch.setattr(module, "digest", lambda key: (key[1] % 2, 0))
    with TracePool.open(tmp_path, write=True) as pool:
        pool.append(Trace(problem_id="p", index=i, text=f"{i}") for i in range(2))
        for reader in (pool, TracePool.open(tmp_path, write=False)):
            assert [t.text for t in reader.traces([("p", i, 0) for i in range(4)])] == ["0", "1"]
            assert reader.get(("q", 0, 0)) is None


@pytest.mark.slow
def test_a_trace_takes_a_few_dozen_bytes_of_memory(tmp_path: Path) -> None:
    count = 40_000
    with TracePool.open(tmp_path, write=True) as pool:
        for start in range(0, count, 1000):
            pool.append(Trace(problem_id=f"{i:016x}", index=0) for i in range(start, start + 1000))
        TracePool.open(tmp_path, write=False).close()
    tracemalloc.start()
    try:
        pool = TracePool.open(tmp_path, write=False)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(pool) == count
    assert kept / count < 48
    pool.close()


@pytest.mark.slow
def test_the_benchmark_prints_its_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.trace_store import main

    figures = main(["--traces", "3000", "--rounds", "1"])
    assert all(row["traces"] == 3000 for row in figures["medians"].values())
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"trace_store ratio=\d+\.\d{4} goal=0.2", last)
