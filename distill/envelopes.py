"""What travels through lm-eval, which passes strings only: chats on the way in, traces back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from distill.records import Problem, Trace
from distill.thinking import split


class Chat(str):
    """Messages as JSON: what a chat template makes of them here. The engine renders them."""

    __slots__ = ()

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, str]]) -> Chat:
        return cls(json.dumps([dict(m) for m in messages], ensure_ascii=False))


class Answer(str):
    """A response that remembers the trace it is from."""

    trace: Trace

    @classmethod
    def of(cls, text: str, trace: Trace) -> Answer:
        answer = cls(text)
        answer.trace = trace
        return answer


def batches(
    wanted: Mapping[tuple[str, str], int],
) -> dict[tuple[str, int], dict[str, Problem]]:
    """Problems by (sampling, number of samples) and id, of counted (context, sampling) requests."""
    found: dict[tuple[str, int], dict[str, Problem]] = {}
    for (context, sampling), count in wanted.items():
        problem = as_problem(context)
        found.setdefault((sampling, count), {})[problem.id] = problem
    return found


def as_problem(context: str) -> Problem:
    """The messages of a request as a problem; a rendered text is one user message."""
    try:
        messages = json.loads(context)
        if isinstance(messages, list) and all("role" in m for m in messages):
            return Problem(messages=tuple(messages))
    except (ValueError, TypeError):
        pass
    return Problem(messages=({"role": "user", "content": context},))


def spoken(trace: Trace, stop: Sequence[str] | str) -> str:
    """The answer after the thinking, up to the first stop string; empty for unfinished thinking."""
    answer = split(trace.text).answer
    for word in [stop] if isinstance(stop, str) else stop:
        answer = answer.partition(word)[0] if word else answer
    return answer
