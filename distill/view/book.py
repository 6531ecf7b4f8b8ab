"""A run's traces and answers, indexed from its files, and read again when those have grown.

An index row is a place in a file and what lists are filtered by; texts stay on disk.
"""

from __future__ import annotations

import json
import re
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.records import Problem, from_row, read_jsonl, to_row
from distill.report.build import Source, read_run
from distill.store import TracePool, is_pool

PAGE = 50
BLOCK = 8 << 20
"""Bytes of a file that are searched at once."""
EVALUATION = "evaluation"
"""As a value of `kind`: the answers of the evaluated models instead of the teacher's traces."""


@dataclass(slots=True)
class Entry:
    """One trace or answer: who said it to what, what became of it, and where its text is."""

    problem: str
    index: int
    place: int
    tokens: int
    outcome: str = ""
    kept: bool | None = None
    filter: str = ""
    reason: str = ""
    detail: str = ""
    role: str = "teacher"
    task: str = ""


@dataclass(frozen=True)
class Asked:
    """What a list shows: words that a text must hold, and what became of it."""

    words: str = ""
    outcome: str = ""
    filter: str = ""
    source: str = ""
    kind: str = ""


@dataclass
class File:
    """JSONL rows at known places; `entries` are in the order of the file."""

    path: Path
    entries: list[Entry]

    def row(self, entry: Entry) -> dict[str, Any]:
        with self.path.open("rb") as file:
            file.seek(entry.place)
            row: dict[str, Any] = json.loads(file.readline())
        return row

    def holding(self, words: str) -> Iterator[Entry]:
        """The entries whose text holds the words, whatever their case."""
        marks = _marks(words)
        with self.path.open("rb") as file:
            for block in _blocks(self.entries):
                file.seek(block[0].place)
                end = block[-1]
                data = file.read(end.place - block[0].place) + file.readline()
                yield from _in_block(block, data, marks, words)


def _marks(words: str) -> list[bytes]:
    """What the bytes of a row that holds the words have to hold, one of them, in small letters.

    Only ASCII letters are made small in bytes, which is fast: the longest part of the words in
    ASCII stands for them, and without one the words in each of their usual cases.
    """
    parts = re.findall(r"[ -!#-\[\]-~]+", words)
    if parts:
        return [max(parts, key=len).lower().encode()]
    cases = dict.fromkeys([words, words.lower(), words.upper(), words.capitalize()])
    return [json.dumps(case, ensure_ascii=False)[1:-1].encode() for case in cases]


def _blocks(entries: list[Entry]) -> Iterator[list[Entry]]:
    block: list[Entry] = []
    for entry in entries:
        if block and entry.place - block[0].place > BLOCK:
            yield block
            block = []
        block.append(entry)
    if block:
        yield block


def _in_block(block: list[Entry], data: bytes, marks: list[bytes], words: str) -> Iterator[Entry]:
    small, begin = data.lower(), block[0].place
    starts = [entry.place - begin for entry in block] + [len(data)]
    at = 0
    while (found := _first(small, marks, at)) >= 0:
        number = bisect_right(starts, found) - 1
        at = starts[number + 1]
        if _says(json.loads(data[starts[number] : at]), words):
            yield block[number]


def _first(data: bytes, marks: list[bytes], at: int) -> int:
    found = [place for mark in marks if (place := data.find(mark, at)) >= 0]
    return min(found, default=-1)


@dataclass
class Pool:
    """Traces that are still being sampled: straight from the pool, by their keys."""

    pool: TracePool
    entries: list[Entry]
    keys: list[tuple[str, int, int]] = field(default_factory=list)
    read: int = 0

    def row(self, entry: Entry) -> dict[str, Any]:
        trace = self.pool.get(self.keys[entry.place])
        return to_row(trace) if trace is not None else {}

    def holding(self, words: str) -> Iterator[Entry]:
        return (entry for entry in self.entries if _says(self.row(entry), words))


