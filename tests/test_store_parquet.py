"""A pool as one Parquet file, and `distill pool`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from distill import store_index, store_parquet
from distill.cli import main
from distill.errors import StoreError, UsageError
from distill.records import Trace
from distill.schema import Sampling
from distill.store import TracePool, generation_key
from distill.store_parquet import compact


def some(begin: int, end: int) -> list[Trace]:
    return [
        Trace(
            problem_id=f"p{i}",
            index=0,
            text=f"<think>\nα{i}\u2028\x00</think>",
            reasoning=None if i % 2 else "r",
            token_ids=(i, 2**31 - 1),
            prompt_ids=(1,) if i % 2 else None,
            flags=("continued",) if i % 3 else (),
            cost=i / 7,
            max_tokens=8,
        )
        for i in range(begin, end)
    ]


def fill(folder: Path, *ranges: tuple[int, int]) -> None:
    for begin, end in ranges:
        with TracePool.open(folder, write=True) as pool:
            pool.append(some(begin, end))


def rows_of(path: Path) -> list[Trace]:
    import pyarrow.parquet as pq

    tuples = ("flags", "token_ids", "prompt_ids")
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        row |= {k: tuple(row[k]) for k in tuples if row.get(k) is not None}
    return [Trace(**row) for row in rows]


def test_every_field_comes_back(tmp_path: Path) -> None:
    fill(tmp_path / "pool", (0, 7), (7, 10))
    done = compact(tmp_path / "pool", tmp_path / "new" / "all.parquet", token_ids=True)
    assert rows_of(tmp_path / "new" / "all.parquet") == some(0, 10)
    assert (done.traces, done.skipped, done.bad, done.torn, done.duplicates) == (10, 0, 0, 0, 0)
    assert done.bytes == (tmp_path / "new" / "all.parquet").stat().st_size
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["all.parquet"]


def test_token_ids_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    fill(tmp_path / "pool", (0, 3))
    compact(tmp_path / "pool", tmp_path / "all.parquet")
    names = pq.read_schema(tmp_path / "all.parquet").names
    assert "text" in names
    assert not {"token_ids", "prompt_ids"} & set(names)


def test_the_last_segments_alone(tmp_path: Path) -> None:
    fill(tmp_path / "pool", (0, 3), (3, 5), (5, 9))
    for last, begin in ((1, 5), (2, 3), (3, 0), (9, 0)):
        compact(tmp_path / "pool", tmp_path / "out.parquet", token_ids=True, last=last)
        assert rows_of(tmp_path / "out.parquet") == some(begin, 9)


def test_the_file_says_whose_traces_these_are(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    key, content = generation_key("teacher@1", Sampling(), 7)
    TracePool.open(tmp_path / key, write=True, content=content).close()
    assert compact(tmp_path / key, tmp_path / "none.parquet").traces == 0
    assert (
        json.loads(pq.read_schema(tmp_path / "none.parquet").metadata[b"distill.pool"]) == content
    )


def test_row_groups_bound_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    fill(tmp_path / "pool", (0, 25))
    for name, value, groups in (("GROUP_ROWS", 10, 3), ("GROUP_BYTES", 1, 25)):
        monkeypatch.setattr(store_parquet, name, value)
        compact(tmp_path / "pool", tmp_path / "out.parquet", token_ids=True)
        assert pq.ParquetFile(tmp_path / "out.parquet").num_row_groups == groups
        assert rows_of(tmp_path / "out.parquet") == some(0, 25)


@pytest.mark.slow
def test_datasets_reads_it(tmp_path: Path) -> None:
    import datasets

    fill(tmp_path / "pool", (0, 10))
    compact(tmp_path / "pool", tmp_path / "all.parquet")
    loaded = datasets.load_dataset(
        "parquet",
        data_files=str(tmp_path / "all.parquet"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert loaded["text"][:] == [t.text for t in some(0, 10)]
    assert loaded[3]["flags"] == []
    assert loaded[4]["flags"] == ["continued"]


def test_a_row_that_fits_no_column_costs_itself_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path / "pool", (0, 5))
    lines = []
    for row in (
        {"problem_id": "a", "index": 0, "segment": 0, "text": 7},
        {"problem_id": "b", "index": 0, "segment": 0, "seed": 2**80},
        {"problem_id": "c", "index": 0, "segment": 0, "text": "fine"},
    ):
        body = json.dumps(row)[:-1].encode()
        lines.append(b'%s,"_crc":"%08x"}\n' % (body, zlib.crc32(body)))
    (tmp_path / "pool" / "000009-1.jsonl").write_bytes(b"".join(lines))
    done = compact(tmp_path / "pool", tmp_path / "out.parquet", token_ids=True)
    assert (done.traces, done.skipped) == (6, 2)
    assert [t.problem_id for t in rows_of(tmp_path / "out.parquet")][-2:] == ["p4", "c"]
    assert "('a', 0, 0) is left out" in caplog.text


def test_damage_that_an_index_had_hidden_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_index, "LEAST_BYTES", 1)
    fill(tmp_path / "pool", (0, 5))
    (segment,) = (tmp_path / "pool").glob("*.jsonl")
    before = segment.stat()
    segment.write_bytes(segment.read_bytes().replace(b"p2", b"q2"))
    os.utime(segment, ns=(before.st_atime_ns, before.st_mtime_ns))
    done = compact(tmp_path / "pool", tmp_path / "out.parquet", token_ids=True)
    assert (done.traces, done.bad) == (4, 1)
    assert "reading the pool again" in caplog.text


def test_a_failure_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "pool", (0, 5))
    out = tmp_path / "out.parquet"
    out.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        compact(tmp_path / "pool", out)
    assert out.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.parquet", "pool"]


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no trace pool"):
        compact(tmp_path / "none", tmp_path / "out.parquet")
    with pytest.raises(UsageError, match=r"end its name in .parquet"):
        compact(tmp_path, tmp_path / "out.csv")
    with pytest.raises(UsageError, match="last=0"):
        compact(tmp_path, tmp_path / "out.parquet", last=0)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A workspace with two pools, and a run that sampled one of them."""
    root = tmp_path / "runs"
    for seed, ranges in ((1, [(0, 3), (3, 5)]), (2, [(0, 1)])):
        key, content = generation_key("teacher@1", Sampling(), seed)
        TracePool.open(root / "pool" / key, write=True, content=content).close()
        fill(root / "pool" / key, *ranges)
    step = root / "steps" / "sample-1"
    step.mkdir(parents=True)
    key = generation_key("teacher@1", Sampling(), 1)[0]
    (step / "summary.json").write_text(json.dumps({"generation_key": key}))
    (root / "mine-1").mkdir()
    run = {"steps": {"sample": {"folder": "steps/sample-1"}}}
    (root / "mine-1" / "run.json").write_text(json.dumps(run))
    return root


