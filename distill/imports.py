"""The import step: published traces instead of a teacher.

The traces are graded, filtered and selected like sampled ones. What their publishers said about
them is kept as flags and never taken for a grade.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from distill.errors import DataError
from distill.problems import is_heldout
from distill.progress import Progress
from distill.published import Asked, BadRow, Layout, Published, detect, read_row, read_trace
from distill.records import BadLines, Problem, Trace, dumps, to_row
from distill.schema import R1_INSTRUCTION, ImportSpec, Problems
from distill.sources import ask, labels
from distill.step import write_atomically
from distill.tables import read_rows
from distill.thinking import DEFAULT_TAGS, ThinkTags

log = logging.getLogger(__name__)

# Instructions that publishers left in their questions; ours is added, theirs would be a second.
PUBLISHED_INSTRUCTIONS = (
    R1_INSTRUCTION,
    "Return your final response within \\boxed{}.",
    "Let's think step by step and output the final answer within \\boxed{}.",
)


def import_traces(spec: ImportSpec, problems: Problems, *, folder: Path, out: Path) -> None:
    """Read published traces and write what the problems and the sample step would have written.

    Writes `problems.jsonl`, `heldout.jsonl` (Problem), `traces.jsonl` (Trace, ordered by problem
    and index), `bad.jsonl` (rows and traces that could not be used, with the reason) and
    `summary.json`. Questions get the instruction and system prompt of `problems`; their
    `statement` stays bare. Traces of held-out problems are left out. Token counts are 0: nobody
    counted them. Raises DataError where no row can be used.
    """
    start = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    unread = BadLines()
    rows = read_rows(
        dataset=spec.dataset,
        subset=spec.subset,
        split=spec.split,
        revision=spec.revision,
        file=spec.file,
        folder=folder,
        bad=unread,
    )
    first = next(rows, None)
    if first is None:
        raise DataError(
            f"{_label(spec)} has no rows that can be read", "; ".join(unread.samples[:1])
        )
    layout = detect(first, spec)
    with ExitStack() as stack:
        job = _Import(spec, problems, layout, _Files(out, stack))
        progress = stack.enter_context(Progress("import", spec.limit, "rows"))
        for row in islice(chain([first], rows), spec.limit):
            if not job.take(row):
                break
            progress.update(1, traces=job.counts["traces"])
        job.unreadable(unread)
    if job.scattered:
        _group_by_problem(out / "traces.jsonl")
    if not job.counts["traces"]:
        raise _nothing(job, unread)
    for note in job.notes():
        log.warning(note)
    summary = job.summary() | {"seconds": round(time.monotonic() - start, 3)}
    write_atomically(out / "summary.json", json.dumps(summary, ensure_ascii=False, indent=1))


class _Files:
    """The four JSONL files, written side by side while rows stream through."""

    def __init__(self, out: Path, stack: ExitStack) -> None:
        self._open: dict[str, IO[str]] = {
            name: stack.enter_context((out / f"{name}.jsonl").open("w", encoding="utf-8"))
            for name in ("problems", "heldout", "traces", "bad")
        }

    def write(self, name: str, row: dict[str, Any]) -> None:
        self._open[name].write(dumps(row) + "\n")


@dataclass
class _Import:
    """One pass over the rows."""

    spec: ImportSpec
    asked: Problems
    layout: Layout
    files: _Files
    counts: Counter[str] = field(default_factory=Counter)
    finish_reasons: Counter[str] = field(default_factory=Counter)
    styles: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    scattered: bool = False
    _golds: dict[str, str | None] = field(default_factory=dict)
    _next_index: Counter[str] = field(default_factory=Counter)
    _last: str = ""

    @property
    def heldout_share(self) -> float:
        return self.spec.heldout or self.asked.heldout

    def take(self, row: dict[str, Any]) -> bool:
        """File one row under its problem, or under the bad ones; False where the limit is reached.

        The limit stops at the first row of a further problem, so that no problem loses traces.
        """
        number = self.counts["rows"]
        try:
            asked = read_row(row, self.layout)
            problem = self._problem(asked, row)
        except BadRow as error:
            self.counts["rows"] += 1
            self.counts["bad"] += 1
            self._bad(number, str(error))
            return True
        full = self.asked.limit is not None and self.counts["taken"] >= self.asked.limit
        if full and problem.id not in self._golds:
            return False
        self.counts["rows"] += 1
        if problem.gold is None and self.asked.require_gold and self.spec.gold is not None:
            self.counts["without_gold"] += 1
            self._bad(number, "no reference answer")
            return True
        self._file(problem, asked, number)
        return True

    def _file(self, problem: Problem, asked: Asked, number: int) -> None:
        heldout = is_heldout(problem.id, self.heldout_share)
        if problem.id in self._golds:
            self.counts["duplicates"] += 1
            self.counts["other_gold"] += self._golds[problem.id] != problem.gold
            self.scattered |= problem.id != self._last
        else:
            self._golds[problem.id] = problem.gold
            self.counts["taken"] += 1
            self.counts["heldout" if heldout else "problems"] += 1
            self.files.write("heldout" if heldout else "problems", to_row(problem))
        self._last = problem.id
        if heldout:
            self.counts["heldout_traces"] += len(asked.traces)
            return
        for at in range(len(asked.traces)):
            self._trace(problem, asked, at, number)

    def _trace(self, problem: Problem, asked: Asked, at: int, number: int) -> None:
        index = self._next_index[problem.id]
        self._next_index[problem.id] += 1
        given = self.spec.open_tag != "auto"
        tags = ThinkTags(self.spec.open_tag, self.spec.close_tag) if given else DEFAULT_TAGS
        try:
            found = read_trace(asked.traces[at], asked.finish_reasons[at], asked.flags[at], tags)
        except BadRow as error:
            self.counts["bad_traces"] += 1
            self._bad(number, f"trace {at}: {error}")
            return
        self._count(found, asked)
        trace = Trace(
            problem_id=problem.id,
            index=index,
            text=found.text,
            reasoning=found.parts.reasoning,
            answer=found.parts.answer,
            finish_reason=found.finish_reason,
            teacher=self.spec.teacher,
            served_model=asked.model,
            flags=found.flags,
        )
        self.files.write("traces", to_row(trace))

    def _count(self, found: Published, asked: Asked) -> None:
        self.counts["traces"] += 1
        self.counts["truncated"] += found.finish_reason == "length"
        self.counts["unclosed"] += "unclosed" in found.flags
        self.counts["system"] += asked.system
        self.finish_reasons[found.finish_reason] += 1
        self.styles[found.style] += 1
        if asked.model:
            self.models[asked.model] += 1

    def _bad(self, number: int, reason: str) -> None:
        self.reasons[reason] += 1
        self.files.write("bad", {"source": _label(self.spec), "row": number, "reason": reason})

    def unreadable(self, lines: BadLines) -> None:
        """Count lines that were no rows at all; the first few are written out."""
        self.counts["rows"] += lines.count
        self.counts["bad"] += lines.count
        for sample in lines.samples:
            where, _, why = sample.partition(": ")
            self.reasons["not a row: " + why] += 1
            self.files.write("bad", {"source": _label(self.spec), "row": where, "reason": why})

    def _problem(self, asked: Asked, row: dict[str, Any]) -> Problem:
        question = asked.question
        for instruction in (self.asked.instruction, *PUBLISHED_INSTRUCTIONS):
            bare = question.removeprefix(instruction).removesuffix(instruction).strip()
            if bare and bare != question:
                question = bare
                self.counts["instructions"] += instruction != self.asked.instruction
        return Problem(
            messages=ask(question, self.asked),
            gold=asked.gold,
            source=_label(self.spec),
            statement=question,
            metadata={**asked.metadata, **labels(row, domain=self.spec.domain)},
        )

    def notes(self) -> list[str]:
        """What a reader of the report should know about how the rows were read."""
        counts, notes = self.counts, list(self.layout.notes)
        for style, count in self.styles.items():
            if style == "none":
                notes.append(f"{count} traces have no thinking tags")
            elif style != "think":
                notes.append(f"the tags of {count} traces ({style}) were written as <think>")
        for key, text in (
            ("unclosed", "traces were never closed and count as cut off"),
            ("system", "traces were made with a system prompt, which is not kept"),
            ("instructions", "instructions inside questions were replaced by the recipe's"),
            (
                "other_gold",
                "rows repeat a question with another reference answer; the first one counts",
            ),
            ("heldout_traces", "traces belong to held-out problems and were left out"),
        ):
            if counts[key]:
                notes.append(f"{counts[key]} {text}")
        for reason, count in self.reasons.most_common(3):
            notes.append(f"{count} could not be used: {reason}")
        return notes

    def summary(self) -> dict[str, Any]:
        """The counts of the problems and the sample step in one."""
        counts = self.counts
        source = {
            key: counts[key]
            for key in ("rows", "problems", "duplicates", "without_gold", "bad", "heldout")
        }
        return {
            "problems": counts["problems"],
            "heldout": counts["heldout"],
            "wanted": counts["traces"],
            "bought": 0,
            "reused": counts["traces"],
            "failed": counts["bad_traces"],
            "truncated": counts["truncated"],
            "finish_reasons": dict(self.finish_reasons.most_common()),
            "completion_tokens": 0,
            "cost": 0.0,
            "teacher": self.spec.teacher,
            "served_models": sorted(self.models),
            "sources": {_label(self.spec): source | {"licence": self.spec.licence}},
            "bad": counts["bad"],
            "format": self.layout.form,
            "columns": {
                "question": self.layout.question,
                "gold": self.layout.gold,
                "traces": list(self.layout.traces),
            },
            "tags": dict(self.styles.most_common()),
            "notes": self.notes(),
        }


def _label(spec: ImportSpec) -> str:
    return spec.dataset or Path(spec.file or "").name


def _nothing(job: _Import, unread: BadLines) -> DataError:
    counts, label = job.counts, _label(job.spec)
    if counts["without_gold"] == counts["rows"]:
        return DataError(
            f"no row of {label} has a reference answer",
            "name its column with traces.gold; or say that there is none with traces.gold: null "
            "and keep ungraded traces with filters: [..., {correct: {ungraded: keep}}, ...]",
        )
    why = [f"{count} times: {reason}" for reason, count in job.reasons.most_common(3)]
    if counts["heldout_traces"]:
        why.append(f"{counts['heldout_traces']} traces belong to held-out problems")
    return DataError(
        f"none of the {counts['rows']} rows of {label} gave a trace to train on: "
        + "; ".join([*why, *unread.samples[:1]]),
        "see which columns and format the recipe names under traces",
    )


def _group_by_problem(path: Path) -> None:
    """Rewrite the traces so that those of one problem stand together, in order of index."""
    order: dict[str, int] = {}
    places: list[tuple[int, int, int]] = []
    offset = 0
    with path.open("rb") as file:
        for raw in file:
            row = json.loads(raw)
            rank = order.setdefault(row["problem_id"], len(order))
            places.append((rank, row["index"], offset))
            offset += len(raw)
    places.sort()

    def lines() -> Iterator[bytes]:
        with path.open("rb") as source:
            for _, _, start in places:
                source.seek(start)
                yield source.readline()

    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as target:
        target.writelines(lines())
    temporary.replace(path)
