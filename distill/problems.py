"""The problems step: the recipe's sources -> problems to sample, and problems held out."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.errors import DataError
from distill.grade.base import version_of
from distill.grade.gym import gradable
from distill.records import Problem, write_jsonl
from distill.resolve import code_version
from distill.schema import Problems, SourceSpec
from distill.sources import BadRow, load_source, read_source, source_callable
from distill.tables import fingerprint

__all__ = ["is_heldout", "load_source", "make_problems", "problems_identity"]

log = logging.getLogger(__name__)

COUNTS = ("rows", "problems", "duplicates", "without_gold", "open", "bad", "heldout")
"""What is counted of a source: left out `without_gold`, and kept without one (`open`)."""


def make_problems(config: Problems, *, folder: Path, out: Path) -> None:
    """Read all sources and write the problems.

    Writes `problems.jsonl` and `heldout.jsonl` (Problem), `bad.jsonl`
    (`{source, row, reason}`) and `summary.json`. The first of equal problems is kept. `limit`
    counts both files together. Problems of a source with `gold: null` are not held out, because
    an evaluation would have nothing to judge them by. Raises DataError if no problem is left.
    """
    started = time.monotonic()
    maker = _Maker(config, folder)
    problems = maker.all()
    if not problems:
        raise maker.nothing()
    asked: list[Problem] = []
    heldout: list[Problem] = []
    for problem in problems:
        side = is_heldout(problem.id, config.heldout) and problem.id not in maker.open
        (heldout if side else asked).append(problem)
    if not asked:
        raise DataError(
            f"all {len(problems)} problems are held out",
            f"problems.heldout={config.heldout} leaves none to sample: lower it or add problems",
        )
    for problem in heldout:
        maker.tally_of[problem.id].heldout += 1
    if config.heldout and not heldout:
        maker.note(f"none of {len(problems)} problems fell into the held-out share")
    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(out / "problems.jsonl", asked)
    write_jsonl(out / "heldout.jsonl", heldout)
    write_jsonl(out / "bad.jsonl", maker.bad)
    summary = {
        "sources": {label: tally.row() for label, tally in maker.tallies.items()},
        "problems": len(asked),
        "heldout": len(heldout),
        "seconds": round(time.monotonic() - started, 3),
        "notes": maker.notes,
    }
    text = json.dumps(summary, ensure_ascii=False, indent=1)
    (out / "summary.json").write_text(text + "\n", encoding="utf-8")


def is_heldout(problem_id: str, share: float) -> bool:
    """True for the problems kept for evaluation: a fixed `share` in [0, 1) by hash of the id.

    A problem's side never changes when other problems are added; a larger share only adds.
    """
    digest = hashlib.sha256(f"heldout:{problem_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def problems_identity(config: Problems, folder: Path) -> dict[str, Any]:
    """What the problems depend on: the section of the recipe, and what pins each source down."""
    pinned = []
    for spec in config.sources:
        if spec.task:
            pinned.append(version_of("reasoning-gym"))
        elif spec.call:
            pinned.append(code_version(source_callable(spec, folder)))
        else:
            pinned.append(
                fingerprint(
                    dataset=spec.dataset,
                    subset=spec.subset,
                    split=spec.split,
                    revision=spec.revision,
                    file=spec.file,
                    folder=folder,
                )
            )
    return {**config.identity(), "data": pinned}


@dataclass(slots=True)
class _Tally:
    licence: str
    rows: int = 0
    problems: int = 0
    duplicates: int = 0
    without_gold: int = 0
    open: int = 0
    bad: int = 0
    heldout: int = 0

    def row(self) -> dict[str, Any]:
        return {**{name: getattr(self, name) for name in COUNTS}, "licence": self.licence}


@dataclass
class _Maker:
    """Gathers problems over all sources, without duplicates, and counts."""

    config: Problems
    folder: Path
    tallies: dict[str, _Tally] = field(default_factory=dict)
    bad: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    found: dict[str, Problem] = field(default_factory=dict)
    tally_of: dict[str, _Tally] = field(default_factory=dict)
    open: set[str] = field(default_factory=set)
    """Ids of the problems whose source says that there is no reference answer."""
    conflicts: int = 0

    def all(self) -> list[Problem]:
        """One problem of each source in turn, so that a limit leaves the mixture as it is."""
        limit = self.config.limit
        turns = [(spec, self._tally(spec), self._read(spec)) for spec in self.config.sources]
        while turns:
            for turn in list(turns):
                if limit and len(self.found) >= limit:
                    turns = []
                    break
                spec, tally, items = turn
                item = next(items, None)
                if item is None:
                    turns.remove(turn)
                else:
                    self._take(spec, tally, item)
        for label, tally in self.tallies.items():
            self._report(label, tally)
        if self.conflicts:
            self.note(f"{self.conflicts} duplicates had another reference answer; the first stays")
        return list(self.found.values())

    def _tally(self, spec: SourceSpec) -> _Tally:
        return self.tallies.setdefault(spec.label, _Tally(spec.licence))

    def _read(self, spec: SourceSpec) -> Iterator[Problem | BadRow]:
        return iter(read_source(spec, self.config, self.folder))

    def _take(self, spec: SourceSpec, tally: _Tally, item: Problem | BadRow) -> None:
        tally.rows += 1
        if isinstance(item, BadRow):
            self._reject(spec, tally, item)
        elif not (gradable(item) or spec.without_gold or not self.config.require_gold):
            tally.without_gold += 1
            self._record(spec, BadRow(tally.rows - 1, "no reference answer"))
        elif item.id in self.found:
            tally.duplicates += 1
            self.conflicts += self.found[item.id].gold != item.gold
        else:
            tally.problems += 1
            self.found[item.id], self.tally_of[item.id] = item, tally
            if not gradable(item):
                tally.open += 1
                self.open |= {item.id} if spec.without_gold else set()

    def nothing(self) -> DataError:
        """The error for sources that gave no problem."""
        without = sum(t.without_gold for t in self.tallies.values())
        if without:
            return DataError(
                f"none of the {without} problems has a reference answer",
                "name its column with `gold:`, or say that there is none with `gold: null` "
                "(problems.require_gold=false allows it for all sources)",
            )
        reason = f"first: {self.bad[0]['reason']}" if self.bad else "the sources are empty"
        labels = ", ".join(self.tallies)
        return DataError(f"no problem could be read from {labels}", reason)

    def note(self, text: str) -> None:
        self.notes.append(text)
        log.warning(text)

    def _reject(self, spec: SourceSpec, tally: _Tally, item: BadRow) -> None:
        tally.bad += 1
        self._record(spec, item)

    def _record(self, spec: SourceSpec, item: BadRow) -> None:
        self.bad.append({"source": spec.label, "row": item.row, "reason": item.reason})

    def _report(self, label: str, tally: _Tally) -> None:
        for count, what in (
            (tally.bad, "rows could not be used"),
            (tally.without_gold, "problems without a reference answer were left out"),
            (tally.duplicates, "duplicates were dropped"),
        ):
            if count:
                self.note(f"{label}: {count} of {tally.rows} {what}")
