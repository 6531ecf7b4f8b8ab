"""The training set as files that other trainers read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from distill.errors import UsageError
from distill.records import read_jsonl, write_jsonl

Form = Literal["messages", "sharegpt"]
FORMS = ("messages", "sharegpt")
PARQUET_ROWS = 1000

Columns = dict[str, str | tuple[str, ...]]
"""Name -> "text", "number", or the text fields of a list of structs."""

_SPEAKER = {"user": "human", "assistant": "gpt"}


def export(dataset: Path, out: Path, form: Form = "messages") -> int:
    """Write `dataset` (Example rows) to `out`, JSONL or Parquet by its ending; returns the count.

    `messages` rows are `{"messages": [{"role", "content"}, ...]}`, which trl and open-r1 read.
    `sharegpt` rows are `{"conversations": [{"from": "human" | "gpt", "value"}, ...]}`, with a
    `system` column where the examples have a system prompt; LLaMA-Factory reads them. Raises
    UsageError for another form or ending.
    """
    if form not in FORMS:
        raise UsageError(f"unknown form '{form}'", f"known: {', '.join(FORMS)}")
    if out.suffix not in (".jsonl", ".parquet"):
        raise UsageError(f"cannot write '{out.name}'", "end its name in .jsonl or .parquet")
    has_system = form == "sharegpt" and any(
        row["messages"][0]["role"] == "system" for row in read_jsonl(dataset)
    )
    rows = (
        _sharegpt(row["messages"], has_system)
        if form == "sharegpt"
        else {"messages": row["messages"]}
        for row in read_jsonl(dataset)
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".jsonl":
        return write_jsonl(out, rows)
    columns: Columns = (
        {"messages": ("role", "content")}
        if form == "messages"
        else {"conversations": ("from", "value")}
    )
    return write_parquet(out, rows, columns | ({"system": "text"} if has_system else {}))


def export_splits(folder: Path, out: Path, form: Form = "messages") -> dict[Path, int]:
    """Write the splits of a training set's folder as files; returns their paths and counts.

    An `out` with an ending is the training split's file, with the validation split (if there is
    one) beside it as `NAME.validation.ENDING`. An `out` without one is a folder, which gets
    `train.parquet` and `validation.parquet`.
    """
    written = {}
    for split, name in (("train", "dataset"), ("validation", "validation")):
        rows = folder / f"{name}.jsonl"
        if not rows.is_file():
            continue
        if not out.suffix:
            path = out / f"{split}.parquet"
        else:
            path = out if split == "train" else out.with_suffix(f".{split}{out.suffix}")
        written[path] = export(rows, path, form)
    return written


def _sharegpt(messages: list[dict[str, str]], has_system: bool) -> dict[str, Any]:
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    turns = [
        {"from": _SPEAKER[m["role"]], "value": m["content"]}
        for m in messages
        if m["role"] != "system"
    ]
    return {"conversations": turns, **({"system": system} if has_system else {})}


def write_parquet(out: Path, rows: Iterator[dict[str, Any]], columns: Columns) -> int:
    """Write rows to a Parquet file under a temporary name and rename; returns the count."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"text": pa.string(), "number": pa.int64()}
    schema = pa.schema(
        [
            (name, types[kind])
            if isinstance(kind, str)
            else (name, pa.list_(pa.struct([(part, pa.string()) for part in kind])))
            for name, kind in columns.items()
        ]
    )
    count = 0
    temporary = out.with_name(f".{out.name}.tmp")
    with pq.ParquetWriter(temporary, schema) as writer:
        while batch := list(islice(rows, PARQUET_ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
            count += len(batch)
    temporary.replace(out)
    return count
