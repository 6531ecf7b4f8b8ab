"""Rows of published trace collections -> questions and canonical traces, whatever their layout.

Four layouts are known: `generations` (a list of traces per row: OpenR1-Math-220k, DeepMath-103K),
`single` (one trace per row, or reasoning and solution in two columns: OpenThoughts' metadata,
s1K), `messages` (chat rows: Mixture-of-Thoughts) and `sharegpt` (`from`/`value` rows:
Bespoke-Stratos, OpenThoughts). What a publisher calls a tag becomes `<think>...</think>`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distill.errors import DataError
from distill.schema import ImportSpec
from distill.sources import gold_text
from distill.thinking import DEFAULT_TAGS, Parsed, Split, ThinkTags, join, parse, sanitise

Row = Mapping[str, Any]

QUESTION_COLUMNS = ("problem", "question", "prompt", "instruction", "query", "input")
GOLD_COLUMNS = ("answer", "final_answer", "ground_truth", "expected_answer", "gold")
LIST_COLUMNS = ("generations", "responses", "completions", "traces")
PAIRED_COLUMNS = (
    ("deepseek_reasoning", "deepseek_solution"),
    ("deepseek_thinking_trajectory", "deepseek_attempt"),
    ("thinking_trajectories", "attempt"),
    ("reasoning_content", "content"),
    ("reasoning", "response"),
    ("reasoning", "solution"),
)
SINGLE_COLUMNS = ("trace", "generation", "response", "completion", "output", "solution")
CHAT_COLUMNS = {"messages": "messages", "conversations": "sharegpt", "conversation": "sharegpt"}
METADATA_COLUMNS = {
    **{k: k for k in ("difficulty", "level", "subject", "topic", "domain", "problem_type")},
    "source": "origin",
    "uuid": "row_id",
    "id": "row_id",
}
VERDICT = re.compile(
    r"correctness_(?!count)\w+|grader_correct|is_correct|correct|verified|is_reasoning_complete"
)


class BadRow(Exception):
    """A row, or one of its traces, that cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Published:
    """One trace as it was published: canonical text, its parts, and what its makers said."""

    text: str
    parts: Split
    style: str
    finish_reason: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """The question of a row, with all its raw traces: a text, or reasoning and solution."""

    question: str
    gold: str | None
    traces: list[Any]
    finish_reasons: list[str | None]
    flags: list[tuple[str, ...]]
    model: str = ""
    system: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """Which columns of a data set hold what. `traces` are one or several column names."""

    form: str
    question: str
    gold: str | None
    traces: tuple[str, ...]
    notes: tuple[str, ...] = ()


def detect(row: Row, spec: ImportSpec) -> Layout:
    """The layout of a data set, from the recipe and its first row.

    Columns that the recipe names must exist; where it says nothing the usual names are tried.
    Raises DataError naming the columns there are.
    """
    form, traces = _trace_columns(row, spec)
    notes = []
    question = ""
    if form not in ("messages", "sharegpt"):
        question = _one_of(row, spec.question, QUESTION_COLUMNS, "problem", "question")
        if question != spec.question:
            notes.append(f"questions were read from the column '{question}'")
    gold = spec.gold
    if gold is not None and gold not in row:
        if gold != "answer":
            raise _no_column(row, "gold", gold)
        gold = next((name for name in GOLD_COLUMNS if name in row), None)
        notes.append(
            f"reference answers were read from the column '{gold}'"
            if gold
            else "there is no column with reference answers"
        )
    return Layout(form, question, gold, traces, tuple(notes))


def _trace_columns(row: Row, spec: ImportSpec) -> tuple[str, tuple[str, ...]]:
    if spec.trace is not None:
        if spec.trace not in row:
            raise _no_column(row, "trace", spec.trace)
        return _form_of(row[spec.trace]) if spec.format == "auto" else spec.format, (spec.trace,)
    numbered = tuple(sorted(k for k in row if re.fullmatch(r"\w*(solution|response)_\d+", k)))
    found: dict[str, tuple[str, ...]] = {}
    for name in LIST_COLUMNS:
        if isinstance(row.get(name), Sequence) and not isinstance(row[name], str):
            found.setdefault("generations", (name,))
    if numbered:
        found.setdefault("generations", numbered)
    for pair in PAIRED_COLUMNS:
        if all(name in row for name in pair):
            found.setdefault("single", pair)
    for name, form in CHAT_COLUMNS.items():
        if name in row:
            # Some publishers put ShareGPT rows under `messages`, and the other way round.
            found.setdefault(_form_of(row[name]) if row[name] else form, (name,))
    for name in SINGLE_COLUMNS:
        if isinstance(row.get(name), str):
            found.setdefault("single", (name,))
    order = ("generations", "messages", "sharegpt", "single")
    if len(found.get("single", ())) == 2:
        order = ("generations", "single", "messages", "sharegpt")
    for form in order if spec.format == "auto" else (spec.format,):
        if form in found:
            return form, found[form]
    wanted = "traces" if spec.format == "auto" else f"traces of the format '{spec.format}'"
    raise DataError(
        f"no column with {wanted}; the columns are: {', '.join(row)}",
        "name it with traces.trace",
    )


