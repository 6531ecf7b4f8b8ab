"""Compacts a trace pool to one Parquet file that `datasets` reads."""

from __future__ import annotations

import dataclasses
import logging
import os
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import StoreError, UsageError
from distill.records import Trace
from distill.store import TracePool, is_pool

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

GROUP_ROWS = 10_000
GROUP_BYTES = 32 << 20
TOKEN_FIELDS = ("prompt_ids", "token_ids")


@dataclass(frozen=True, slots=True)
class Compacted:
    """What `compact` wrote: rows, bytes of the file, and traces that no column could take.

    `bad`, `torn` and `duplicates` are the pool's own counts of what it left out.
    """

    traces: int
    bytes: int
    skipped: int
    bad: int
    torn: int
    duplicates: int


def compact(
    pool_folder: Path, out: Path, *, token_ids: bool = False, last: int | None = None
) -> Compacted:
    """Write the traces of a pool to the Parquet file `out`, oldest first, one row a trace.

    The columns are the fields of `Trace`, those with token ids only on request; `last` takes
    the newest so many segment files alone. The pool may be in use: what is there at the
    beginning is written. Row groups of up to 10,000 traces or 32 MiB of text bound the memory;
    the file appears under its name when it is whole and on the disk. `pool.json` becomes the
    metadata `distill.pool`. Raises UsageError for another ending or `last` below 1, StoreError
    if there is no pool or it cannot be read.
    """
    if out.suffix != ".parquet":
        raise UsageError(f"cannot write '{out.name}'", "end its name in .parquet")
    if last is not None and last < 1:
        raise UsageError(f"last={last} takes no segment", "give a number of at least 1")
    if not is_pool(pool_folder):
        raise StoreError(f"no trace pool at {pool_folder}", "distill pool lists those of a run")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _compact(pool_folder, out, token_ids, last)
    except StoreError as error:
        # A damaged line that an index had hidden: opened again, the pool passes it over.
        log.warning("%s; reading the pool again", error.message)
        return _compact(pool_folder, out, token_ids, last)


def _compact(folder: Path, out: Path, token_ids: bool, last: int | None) -> Compacted:
    import pyarrow.parquet as pq

    schema = _schema(token_ids, folder / "pool.json")
    written = skipped = 0
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with TracePool.open(folder, write=False) as pool:
            with temporary.open("wb") as file:
                with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                    for group in _groups(pool.traces(last=last), token_ids):
                        table = _table(group, schema)
                        writer.write_table(table)
                        written += len(table)
                        skipped += len(group) - len(table)
                file.flush()
                os.fsync(file.fileno())
            size = temporary.stat().st_size
            os.replace(temporary, out)
            return Compacted(written, size, skipped, pool.bad, pool.torn, pool.duplicates)
    finally:
        temporary.unlink(missing_ok=True)


def _groups(traces: Iterator[Trace], token_ids: bool) -> Iterator[list[Trace]]:
    group: list[Trace] = []
    size = 0
    for trace in traces:
        texts = (trace.text, trace.reasoning, trace.answer, trace.prompt)
        size += sum(len(text) for text in texts if isinstance(text, str))
        if token_ids:
            ids = (trace.token_ids, trace.prompt_ids)
            size += sum(4 * len(part) for part in ids if isinstance(part, tuple))
        group.append(trace)
        if len(group) >= GROUP_ROWS or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _table(group: list[Trace], schema: pa.Schema) -> pa.Table:
    """The rows of a group; one that no column takes, as of a foreign file, is left out."""
    import pyarrow as pa

    try:
        return pa.Table.from_arrays(
            [pa.array((getattr(t, f.name) for t in group), f.type) for f in schema], schema=schema
        )
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        if len(group) == 1:
            log.warning("trace %s is left out: %s", group[0].key, error)
            return schema.empty_table()
    half = len(group) // 2
    return pa.concat_tables([_table(group[:half], schema), _table(group[half:], schema)])


def _schema(token_ids: bool, content: Path) -> pa.Schema:
    import pyarrow as pa

    plain = {
        str: pa.string(),
        int: pa.int64(),
        float: pa.float64(),
        tuple[str, ...]: pa.list_(pa.string()),
        tuple[int, ...]: pa.list_(pa.int32()),
    }
    hints = typing.get_type_hints(Trace)
    fields = [
        (field.name, plain[_bare(hints[field.name])])
        for field in dataclasses.fields(Trace)
        if token_ids or field.name not in TOKEN_FIELDS
    ]
    metadata = {"distill.pool": content.read_bytes()} if content.is_file() else None
    return pa.schema(fields, metadata=metadata)


def _bare(hint: Any) -> Any:
    """A type without its `| None`."""
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    return hint
