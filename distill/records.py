"""The records that travel along the arrows, and their JSONL form.

    Problem --sample--> Trace --grade--> Grade --filter--> Verdict --select--> Example

All are frozen: a stage never edits a record, it writes the next one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from distill.errors import DataError

Message = Mapping[str, str]
"""One chat message, `{"role": ..., "content": ...}`."""

Outcome = Literal["correct", "wrong", "unparsed", "truncated", "error", "ungraded"]
OUTCOMES: tuple[str, ...] = get_args(Outcome)

TraceKey = tuple[str, int, int]
"""(problem id, sample index, segment)."""


def problem_id(messages: Iterable[Message]) -> str:
    """Identity of a problem: 16 hex digits over its normalised messages, never over its gold.

    White space is folded so that a re-wrapped copy of a problem is the same problem.
    """
    normal = [[m["role"], re.sub(r"\s+", " ", m["content"]).strip()] for m in messages]
    return hashlib.sha256(json.dumps(normal, ensure_ascii=False).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A question, and what is needed to judge an answer to it.

    `gold` is the reference answer, None where there is none. `metadata` carries what a grader
    needs besides (a reasoning-gym entry, test cases) and whatever a report may group by
    (`difficulty`, `subject`). `statement` is the question without instruction and template,
    which is what decontamination compares; empty means: the last user message.
    """

    messages: tuple[Message, ...]
    gold: str | None = None
    source: str = ""
    statement: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", tuple(dict(m) for m in self.messages))
        if not self.id:
            object.__setattr__(self, "id", problem_id(self.messages))

    @property
    def question(self) -> str:
        """The text to compare with other problems: `statement`, or the last user message."""
        if self.statement:
            return self.statement
        users = [m["content"] for m in self.messages if m["role"] == "user"]
        return users[-1] if users else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One sampled chain of thought. `text` is the whole output with its tags, as trained on.

    `finish_reason` is the engine's own word; "length" means cut off at the token limit.
    `prompt` is the rendered prompt where the engine showed it. Costs are in the currency of
    the recipe's prices, times in seconds. `max_tokens` is the limit it was sampled under. A
    segment after the first holds the whole output up to its end, not the new part alone.
    `fingerprint` is the server's own name for its model's build, None where it tells none.
    """

    problem_id: str
    index: int
    segment: int = 0
    seed: int | None = None
    text: str = ""
    reasoning: str | None = None
    answer: str = ""
    finish_reason: str = "stop"
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    token_ids: tuple[int, ...] | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    time_s: float = 0.0
    teacher: str = ""
    served_model: str = ""
    flags: tuple[str, ...] = ()
    max_tokens: int | None = None
    fingerprint: str | None = None

    @property
    def key(self) -> TraceKey:
        return (self.problem_id, self.index, self.segment)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """A judgement: never a bare bool. `score` is in [0, 1], `extracted` what was judged."""

    outcome: Outcome
    score: float = 0.0
    extracted: str | None = None
    grader: str = ""
    version: str = ""
    detail: str = ""

    @property
    def correct(self) -> bool:
        return self.outcome == "correct"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Kept, or dropped: by which filter (or `select`) and why."""

    problem_id: str
    index: int
    kept: bool
    filter: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One training example: the problem's messages and the assistant's whole text."""

    problem_id: str
    index: int
    messages: tuple[Message, ...]
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", tuple(dict(m) for m in self.messages))


R = TypeVar("R", Problem, Trace, Grade, Verdict, Example)


def to_row(record: Any) -> dict[str, Any]:
    """A record as a JSON-ready dict, fields in declaration order, None kept out."""
    row = {}
    for f in dataclasses.fields(record):
        value = getattr(record, f.name)
        if value is not None:
            row[f.name] = list(value) if isinstance(value, tuple) else value
    return row


def from_row(kind: type[R], row: Mapping[str, Any]) -> R:
    """The record of a row; unknown keys are ignored so that older code reads newer files."""
    known = {f.name for f in dataclasses.fields(kind)}
    values: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if k in known}
    return kind(**values)


def dumps(row: Any) -> str:
    """Compact, deterministic JSON; non-ASCII text is kept readable."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Write records or dicts, one a line, to a temporary name and rename. Returns the count."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    try:
        with temporary.open("wb") as file:
            for row in rows:
                plain = to_row(row) if dataclasses.is_dataclass(row) else row
                file.write(_encoded(dumps(plain)) + b"\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _encoded(line: str) -> bytes:
    """UTF-8; lone surrogates, which JSON may hold and a file may not, become U+FFFD."""
    try:
        return line.encode()
    except UnicodeEncodeError:
        return re.sub("[\ud800-\udfff]", "\ufffd", line).encode()


@dataclass(slots=True)
class BadLines:
    """Lines that could not be read: how many, and the first few with their reason."""

    count: int = 0
    samples: list[str] = field(default_factory=list)

    def add(self, where: str, why: str) -> None:
        self.count += 1
        if len(self.samples) < 5:
            self.samples.append(f"{where}: {why}")


def read_jsonl(path: Path, bad: BadLines | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSONL file.

    A line that is not UTF-8, not JSON or not an object is counted in `bad`; without `bad` it
    raises DataError, because then the file is one of ours and must be whole.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                row = json.loads(raw.decode("utf-8"))
                if not isinstance(row, dict):
                    raise ValueError(f"expected an object, found {type(row).__name__}")
            except ValueError as error:
                if bad is None:
                    raise DataError(
                        f"{path}:{number}: {error}", "the file is damaged: delete its step's folder"
                    ) from error
                bad.add(f"{path}:{number}", str(error))
                continue
            yield row


def read_records(kind: type[R], path: Path) -> Iterator[R]:
    """The records of one of our own JSONL files, in order."""
    return (from_row(kind, row) for row in read_jsonl(path))