def _form_of(value: Any) -> str:
    if isinstance(value, str):
        return "single"
    first = value[0] if isinstance(value, Sequence) and value else None
    if isinstance(first, Mapping):
        return "sharegpt" if "from" in first else "messages"
    return "generations"


def _one_of(row: Row, given: str, names: Sequence[str], default: str, what: str) -> str:
    if given in row:
        return given
    found = next((name for name in names if name in row), None)
    if given != default or found is None:
        raise _no_column(row, what, given)
    return found


def _no_column(row: Row, what: str, name: str) -> DataError:
    return DataError(
        f"no column '{name}' for the {what}; the columns are: {', '.join(row)}",
        f"name the right one with traces.{what}",
    )


def read_row(row: Row, layout: Layout) -> Asked:
    """The question and the raw traces of one row. Raises BadRow."""
    chat = layout.form in ("messages", "sharegpt")
    question, traces, system = (
        _chat(row.get(layout.traces[0]))
        if chat
        else (row.get(layout.question), _raw_traces(row, layout), False)
    )
    if not isinstance(question, str) or not question.strip():
        raise BadRow(f"no question in the column '{layout.question}'")
    count = len(traces)
    reasons = _spread(row.get("finish_reasons", row.get("finish_reason")), count)
    flags: list[tuple[str, ...]] = [() for _ in traces]
    for name in row:
        if VERDICT.fullmatch(name) and row[name] is not None:
            for at, value in enumerate(_spread(row[name], count)):
                if value is not None:
                    flags[at] += (f"published:{name}={str(value).lower()}",)
    return Asked(
        question=sanitise(question.strip())[0],
        gold=gold_text(row.get(layout.gold)) if layout.gold else None,
        traces=traces,
        finish_reasons=[r if isinstance(r, str) and r else None for r in reasons],
        flags=flags,
        model=str(row.get("model") or ""),
        system=system or (chat and bool(row.get("system"))),
        metadata={
            new: row[old]
            for old, new in METADATA_COLUMNS.items()
            if isinstance(row.get(old), str | int | float)
        },
    )


def _raw_traces(row: Row, layout: Layout) -> list[Any]:
    values = [row.get(name) for name in layout.traces]
    if layout.form == "single" and len(values) == 2:
        thinking, answer = (v[0] if isinstance(v, list) and v else v for v in values)
        if not isinstance(thinking, str) or not isinstance(answer, str):
            raise BadRow(f"'{layout.traces[0]}' and '{layout.traces[1]}' must both be text")
        return [(thinking, answer)]
    if layout.form == "generations" and len(values) == 1:
        if not isinstance(values[0], list):
            raise BadRow(f"'{layout.traces[0]}' is not a list of traces")
        return values[0]
    # A row of DeepMath-103K may have fewer solutions than columns.
    return [v for v in values if v is not None] if layout.form == "generations" else values


def _chat(turns: Any) -> tuple[str, list[Any], bool]:
    """Question, traces and whether there was a system prompt, of a chat of one exchange."""
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise BadRow("the chat is not a list of messages")
    said = [
        (
            _ROLES.get(str(turn.get("role", turn.get("from"))), "?"),
            turn.get("content", turn.get("value")),
        )
        for turn in turns
    ]
    system = bool(said) and said[0][0] == "system"
    roles = [role for role, _ in said[system:]]
    if roles != ["user", "assistant"]:
        raise BadRow(
            f"the chat is not one question and one answer but {' '.join(roles) or 'empty'}"
        )
    question, answer = (text for _, text in said[system:])
    if not isinstance(question, str):
        raise BadRow("the question is not text")
    return question, [answer], system


_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}


def _spread(value: Any, count: int) -> list[Any]:
    """One value per trace: a list is laid beside them, anything else belongs to the only one."""
    if isinstance(value, list):
        return [value[at] if at < len(value) else None for at in range(count)]
    return [value if count == 1 else None] * count


def read_trace(
    raw: Any, finish_reason: str | None, flags: tuple[str, ...], tags: ThinkTags
) -> Published:
    """One raw trace in canonical form. Raises BadRow for one that is no text or empty.

    Where nobody said how it ended, a chain or an answer's block that was never closed counts as
    cut off ("length") and is flagged `unclosed`, any other as "stop".
    """
    texts = raw if isinstance(raw, tuple) else (raw,)
    if not all(isinstance(text, str) for text in texts) or not "".join(texts).strip():
        raise BadRow("the trace is empty" if raw in (None, "") else "the trace is not text")
    cleaned = [sanitise(text) for text in texts]
    if any(dirty for _, dirty in cleaned):
        flags += ("surrogates",)
    if len(cleaned) == 2:
        inner = parse(cleaned[0][0], tags).parts
        parts = Split(inner.reasoning or inner.answer, cleaned[1][0].strip(), 1, 1)
        found = Parsed(parts, "two columns", complete=True)
    else:
        found = parse(cleaned[0][0], tags)
    parts, ended = found.parts, "stop" if found.complete else "length"
    if not found.complete:
        flags += ("unclosed",)
    if parts.finished:
        text = join(parts.reasoning, parts.answer)
    else:
        text = f"{DEFAULT_TAGS.open}\n{parts.reasoning}"
    return Published(text, parts, found.style, finish_reason or ended, flags)
