"""What filters that read texts have in common: size in tokens, words, quotations."""

from __future__ import annotations

from distill.records import Trace

CHARS_PER_TOKEN = 4.0
"""Rule of thumb for English and mathematics, used only where no engine counted tokens."""

UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
"""Scripts without spaces, for a class of a regular expression: taken character by character."""


def tokens_of(trace: Trace) -> int:
    """The engine's token count, or characters / 4 where the trace came without one."""
    return trace.completion_tokens or round(len(trace.text) / CHARS_PER_TOKEN)


def quote(text: str, limit: int = 60) -> str:
    """The beginning of a text on one line, in quotation marks, `limit` characters at most."""
    folded = " ".join(text[: 20 * limit].split())
    short = folded if len(folded) <= limit else folded[: limit - 1] + "…"
    return f"'{short}'"
