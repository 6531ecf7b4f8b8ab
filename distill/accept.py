"""Judges traces as they arrive, as the grade and filter steps will judge them afterwards.

Only rules and filters that look at one trace alone are asked: a judge model, and a filter that
must see the whole corpus or the evaluation's problems, are left to their steps. Exact duplicates
are the exception: they are found among the traces of one problem, in the order in which they count.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from distill.filter.corpus import Duplicates
from distill.filter.parts import Part, build, filters_identity
from distill.grade.parts import judges_of, rules_of
from distill.grade.run import grading_identity
from distill.grade.service import Judge
from distill.records import Grade, Problem, Trace
from distill.schema import DEFAULT_FILTERS, Grading, PartSpec


@dataclass(frozen=True, slots=True)
class Judged:
    """The grade of a trace and the first filter that objects, "" if none does.

    `key` stands for the text where the trace gets as far as the filter `duplicates`: of equal
    ones the first is accepted.
    """

    grade: Grade
    objection: str = ""
    key: bytes | None = None

    @property
    def accepted(self) -> bool:
        """Whether it is accepted, unless it repeats another trace of its problem."""
        return not self.objection


class Acceptance:
    """The recipe's graders and filters at work; `with Acceptance(...) as accept: ...`.

    `folder` is where the paths of a user's graders and filters start; `graders` are objects to use
    instead of the recipe's (see `grade.service.Judge`). Workers start with the first trace; one
    thread uses it at a time.
    """

    def __init__(
        self,
        grading: Grading | None = None,
        filters: Sequence[PartSpec] | None = None,
        folder: Path = Path(),
        graders: Sequence[Any] | None = None,
    ) -> None:
        grading = grading or Grading()
        self._judge = Judge(grading, folder, graders)
        chain = build(_or_default(filters), folder)
        self.chain = [part for part in chain if looks_at_one(part)]
        self.later = [part.label for part in chain if not looks_at_one(part)]
        """Names of the filters (and judge models) that are asked in their own steps alone."""
        if graders is None:
            self.later += [part.name for part in judges_of(grading)]

    def __enter__(self) -> Acceptance:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._judge.pool.close()

    def judge(self, pairs: Iterable[tuple[Problem, Trace]]) -> Iterator[Judged]:
        """One judgement for each pair, in order; a bounded number of pairs is held."""
        ahead: deque[tuple[Problem, Trace]] = deque()

        def passed_on() -> Iterator[tuple[Problem, Trace]]:
            for pair in pairs:
                ahead.append(pair)
                yield pair

        for grade in self._judge.grade_many(passed_on()):
            yield self._filtered(*ahead.popleft(), grade)

    def _filtered(self, problem: Problem, trace: Trace, grade: Grade) -> Judged:
        key = None
        for part in self.chain:
            if isinstance(part.call, Duplicates):
                key = text_key(trace)
            elif _objects(part, problem, trace, grade):
                return Judged(grade, part.label, key)
        return Judged(grade, "", key)


def acceptance_identity(
    grading: Grading, filters: Sequence[PartSpec], folder: Path
) -> dict[str, Any]:
    """What acceptance depends on: graders and filters with their versions."""
    chain = build(filters, folder)
    asked = [spec for spec, part in zip(filters, chain, strict=True) if looks_at_one(part)]
    return {
        "grading": grading_identity(rules_of(grading), folder),
        "filters": filters_identity(asked, folder),
    }


def looks_at_one(part: Part) -> bool:
    """True for a filter that can judge a trace when it arrives."""
    if isinstance(part.call, Duplicates):
        return True
    return not part.needs_corpus and not hasattr(part.call, "begin")


def text_key(trace: Trace) -> bytes:
    """Equal for texts that the filter `duplicates` takes for the same."""
    return hashlib.blake2b(" ".join(trace.text.split()).encode(), digest_size=16).digest()


def _objects(part: Part, problem: Problem, trace: Trace, grade: Grade) -> bool:
    try:
        return part.judge((problem, trace, grade)) is not None
    except Exception:
        # The filter step drops what a filter raises on, and says so.
        return True


def _or_default(filters: Sequence[PartSpec] | None) -> Sequence[PartSpec]:
    return [PartSpec(name=name) for name in DEFAULT_FILTERS] if filters is None else filters
