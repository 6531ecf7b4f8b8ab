"""The filter step: every trace meets the filters in order, the first that objects drops it."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from distill.errors import DataError, DistillError
from distill.filter.parts import Item, Part, build, filters_identity
from distill.progress import Progress
from distill.records import (
    Grade,
    Problem,
    Trace,
    Verdict,
    from_row,
    read_jsonl,
    read_records,
    write_jsonl,
)
from distill.schema import PartSpec
from distill.step import write_atomically

log = logging.getLogger(__name__)

MAX_ERROR_SHARE = 0.01
EXAMPLES = 3

__all__ = ["filter_traces", "filters_identity", "read_items"]


def filter_traces(
    filters: list[PartSpec],
    problems: Path,
    traces: Path,
    grades: Path,
    eval_files: Sequence[Path],
    out: Path,
    *,
    folder: Path,
) -> None:
    """Judge all traces; write `verdicts.jsonl` (in the order of the traces) and `summary.json`.

    `grades` holds one row per trace in the same order; `eval_files` are the Problem files of
    the evaluation tasks, named `<task>.jsonl`. A filter that raises on a trace drops it with
    the reason `error: ...`. Raises DataError for files that do not fit together and
    DistillError where a filter raises on more than 1% of the traces.
    """
    start = time.monotonic()
    asked = {p.id: p for p in read_records(Problem, problems)}
    tasks = {path.stem: list(read_records(Problem, path)) for path in eval_files}
    tally = _Tally()
    chain, alone = build(filters, folder), build(filters, folder)
    for part in (*chain, *alone):
        if hasattr(part.call, "begin"):
            part.call.begin(asked, tasks)

    def items() -> Iterator[Item]:
        return read_items(asked, traces, grades)

    groups = _groups(chain)
    with Progress("filter", len(groups) * _count_lines(grades), "judged") as progress:
        for group in groups:
            _judge(group, chain, alone, tally, items, progress)
            tally.check_errors()
    for note in tally.notes():
        log.warning(note)
    verdicts = write_jsonl(out / "verdicts.jsonl", tally.verdicts(items()))
    notes = [note for part in chain for note in getattr(part.call, "notes", [])]
    summary = tally.summary(chain, verdicts) | {
        "seconds": round(time.monotonic() - start, 3),
        "notes": notes + tally.notes(),
    }
    write_atomically(out / "summary.json", json.dumps(summary, ensure_ascii=False, indent=1))


def read_items(problems: Mapping[str, Problem], traces: Path, grades: Path) -> Iterator[Item]:
    """Traces with their problem and grade, in the order of the traces.

    Raises DataError where a grade or a problem is missing or belongs to another trace.
    """
    rows = read_jsonl(grades)
    for trace in read_records(Trace, traces):
        row = next(rows, None)
        where = f"sample {trace.index} of problem {trace.problem_id}"
        if row is None or (row.get("problem_id"), row.get("index")) != (
            trace.problem_id,
            trace.index,
        ):
            found = "no further grade" if row is None else f"a grade of {row.get('problem_id')}"
            raise DataError(f"{grades}: {found} where {where} stands", "grade the traces again")
        if trace.problem_id not in problems:
            raise DataError(f"{traces}: {where} has no problem", "the files belong to other runs")
        yield problems[trace.problem_id], trace, from_row(Grade, row)


@dataclass
class _Tally:
    """Who objected to what. Positions count the traces from 0, in the order of the file."""

    traces: int = 0
    objections: dict[int, tuple[str, str]] = field(default_factory=dict)
    solo: Counter[str] = field(default_factory=Counter)
    errors: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    sources: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def object(self, position: int, part: Part, item: Item, reason: str) -> None:
        self.objections[position] = (part.label, reason)
        if len(self.examples[part.label]) < EXAMPLES:
            trace = item[1]
            self.examples[part.label].append(
                {"problem_id": trace.problem_id, "index": trace.index, "reason": reason}
            )

    def check_errors(self) -> None:
        """Raise DistillError where a filter raised on more than one trace and 1% of them."""
        for label, found in self.errors.items():
            if len(found) > max(1, MAX_ERROR_SHARE * self.traces):
                raise DistillError(
                    f"filter '{label}' raised on {len(found)} of {self.traces} traces: {found[0]}",
                    "mend the filter; DISTILL_DEBUG=1 logs where it raised",
                )

    def verdicts(self, items: Iterable[Item]) -> Iterator[Verdict]:
        for position, (problem, trace, _) in enumerate(items):
            name, reason = self.objections.get(position, ("", ""))
            self.sources[problem.source]["traces"] += 1
            self.sources[problem.source]["kept"] += not name
            yield Verdict(
                problem_id=trace.problem_id,
                index=trace.index,
                kept=not name,
                filter=name,
                reason=reason,
            )

    def summary(self, chain: Sequence[Part], traces: int) -> dict[str, Any]:
        dropped = Counter(name for name, _ in self.objections.values())
        labels = [part.label for part in chain]
        return {
            "traces": traces,
            "kept": traces - len(self.objections),
            "dropped": {label: dropped[label] for label in labels},
            "solo": {label: self.solo[label] for label in labels},
            "errors": {label: len(found) for label, found in self.errors.items()},
            "by_source": {name: dict(counts) for name, counts in sorted(self.sources.items())},
            "examples": {label: self.examples.get(label, []) for label in labels},
        }

    def notes(self) -> list[str]:
        return [
            f"filter '{label}' raised on {len(found)} traces, which were dropped: {found[0]}"
            for label, found in self.errors.items()
        ]


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _groups(chain: Sequence[Part]) -> list[range]:
    """Stretches of the chain that one pass over the traces can judge.

    A filter that needs the corpus begins a new one: it is prepared with what reached it.
    """
    starts = [0, *(i for i, part in enumerate(chain) if part.needs_corpus and i), len(chain)]
    return [range(a, b) for a, b in pairwise(starts) if b > a]


def _judge(
    group: range,
    chain: Sequence[Part],
    alone: Sequence[Part],
    tally: _Tally,
    items: Callable[[], Iterator[Item]],
    progress: Progress,
) -> None:
    """Put all traces to one stretch of the chain, and to each of its filters by itself."""
    first = group.start
    if chain[first].needs_corpus:
        reached = (x for at, x in enumerate(items()) if at not in tally.objections)
        _prepare(chain[first], reached)
        _prepare(alone[first], items())
    tally.traces = 0
    for at, item in enumerate(items()):
        tally.traces += 1
        for number in group:
            part, reason = chain[number], None
            if not part.needs_corpus or at not in tally.objections:
                reason = _ask(part, item, tally)
            if reason is not None and at not in tally.objections:
                tally.object(at, part, item, reason)
            if part.needs_corpus:
                reason = _ask(alone[number], item, None)
            tally.solo[part.label] += reason is not None
        progress.update(dropped=len(tally.objections))


def _prepare(part: Part, items: Iterator[Item]) -> None:
    try:
        part.call.prepare(items)  # type: ignore[attr-defined]
    except DistillError:
        raise
    except Exception as error:
        log.debug("filter %s: prepare", part.label, exc_info=True)
        raise DistillError(
            f"filter '{part.label}' raised in prepare: {type(error).__name__}: {error}",
            "mend the filter; DISTILL_DEBUG=1 logs where it raised",
        ) from error


def _ask(part: Part, item: Item, tally: _Tally | None) -> str | None:
    """The filter's reason; one that raises objects too, and is counted in `tally`."""
    try:
        return part.judge(item)
    except Exception as error:
        reason = f"error: {type(error).__name__}: {error}"
        if tally is not None:
            trace = item[1]
            where = f"sample {trace.index} of problem {trace.problem_id}"
            tally.errors[part.label].append(f"{reason.removeprefix('error: ')} ({where})")
            log.debug("filter %s on %s", part.label, where, exc_info=True)
        return reason
