"""The filter that compares traces with each other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from distill.records import Grade, Problem, Trace

Item = tuple[Problem, Trace, Grade]


class Duplicates:
    """Drops traces that repeat an earlier trace of the same problem, apart from white space.

    Case counts, and so does every character: what differs in one step is another trace.
    """

    version = "1"

    def __init__(self) -> None:
        self._first: dict[bytes, int] = {}

    def sketch(self, problem: Problem, trace: Trace, grade: Grade) -> bytes:
        """16 bytes that stand for the text and its problem."""
        return _key(trace)

    def prepare_sketches(self, sketches: Iterable[tuple[str, int, bytes]]) -> None:
        """Remember the smallest sample index of each (problem id, index, sketch)."""
        self._first = {}
        for _, index, key in sketches:
            self._first[key] = min(index, self._first.get(key, index))

    def judge_sketch(self, problem_id: str, index: int, sketch: bytes) -> str | None:
        """The objection to the trace with this sketch."""
        first = self._first.get(sketch, index)
        return f"same text as sample {first}" if first != index else None

    def prepare(self, items: Iterable[Item]) -> None:
        """The same from whole items."""
        self.prepare_sketches((trace.problem_id, trace.index, _key(trace)) for _, trace, _ in items)

    def __call__(self, problem: Problem, trace: Trace, grade: Grade) -> str | None:
        return self.judge_sketch(trace.problem_id, trace.index, _key(trace))


def _key(trace: Trace) -> bytes:
    text = " ".join(trace.text.split())
    data = f"{trace.problem_id}\0{text}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=16).digest()
