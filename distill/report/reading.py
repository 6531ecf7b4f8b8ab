"""Reads a run's JSONL files for the report: what is damaged is left out, counted, and told.

A page that says which lines it lacks is worth more to the owner of a broken folder than none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.records import BadLines, Problem, from_row, read_jsonl

log = logging.getLogger(__name__)


class Reader:
    """Reads files of one run and remembers their bad lines; `strict` raises DataError instead."""

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self.bad: dict[Path, BadLines] = {}

    def rows(self, path: Path | None) -> Iterator[dict[str, Any]]:
        """The rows of a file; none for None and for a file that is not there."""
        if path is None or not path.is_file():
            return
        bad = None if self.strict else BadLines()
        yield from read_jsonl(path, bad)
        if bad is not None and bad.count:
            self.bad[path] = bad

    def problems(self, path: Path) -> Iterator[Problem]:
        """The problems of a file; a row that is none counts as damaged."""
        missing = BadLines()
        for number, row in enumerate(self.rows(path), 1):
            try:
                yield from_row(Problem, row)
            except TypeError as error:
                if self.strict:
                    raise
                missing.add(f"row {number}", str(error))
        if missing.count:
            self.bad.setdefault(path, BadLines()).count += missing.count

    def notes(self) -> list[dict[str, str]]:
        """A note for each file that had bad lines: its step, and how many."""
        found = []
        for path, bad in self.bad.items():
            lines = "1 line is" if bad.count == 1 else f"{bad.count:,} lines are"
            text = f"{path.name} is damaged: {lines} unreadable and left out of this report"
            log.warning("%s: %s", path, text)
            # The steps' folders are named <step>-<id>.
            found.append({"step": path.parent.name.rpartition("-")[0] or "report", "note": text})
        return found


STRICT = Reader(strict=True)
"""For callers that had rather fail: it keeps nothing, so it can be shared."""
