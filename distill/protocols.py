"""What a teacher, a grader, a filter and a student must offer. Nothing has to be registered.

A custom part is a function or a small object: passed in (`run(recipe, teacher=Mine())`) or
named in the recipe (`teacher: ./mine.py:Mine`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from distill.errors import TeacherError
from distill.records import Example, Grade, Message, Problem, Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """What an engine is asked for. R1's values (arXiv 2501.12948v1, section 3) by default."""

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int | None = None
    max_tokens: int = 32768
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One sample wanted. `prompt` is a chat, a rendered text or token ids.

    `prefix_ids` are tokens already sampled, to go on from, and `prompt_ids` the tokens of the
    prompt they followed, where an earlier answer told them. `prefix_text` is the same output as
    text, all that an engine has to go on from that takes no tokens. `key` names the request in
    logs and has no meaning to the engine.
    """

    key: str
    prompt: Sequence[Message] | str | Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    seed: int | None = None
    prefix_ids: Sequence[int] | None = None
    prefix_text: str | None = None
    prompt_ids: Sequence[int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens as the engine counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One answer.

    `text` is the whole output with thinking tags written out as `<think>...</think>`, whether
    the engine returned them inline, in a field of its own or had opened them in its prompt
    (`distill.thinking.canonical` and `join` do this). `reasoning` is the part between the tags.
    """

    text: str
    reasoning: str | None = None
    finish_reason: str = "stop"
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    token_ids: tuple[int, ...] | None = None
    usage: Usage = Usage()
    served_model: str = ""
    fingerprint: str = ""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an engine honours; what it ignores is said in the plan and the report.

    `batch_size` is set by engines that want whole batches: they offer `complete_batch`, and
    the sampler hands them fixed groups of that size, re-run whole after an interruption.
    `prefix` says that the engine goes on from `Request.prefix_ids`, `prefill` from `prefix_text`.
    `deterministic` promises equal text for equal requests (in equal groups).
    """

    seed: bool = True
    n: bool = False
    token_ids: bool = False
    prefix: bool = False
    prefill: bool = False
    sampling: bool = True
    deterministic: bool = False
    batch_size: int | None = None


OnTokens = Callable[[int], None]
"""Called with the number of new tokens while a completion grows; for live progress only."""


@runtime_checkable
class Teacher(Protocol):
    """Turns one request into one completion. Raises TeacherError for a request that failed.

    `identity` names what changes the text: weights with their revision or hash, template,
    quantisation. It is part of the generation key; engine versions and concurrency are not.
    `open()` and `close()` are optional.
    """

    identity: str
    capabilities: Capabilities

    async def complete(self, request: Request, on_tokens: OnTokens | None = None) -> Completion: ...


@runtime_checkable
class BatchTeacher(Protocol):
    """A teacher that computes whole batches, in the order given.

    A request that failed alone is answered by its TeacherError in the list, not raised.
    """

    identity: str
    capabilities: Capabilities

    def complete_batch(
        self, requests: Sequence[Request], on_tokens: OnTokens | None = None
    ) -> list[Completion | TeacherError]: ...


class Grader(Protocol):
    """Judges one trace. Must not raise on any text: what it cannot judge is an `error` grade."""

    def __call__(self, problem: Problem, trace: Trace) -> Grade: ...


class Filter(Protocol):
    """Returns None to keep a trace, or the reason to drop it.

    A filter that needs to see the whole corpus first (duplicates, overlap) may also have
    `prepare(items)`, called once with all (problem, trace, grade) that reached it.
    """

    def __call__(self, problem: Problem, trace: Trace, grade: Grade) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Rendered:
    """Token ids and labels of one example, equal in length; label -100 is not trained."""

    input_ids: list[int]
    labels: list[int]


class Student(Protocol):
    """Trains on `dataset` (JSONL rows `{"messages": [...]}`) and leaves a model folder in `out`."""

    def train(self, dataset: Path, out: Path, config: Mapping[str, Any]) -> Path: ...


ProblemSource = Callable[..., Iterable[Problem | Mapping[str, Any]]]
Examples = Iterable[Example]
