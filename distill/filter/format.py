"""The filter for the form of a trace: one closed block of thinking, then an answer."""

from __future__ import annotations

from distill.records import Grade, Problem, Trace
from distill.thinking import STYLES, ThinkTags, split


class Format:
    """Drops traces that are not exactly `<think>REASONING</think>ANSWER`, both parts non-empty."""

    version = "1"

    def __init__(self, open_tag: str = "<think>", close_tag: str = "</think>") -> None:
        self.tags = ThinkTags(open_tag, close_tag)

    def __call__(self, problem: Problem, trace: Trace, grade: Grade) -> str | None:
        parts = split(trace.text, self.tags)
        if parts.reasoning is None:
            foreign = next((s.tags.open for s in STYLES.values() if s.tags.open in trace.text), "")
            return f"no thinking in {self.tags.open} but in {foreign}" if foreign else "no thinking"
        if not parts.closed:
            return "thinking was never closed"
        if parts.opened != 1 or parts.closed != 1:
            return f"{parts.opened} opening and {parts.closed} closing tags"
        if not trace.text.lstrip().startswith(self.tags.open):
            return "text before the thinking"
        if not parts.reasoning:
            return "empty thinking"
        if not parts.answer:
            return "no answer after the thinking"
        return None
