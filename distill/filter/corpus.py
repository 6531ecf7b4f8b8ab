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

    def prepare(self, items: Iterable[Item]) -> None:
        """Remember the smallest sample index of each text; 16 bytes per trace are kept."""
        self._first = {}
        for _, trace, _ in items:
            key = _key(trace)
            self._first[key] = min(trace.index, self._first.get(key, trace.index))

    def __call__(self, problem: Problem, trace: Trace, grade: Grade) -> str | None:
        first = self._first.get(_key(trace), trace.index)
        return f"same text as sample {first}" if first != trace.index else None


def _key(trace: Trace) -> bytes:
    text = " ".join(trace.text.split())
    return hashlib.blake2b(f"{trace.problem_id}\0{text}".encode(), digest_size=16).digest()