def test_the_verb_says_what_pools_hold(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = generation_key("teacher@1", Sampling(), 1)[0]
    for target in ("mine-1", key, key[:6], str(runs / "pool" / key)):
        assert main(["pool", target, "--runs", str(runs)]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"{key}  5 traces in 2 files, ")
        assert "0 bad, 0 torn, 0 duplicates" in shown
        assert "teacher: teacher@1" in shown
        assert "seed: 1" in shown
    assert main(["pool", "--json", "--runs", str(runs)]) == 0
    assert sorted(row["traces"] for row in json.loads(capsys.readouterr().out)) == [1, 5]


def test_a_run_named_by_its_path_has_its_own_pools(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pool", str(runs / "mine-1"), "--runs", str(tmp_path / "elsewhere")]) == 0
    assert "5 traces in 2 files" in capsys.readouterr().out


def test_the_verb_compacts(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = runs / "out.parquet"
    arguments = ["pool", "mine-1", "token_ids=true", "last=1", "--runs", str(runs)]
    assert main([*arguments, "--parquet", str(out)]) == 0
    assert f"{out}: 2 traces" in capsys.readouterr().out
    assert rows_of(out) == some(3, 5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pool", "nope"], "'nope' is no trace pool"),
        (["pool", "--parquet", "x.parquet"], "--parquet needs one pool"),
        (["pool", "mine-1", "lst=1"], "'lst=1' is no option"),
        (["pool", "mine-1", "last=1"], "last is of use with --parquet only"),
        (["pool", "mine-1", "--parquet", "x.csv"], "cannot write 'x.csv'"),
    ],
)
def test_the_verb_tells_mistakes(
    runs: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--runs", str(runs)]) == 2
    assert words in capsys.readouterr().err


def test_listing_pools_loads_nothing_heavy(runs: Path) -> None:
    code = (
        "import sys; from distill.cli import main\n"
        f"main(['pool', '--runs', {str(runs)!r}])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'pyarrow'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr.strip() == "[]"
    assert "5 traces" in ran.stdout
