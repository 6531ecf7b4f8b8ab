"""Reading rows: formats, bad lines, folders, the hub's cache, and errors that help."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import DataError
from distill.records import BadLines, write_jsonl
from distill.tables import column, fingerprint, missing_column, read_rows

ROWS = [{"problem": "1+1?", "answer": "2"}, {"problem": "2+2?", "answer": "4"}]


def rows_of(folder: Path, **where: str) -> list[dict[str, object]]:
    return list(read_rows(folder=folder, bad=BadLines(), **where))  # type: ignore[arg-type]


def test_jsonl_counts_lines_that_cannot_be_read(tmp_path: Path) -> None:
    good = json.dumps(ROWS[0]).encode()
    (tmp_path / "a.jsonl").write_bytes(good + b'\n\xff\xfe\n[1]\n\n{"problem": "to\n' + good)
    bad = BadLines()
    rows = list(read_rows(file="a.jsonl", folder=tmp_path, bad=bad))
    assert rows == [ROWS[0], ROWS[0]]
    assert bad.count == 3
    assert "a.jsonl:2" in bad.samples[0]


@given(st.binary(max_size=200))
def test_no_bytes_stop_the_reading_of_jsonl(tmp_path_factory: pytest.TempPathFactory, raw: bytes):  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("x") / "a.jsonl"
    path.write_bytes(raw + b"\n" + json.dumps(ROWS[0]).encode())
    assert rows_of(path.parent, file="a.jsonl")[-1] == ROWS[0]


def test_parquet_json_and_jsonl_named_json(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    (tmp_path / "b.json").write_text(json.dumps(ROWS))
    write_jsonl(tmp_path / "c.json", ROWS)
    for name in ("a.parquet", "b.json", "c.json"):
        assert rows_of(tmp_path, file=name) == ROWS, name


def test_damaged_and_unknown_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "b.csv").write_text("problem,answer\n")
    (tmp_path / "c.json").write_text("[1,")
    for name, word in (("a.parquet", "Parquet"), ("b.csv", "JSONL"), ("c.json", "not JSON")):
        with pytest.raises(DataError, match=name) as caught:
            rows_of(tmp_path, file=name)
        assert word in str(caught.value)
    with pytest.raises(DataError, match="no file"):
        rows_of(tmp_path, file="missing.jsonl")


def test_folder_of_files_reads_the_split_in_order(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data" / "train-1.jsonl", ROWS[1:])
    write_jsonl(tmp_path / "data" / "train-0.jsonl", ROWS[:1])
    write_jsonl(tmp_path / "data" / "test-0.jsonl", [{"problem": "held", "answer": "1"}])
    assert rows_of(tmp_path, dataset="data") == ROWS
    assert rows_of(tmp_path, dataset="data", split="test")[0]["problem"] == "held"
    with pytest.raises(DataError, match="no split 'validation'") as caught:
        rows_of(tmp_path, dataset="data", split="validation")
    assert "test, train" in caught.value.hint


def test_folder_written_by_datasets(tmp_path: Path) -> None:
    import datasets

    made = datasets.Dataset.from_list(ROWS)
    made.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": made}).save_to_disk(str(tmp_path / "many"))
    assert rows_of(tmp_path, dataset="one") == ROWS
    assert rows_of(tmp_path, dataset="many") == ROWS


def hub_cache(root: Path) -> Path:
    """A cache as `hf download --repo-type dataset some/set` leaves it."""
    repo = root / "datasets--some--set"
    snapshot = repo / "snapshots" / ("a" * 40)
    write_jsonl(snapshot / "data" / "train.jsonl", ROWS)
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("a" * 40)
    return snapshot


def test_hub_data_set_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "prepared")
    hub_cache(tmp_path / "hub")
    assert rows_of(tmp_path, dataset="some/set") == ROWS
    assert fingerprint(dataset="some/set", folder=tmp_path) == "commit:" + "a" * 40
    with pytest.raises(DataError) as caught:
        rows_of(tmp_path, dataset="some/other", revision="v2")
    assert "hf download --repo-type dataset some/other --revision v2" in caught.value.hint
    with pytest.raises(DataError, match="validation"):
        rows_of(tmp_path, dataset="some/set", split="validation")


def test_fingerprint_follows_content_not_name(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    write_jsonl(tmp_path / "b.jsonl", ROWS)
    first = fingerprint(file="a.jsonl", folder=tmp_path)
    assert first == fingerprint(file="b.jsonl", folder=tmp_path)
    folder = fingerprint(dataset=str(tmp_path), folder=tmp_path)
    write_jsonl(tmp_path / "a.jsonl", ROWS[:1])
    assert fingerprint(file="a.jsonl", folder=tmp_path) != first
    assert fingerprint(dataset=str(tmp_path), folder=tmp_path) != folder


def test_column_reaches_into_a_field() -> None:
    row = {"reward": {"ground_truth": "5"}, "a.b": 1}
    assert column(row, "reward.ground_truth") == "5"
    assert column(row, "a.b") == 1
    with pytest.raises(KeyError):
        column(row, "reward.other")


def test_missing_column_names_the_nearest() -> None:
    error = missing_column("problm", ["problem", "answer"], "source 'x'", "question")
    assert "did you mean 'problem'" in error.message
    assert "problem, answer" in error.hint
