"""Puts the traces of one block to some of a recipe's filters; the same code in every process."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from distill.filter.parts import Item, Part
from distill.filter.reading import Block, Files, name_of, read_block
from distill.records import Problem

log = logging.getLogger(__name__)

Skips = Mapping[tuple[int, int], str]
"""(place in the block, number of the filter) -> why it is not asked: it ended its process."""

Beat = Callable[[int, int], None]
"""Told the place in the block and the filter's number before each question; -1 for none."""


@dataclass(frozen=True)
class Question:
    """A filter at its place in the chain.

    `alone` is a second one that was prepared with all traces where `part` saw only those that
    reached it; None where both would say the same.
    """

    number: int
    part: Part
    alone: Part | None = None
    sketch: bool = False
    """Only its sketch of the trace is wanted: it compares sketches later."""


@dataclass(slots=True)
class Answers:
    """What the filters said about the traces of one block, by place in the block.

    `solo` has a bit for each filter that objects when asked by itself. `objections` are the first
    in the order of the chain, of traces that reached them: (place, filter, reason). `errors` are
    (filter, text). `measured` is filter -> name -> values. `heads` are (problem id, index, source).
    `sketches` are filter -> one for each trace, None where it raised.
    """

    solo: list[int] = field(default_factory=list)
    objections: list[tuple[int, int, str]] = field(default_factory=list)
    errors: list[tuple[int, str]] = field(default_factory=list)
    measured: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    unmeasured: list[tuple[int, str]] = field(default_factory=list)
    heads: list[tuple[str, int, str]] = field(default_factory=list)
    sketches: dict[int, list[bytes | None]] = field(default_factory=dict)


def ask_block(
    questions: Sequence[Question],
    problems: Mapping[str, Problem],
    files: Files,
    block: Block,
    *,
    reached: bytes | None = None,
    skips: Skips | None = None,
    beat: Beat | None = None,
) -> Answers:
    """Ask all questions about all traces of a block.

    `reached` has one byte per trace: zero for those that an earlier filter dropped, whose
    objections then count as solo alone. A filter that raises objects with `error: ...`.
    """
    answers = Answers()
    for at, item in read_block(problems, files, block):
        problem, trace, _ = item
        answers.heads.append((trace.problem_id, trace.index, problem.source))
        answers.solo.append(0)
        in_chain = reached is None or bool(reached[at])
        for question in questions:
            number, skip = question.number, (skips or {}).get((at, question.number))
            if beat is not None:
                beat(at, number)
            errors = answers.errors
            if question.sketch:
                reason = _sketch(question, item, skip, answers)
                objects = reason is not None
            elif question.alone is None:
                reason = _ask(question, question.part, item, skip, errors)
                objects = reason is not None
            else:
                reason = _ask(question, question.part, item, skip, errors) if in_chain else None
                objects = _ask(question, question.alone, item, skip, None) is not None
            if reason is not None and in_chain:
                answers.objections.append((at, number, reason))
                in_chain = False
            answers.solo[-1] |= objects << number
            if question.part.measures and not question.sketch and skip is None:
                _measure(question, item, answers)
        if beat is not None:
            beat(at, -1)
    return answers


def _ask(
    question: Question,
    part: Part,
    item: Item,
    skip: str | None,
    errors: list[tuple[int, str]] | None,
) -> str | None:
    """The filter's reason; one that raises objects too, and is counted in `errors`."""
    if skip is None:
        try:
            return part.judge(item)
        except Exception as error:
            skip = f"{type(error).__name__}: {error}"[:300]
            log.debug("filter %s on %s", part.label, name_of(item[1]), exc_info=True)
    if errors is not None:
        errors.append((question.number, f"{skip} ({name_of(item[1])})"))
    return f"error: {skip}"


def _sketch(question: Question, item: Item, skip: str | None, answers: Answers) -> str | None:
    """Keep the filter's sketch of a trace; one that raises objects."""
    made = answers.sketches.setdefault(question.number, [])
    if skip is None:
        try:
            made.append(bytes(question.part.call.sketch(*item)))  # type: ignore[attr-defined]
            return None
        except Exception as error:
            skip = f"{type(error).__name__}: {error}"[:300]
            log.debug("filter %s on %s", question.part.label, name_of(item[1]), exc_info=True)
    made.append(None)
    answers.errors.append((question.number, f"{skip} ({name_of(item[1])})"))
    return f"error: {skip}"


def _measure(question: Question, item: Item, answers: Answers) -> None:
    try:
        values = {k: float(v) for k, v in question.part.measure(item).items()}
        if not all(map(math.isfinite, values.values())):
            raise ValueError(f"not finite: {values}")
    except Exception as error:
        text = f"{type(error).__name__}: {error} ({name_of(item[1])})"
        answers.unmeasured.append((question.number, text[:300]))
        return
    kept = answers.measured.setdefault(question.number, {})
    for name, value in values.items():
        kept.setdefault(name, []).append(value)
