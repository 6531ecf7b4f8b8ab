"""The corpus on disk: problems looked up by id, traces with their grades read in blocks.

Nothing here holds a corpus in memory: 16 bytes for each problem, and four numbers for a block of
traces. A block is a range of bytes, so that a worker reads its own and no text goes through a pipe.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from distill.errors import DataError
from distill.filter.parts import Item
from distill.records import Grade, Problem, Trace, from_row, read_records

BLOCK_BYTES = 1 << 20
BLOCK_TRACES = 512
REMEMBERED = 512
"""Problems that are kept as records; traces of one problem stand together."""


@dataclass(frozen=True, slots=True)
class Files:
    """The three JSONL files of a corpus: Problem rows, Trace rows, and one grade for each trace."""

    problems: Path
    traces: Path
    grades: Path


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive traces: the number of the first, how many, and where both files' lines start."""

    first: int
    count: int
    traces_at: int
    grades_at: int


class ProblemFile(Mapping[str, Problem]):
    """The problems of a JSONL file by id, read when they are asked for.

    Kept are 8 bytes of each id's hash and 8 bytes of its place, in `index_file` where other
    processes are to have them too. Raises KeyError for an unknown id, DataError for a damaged file.
    """

    def __init__(self, path: Path, index_file: Path | None = None) -> None:
        import numpy as np

        self.path = path
        if index_file is not None and index_file.is_file():
            self._index = np.load(index_file, mmap_mode="r")
        else:
            self._index = _index_of(path)
            if index_file is not None:
                np.save(index_file, self._index)
        self._file = path.open("rb")
        self._known: OrderedDict[str, Problem] = OrderedDict()

    def __getitem__(self, key: str) -> Problem:
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        hashes, wanted = self._index["hash"], _hash(key)
        # As an array of the same type: a Python int above 2**63 would be compared as a float.
        at = int(hashes.searchsorted(hashes.dtype.type(wanted), side="right")) - 1
        while at >= 0 and int(hashes[at]) == wanted:
            problem = self._read(int(self._index["place"][at]))
            if problem.id == key:
                self._known[key] = problem
                if len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
                return problem
            at -= 1
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return (problem.id for problem in self.values())

    def __len__(self) -> int:
        return len(self._index)

    def values(self) -> Any:
        """All problems in the order of the file, read anew each time."""
        return read_records(Problem, self.path)

    def items(self) -> Any:
        """(id, problem) of all problems in the order of the file."""
        return ((problem.id, problem) for problem in self.values())

    def close(self) -> None:
        """Close the file; what was read stays valid."""
        self._file.close()

    def _read(self, place: int) -> Problem:
        self._file.seek(place)
        return from_row(Problem, parsed(self._file.readline(), self.path))


def _index_of(path: Path) -> Any:
    """(hash of the id, place) of each problem, ordered."""
    import numpy as np

    hashes, places = array("Q"), array("Q")
    with path.open("rb") as file:
        for place, raw in _lines(file, 0):
            row = parsed(raw, path)
            hashes.append(_hash(row.get("id") or from_row(Problem, row).id))
            places.append(place)
    index = np.empty(len(hashes), dtype=[("hash", "<u8"), ("place", "<u8")])
    index["hash"], index["place"] = hashes, places
    index.sort(order=("hash", "place"))
    return index


def _hash(key: str) -> int:
    data = key.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def blocks(files: Files) -> list[Block]:
    """The corpus in blocks of about 1 MiB. Raises DataError where grades are missing."""
    found: list[Block] = []
    first = count = number = start = grades_start = 0
    with files.traces.open("rb") as traces, files.grades.open("rb") as grades:
        grade_lines = _lines(grades, 0)
        for place, raw in _lines(traces, 0):
            grades_at, _ = next(grade_lines, (None, b""))
            if grades_at is None:
                trace = from_row(Trace, parsed(raw, files.traces))
                raise DataError(
                    f"{files.grades}: no further grade where {name_of(trace)} stands",
                    "grade the traces again",
                )
            if not count:
                start, grades_start = place, grades_at
            count, number = count + 1, number + 1
            if place + len(raw) - start >= BLOCK_BYTES or count >= BLOCK_TRACES:
                found.append(Block(first, count, start, grades_start))
                first, count = number, 0
    if count:
        found.append(Block(first, count, start, grades_start))
    return found


def read_block(
    problems: Mapping[str, Problem], files: Files, block: Block, wanted: bytes | None = None
) -> Iterator[tuple[int, Item]]:
    """(place in the block, (problem, trace, grade)) of a block's traces in order.

    `wanted` holds one byte per trace: those with a zero are not parsed. Raises DataError where a
    problem is missing or a grade belongs to another trace.
    """
    with files.traces.open("rb") as traces, files.grades.open("rb") as grades:
        rows = _lines(grades, block.grades_at)
        lines = islice(_lines(traces, block.traces_at), block.count)
        for at, (_, raw) in enumerate(lines):
            _, grade = next(rows, (0, b"{}"))
            if wanted is None or wanted[at]:
                yield at, _item(problems, files, raw, parsed(grade, files.grades))


def read_items(problems: Mapping[str, Problem], traces: Path, grades: Path) -> Iterator[Item]:
    """Traces with their problem and grade, in the order of the traces.

    Raises DataError where a grade or a problem is missing or belongs to another trace.
    """
    files = Files(Path(), traces, grades)
    for block in blocks(files):
        for _, item in read_block(problems, files, block):
            yield item


def name_of(trace: Trace) -> str:
    """A trace in words."""
    return f"sample {trace.index} of problem {trace.problem_id}"


def _item(
    problems: Mapping[str, Problem], files: Files, raw: bytes, row: Mapping[str, Any]
) -> Item:
    trace = from_row(Trace, parsed(raw, files.traces))
    if (row.get("problem_id"), row.get("index")) != (trace.problem_id, trace.index):
        raise DataError(
            f"{files.grades}: a grade of {row.get('problem_id')} where {name_of(trace)} stands",
            "grade the traces again",
        )
    problem = problems.get(trace.problem_id)
    if problem is None:
        raise DataError(
            f"{files.traces}: {name_of(trace)} has no problem", "the files belong to other runs"
        )
    return problem, trace, from_row(Grade, row)


def _lines(file: IO[bytes], place: int) -> Iterator[tuple[int, bytes]]:
    """(place, line) of the lines from a place on that are not blank."""
    file.seek(place)
    for raw in file:
        if not raw.isspace():
            yield place, raw
        place += len(raw)


def parsed(raw: bytes, path: Path) -> dict[str, Any]:
    """The row of one line of our own files. Raises DataError for a damaged one."""
    try:
        row = json.loads(raw)
        if isinstance(row, dict):
            return row
        why = f"expected an object, found {type(row).__name__}"
    except ValueError as error:
        why = str(error)
    raise DataError(f"{path}: {why}", "the file is damaged: delete its step's folder")