class Book:
    """Everything there is to read of one run. `refresh` before each page keeps it true."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.source: Source = read_run(run)
        self.problems: dict[str, Problem] = {}
        self.traces: File | Pool = File(run, [])
        self.answers: File = File(run, [])
        self._seen: list[tuple[str, int, int]] = []
        self._by_problem: dict[str, list[Entry]] = {}
        self.refresh()

    @property
    def running(self) -> bool:
        return self.source.run.get("status") == "running"

    def refresh(self) -> None:
        """Read again what has changed since the last page."""
        self.source = read_run(self.run)
        files = [p for step in self.source.steps.values() for p in step.folder.glob("*.jsonl")]
        seen = [(str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(files)]
        if seen != self._seen:
            self._seen = seen
            self._read()
        if isinstance(self.traces, Pool) and self.traces.pool.refresh():
            self._follow(self.traces)

    def select(self, asked: Asked, start: int = 0) -> tuple[list[Entry], int | None]:
        """A page of entries from the `start`-th that fits; and where the next begins, if any."""
        of = self.answers if asked.kind == EVALUATION else self.traces
        rows: Iterable[Entry] = of.holding(asked.words) if asked.words else of.entries
        found: list[Entry] = []
        number = -1
        for number, entry in enumerate(e for e in rows if self._fits(e, asked)):
            if number >= start + PAGE:
                return found, start + PAGE
            if number >= start:
                found.append(entry)
        return found, None

    def of_problem(self, problem: str) -> tuple[list[Entry], list[Entry]]:
        """(traces, answers) of one problem in order of their index."""
        found = sorted(self._by_problem.get(problem, []), key=lambda e: (e.task, e.role, e.index))
        return [e for e in found if not e.task], [e for e in found if e.task]

    def text(self, entry: Entry) -> str:
        """What was said, whole."""
        row = (self.answers if entry.task else self.traces).row(entry)
        return str(row.get("text") or "")

    def choices(self, kind: str) -> dict[str, list[tuple[str, int]]]:
        """What lists can be filtered by, with counts, the most frequent first."""
        of = self.answers if kind == EVALUATION else self.traces
        rows = of.entries
        outcomes = Counter(e.outcome for e in rows if e.outcome)
        filters = Counter(e.filter or "kept" for e in rows if e.kept is not None)
        sources = Counter(
            self.problems[e.problem].source for e in rows if e.problem in self.problems
        )
        if kind == EVALUATION:
            filters = Counter(e.role for e in rows)
        return {
            "outcome": outcomes.most_common(),
            "filter": filters.most_common(),
            "source": [(name, n) for name, n in sources.most_common() if name],
        }

    def _fits(self, entry: Entry, asked: Asked) -> bool:
        if asked.outcome and entry.outcome != asked.outcome:
            return False
        if asked.filter:
            was = entry.role if entry.task else entry.filter or ("kept" if entry.kept else "")
            if was != asked.filter:
                return False
        if asked.source:
            problem = self.problems.get(entry.problem)
            return problem is not None and problem.source == asked.source
        return True

    # -- reading -----------------------------------------------------------------------------

    def _read(self) -> None:
        step = self.source.step("problems", "import")
        folders = [step.folder] if step else []
        tasks = self.source.folder("tasks")
        files = [f / name for f in folders for name in ("problems.jsonl", "heldout.jsonl")]
        files += sorted(tasks.glob("*.jsonl")) if tasks else []
        self.problems = {
            problem.id: problem
            for path in files
            if path.is_file()
            for problem in (from_row(Problem, row) for row in read_jsonl(path))
        }
        if isinstance(self.traces, Pool):
            self.traces.pool.close()
        self._by_problem = {}
        self.traces, self.answers = self._traces(), self._answers()
        placed = [] if isinstance(self.traces, Pool) else self.traces.entries
        for entry in [*placed, *self.answers.entries]:
            self._by_problem.setdefault(entry.problem, []).append(entry)

    def _traces(self) -> File | Pool:
        folder = self.source.folder("sample", "import")
        if folder is None:
            return self._pool()
        path = folder / "traces.jsonl"
        entries = [_trace_entry(row, place) for row, place in _placed(path)]
        by_key = {(entry.problem, entry.index): entry for entry in entries}
        for row in _rows(self.source.folder("grade"), "grades.jsonl"):
            if entry := by_key.get((row["problem_id"], int(row["index"]))):
                entry.outcome = sys.intern(str(row.get("outcome") or ""))
                entry.detail = str(row.get("detail") or "")
        for step in self.source.every("select") or self.source.every("filter"):
            for row in _rows(step.folder, "verdicts.jsonl"):
                if entry := by_key.get((row["problem_id"], int(row["index"]))):
                    entry.kept = bool(row["kept"]) or bool(entry.kept)
                    entry.filter = "" if entry.kept else sys.intern(str(row.get("filter") or ""))
                    entry.reason = "" if entry.kept else str(row.get("reason") or "")
        return File(path, entries)

    def _pool(self) -> File | Pool:
        """The pool that a running job writes to: the youngest with traces of our problems."""
        folders = [p for p in (self.run.parent / "pool").glob("*") if is_pool(p)]
        for folder in sorted(folders, key=_written, reverse=True)[:3]:
            found = Pool(TracePool.open(folder, write=False), [])
            self._follow(found)
            if found.entries:
                return found
            found.pool.close()
        return File(self.run, [])

    def _follow(self, of: Pool) -> None:
        """Add what was stored since, of the problems of this run."""
        for trace in of.pool.traces(start=of.read):
            if trace.problem_id in self.problems:
                of.keys.append(trace.key)
                entry = _trace_entry(to_row(trace), len(of.keys) - 1)
                of.entries.append(entry)
                self._by_problem.setdefault(entry.problem, []).append(entry)
        of.read = len(of.pool)

    def _answers(self) -> File:
        folder = self.source.folder("evaluate")
        path = folder / "samples.jsonl" if folder else self.run / "samples.jsonl"
        rows = _placed(path) if path.is_file() else []
        return File(
            path,
            [
                Entry(
                    problem=sys.intern(str(row["problem_id"])),
                    index=int(row["index"]),
                    place=place,
                    tokens=int(row.get("completion_tokens") or 0),
                    outcome=sys.intern(str(row.get("outcome") or "")),
                    detail=str(row.get("extracted") or "")[:200],
                    role=sys.intern(str(row.get("role") or "")),
                    task=sys.intern(str(row.get("task") or "")),
                )
                for row, place in rows
            ],
        )


def _trace_entry(row: dict[str, Any], place: int) -> Entry:
    return Entry(
        problem=sys.intern(str(row.get("problem_id"))),
        index=int(row.get("index") or 0),
        place=place,
        tokens=int(row.get("completion_tokens") or 0),
        detail="cut off" if row.get("finish_reason") == "length" else "",
    )


def _placed(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Rows and their places; what cannot be read, such as a line half written, is passed over."""
    place = 0
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict) and row.get("problem_id") is not None:
                yield row, place
            place += len(line)


def _rows(folder: Path | None, name: str) -> Iterable[dict[str, Any]]:
    path = folder / name if folder else None
    return (row for row, _ in _placed(path)) if path and path.is_file() else ()


def _says(row: dict[str, Any], words: str) -> bool:
    return words.lower() in str(row.get("text") or "").lower()


def _written(folder: Path) -> float:
    return max((p.stat().st_mtime for p in folder.glob("*.jsonl")), default=0.0)


__all__ = ["EVALUATION", "PAGE", "Asked", "Book", "Entry"]
