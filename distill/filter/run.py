"""The filter step: every trace meets the filters in order, the first that objects drops it.

Filters that look at one trace alone are asked in one pass over the corpus, each that compares
traces in a pass of its own, after it was prepared. Passes run in worker processes (`parallel`)
unless the corpus is small; `ledger` adds up who objected to what.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.errors import DistillError
from distill.filter.asking import Answers, Question, ask_block
from distill.filter.ledger import MAX_ERROR_SHARE, Ledger
from distill.filter.parallel import FilterPool
from distill.filter.parts import Item, Part, build, filters_identity
from distill.filter.reading import Block, Files, ProblemFile, blocks, read_block, read_items
from distill.filter.worker import Setting, pickle_questions
from distill.grade.pool import default_workers
from distill.progress import Progress
from distill.records import Problem, read_records, write_jsonl
from distill.schema import PartSpec
from distill.step import write_atomically

log = logging.getLogger(__name__)

SMALL = 8 << 20
"""Bytes of traces that are judged before two workers would have started."""

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
    workers: int | None = None,
) -> None:
    """Judge all traces; write `verdicts.jsonl` (in the order of the traces) and `summary.json`.

    `grades` holds one row per trace in the same order; `eval_files` are the Problem files of
    the evaluation tasks, named `<task>.jsonl`. `workers` is the number of processes, 0 for none;
    by default as many as processors, or none for a small corpus judged by our own filters. The
    result does not depend on it. A filter that raises on a trace drops it with the reason
    `error: ...`. Raises DataError for files that do not fit together and DistillError where a
    filter raises on more than 1% of the traces.
    """
    start = time.monotonic()
    tasks = {path.stem: list(read_records(Problem, path)) for path in eval_files}
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        spill = _emptied(out / "scratch")
        stack.callback(shutil.rmtree, spill)
        files = Files(problems, traces, grades)
        chain = build(filters, folder)
        if workers is None:
            small = traces.stat().st_size < SMALL and not any(part.own for part in chain)
            workers = 0 if small else default_workers()
        asked = ProblemFile(problems, spill / "problems.npy")
        stack.callback(asked.close)
        corpus = _Corpus(files, asked, blocks(files))
        ledger = Ledger([part.label for part in chain], spill)
        stack.callback(ledger.close)
        ledger.total = corpus.size
        for part in chain:
            _begin(part, asked, tasks)
        run = _Run(filters, folder, chain, corpus, ledger, spill)
        if workers:
            most = max(1, MAX_ERROR_SHARE * corpus.size)
            setting = Setting(filters, folder, files, spill / "problems.npy", spill)
            run.pool = stack.enter_context(FilterPool(setting, chain, workers=workers, most=most))
        run.all(lambda part: _begin(part, asked, tasks))
        verdicts = write_jsonl(out / "verdicts.jsonl", ledger.verdicts())
        for part in chain:
            if hasattr(part.call, "write"):
                part.call.write(out)
    own_notes = [note for part in chain for note in getattr(part.call, "notes", [])]
    for note in ledger.notes():
        log.warning(note)
    assert verdicts == corpus.size
    summary = ledger.summary() | {
        "seconds": round(time.monotonic() - start, 3),
        "notes": own_notes + ledger.notes(),
    }
    write_atomically(out / "summary.json", json.dumps(summary, ensure_ascii=False, indent=1))


@dataclass(frozen=True)
class _Corpus:
    """The traces, as blocks of their file, with what they belong to."""

    files: Files
    problems: ProblemFile
    blocks: list[Block]

    @property
    def size(self) -> int:
        return sum(block.count for block in self.blocks)

    def stream(self, reached: Callable[[Block], bytes] | None = None) -> Iterator[Item]:
        """All items in order, or those that `reached` says."""
        for block in self.blocks:
            wanted = reached(block) if reached else None
            for _, item in read_block(self.problems, self.files, block, wanted):
                yield item


@dataclass
class _Run:
    """The passes over the corpus."""

    filters: list[PartSpec]
    folder: Path
    chain: list[Part]
    corpus: _Corpus
    ledger: Ledger
    spill: Path
    pool: FilterPool | None = None
    _passes: int = field(default=0)

    def all(self, begin: Callable[[Part], None]) -> None:
        """First those that see one trace alone, then the others in the order of the chain."""
        alone = [Question(n, part) for n, part in enumerate(self.chain) if not part.needs_corpus]
        here = [q for q in alone if q.part.has_state and not self._can_travel(q)]
        later = [n for n, part in enumerate(self.chain) if part.needs_corpus]
        later = sorted(later + [q.number for q in here])
        sketched = [n for n in later if self.chain[n].sketches and self.corpus.blocks]
        total = (1 + len(later) - len(sketched)) * self.corpus.size
        with Progress("filter", total, "judged") as progress:
            first = [question for question in alone if question not in here]
            first += [Question(n, self.chain[n], sketch=True) for n in sketched]
            first.sort(key=lambda question: question.number)
            for block, answers in self._ask(first, None):
                self.ledger.enter_first(block, answers)
                progress.update(block.count, dropped=self.ledger.dropped)
            for number in later:
                if number in sketched:
                    self._compare(number, begin)
                    progress.update(0, dropped=self.ledger.dropped)
                    continue
                question = self._prepared(number, begin)
                reached = self._reached(number)
                for block, answers in self._ask([question], reached):
                    self.ledger.enter(number, block, answers)
                    progress.update(block.count, dropped=self.ledger.dropped)

    def _prepared(self, number: int, begin: Callable[[Part], None]) -> Question:
        """A filter that has seen what reached it, and one that has seen everything.

        They are the same where both saw the same.
        """
        part = self.chain[number]
        if not part.needs_corpus:
            return Question(number, part)
        if part.sees_all or not self.ledger.dropped:
            _prepare(part, self.corpus.stream())
            return Question(number, part)
        _prepare(part, self.corpus.stream(self._reached(number)))
        alone = build(self.filters, self.folder)[number]
        begin(alone)
        _prepare(alone, self.corpus.stream())
        return Question(number, part, alone)

    def _compare(self, number: int, begin: Callable[[Part], None]) -> None:
        """A filter that compares sketches: no trace is read again."""
        part, alone, ledger = self.chain[number], None, self.ledger
        if not part.sees_all and ledger.dropped:
            alone = build(self.filters, self.folder)[number]
            begin(alone)
            _prepare(alone, (row[1:] for row in ledger.sketches(number)))
        reached = ledger.sketches(number, reached=alone is not None)
        _prepare(part, (row[1:] for row in reached))
        for position, key, index, sketch in ledger.sketches(number):
            reason = None
            if ledger.winner[position] > number:
                reason = self._judge(number, part, (key, index, sketch))
                if reason is not None:
                    ledger.object(number, position, reason)
            elif alone is None:
                reason = self._judge(number, part, (key, index, sketch))
            if alone is not None:
                reason = self._judge(number, alone, (key, index, sketch))
            if reason is not None:
                ledger.object_alone(number, position)

    def _judge(self, number: int, part: Part, row: tuple[str, int, bytes]) -> str | None:
        try:
            return part.judge_sketch(*row)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"[:300]
            self.ledger.error(number, f"{text} (sample {row[1]} of problem {row[0]})")
            return f"error: {text}"

    def _reached(self, number: int) -> Callable[[Block], bytes]:
        return lambda block: self.ledger.reached(number, block)

    def _ask(
        self, questions: Sequence[Question], reached: Callable[[Block], bytes] | None
    ) -> Iterator[tuple[Block, Answers]]:
        """The answers to the questions for all blocks in order."""
        self._passes += 1
        path = self.spill / f"questions-{self._passes}.pickle"
        corpus = self.corpus
        if self.pool is not None and pickle_questions(questions, path):
            yield from self.pool.ask(path, corpus.blocks, reached)
            return
        for block in corpus.blocks:
            flags = reached(block) if reached else None
            yield (
                block,
                ask_block(questions, corpus.problems, corpus.files, block, reached=flags),
            )

    def _can_travel(self, question: Question) -> bool:
        return self.pool is None or pickle_questions([question], self.spill / "probe.pickle")


def _emptied(folder: Path) -> Path:
    """The folder, without what a run that was killed left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _begin(part: Part, problems: ProblemFile, tasks: dict[str, list[Problem]]) -> None:
    if hasattr(part.call, "begin"):
        part.call.begin(problems, tasks)


def _prepare(part: Part, items: Iterator[Any]) -> None:
    """Show a filter the corpus: whole items, or (problem id, index, sketch)."""
    try:
        if part.sketches:
            part.call.prepare_sketches(items)  # type: ignore[attr-defined]
        else:
            part.call.prepare(items)  # type: ignore[attr-defined]
    except DistillError:
        raise
    except Exception as error:
        log.debug("filter %s: prepare", part.label, exc_info=True)
        raise DistillError(
            f"filter '{part.label}' raised in prepare: {type(error).__name__}: {error}",
            "mend the filter; DISTILL_DEBUG=1 logs where it raised",
        ) from error
