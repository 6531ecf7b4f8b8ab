"""What filters that read texts have in common: size in tokens, words, quotations."""

from __future__ import annotations

import re

from distill.records import Trace

CHARS_PER_TOKEN = 4.0
"""Rule of thumb for English and mathematics, used only where no engine counted tokens."""

UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
"""Scripts without spaces, for a class of a regular expression: taken character by character."""


_OTHER_SPACE = re.compile(r"[\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
_ONE_SPACE = bytes(32 if byte < 128 and chr(byte).isspace() else byte for byte in range(256))


def folded(text: str) -> bytes:
    """The text as UTF-8 with single spaces in place of all white space, none around it."""
    if not text.isascii() and _OTHER_SPACE.search(text):
        return " ".join(text.split()).encode("utf-8", "surrogatepass")
    # The same, several times as fast.
    data = text.encode("utf-8", "surrogatepass").translate(_ONE_SPACE)
    while b"  " in data:
        data = data.replace(b"  ", b" ")
    return data.strip(b" ")


def tokens_of(trace: Trace) -> int:
    """The engine's token count, or characters / 4 where the trace came without one."""
    return trace.completion_tokens or round(len(trace.text) / CHARS_PER_TOKEN)


def quote(text: str, limit: int = 60) -> str:
    """The beginning of a text on one line, in quotation marks, `limit` characters at most."""
    folded = " ".join(text[: 20 * limit].split())
    short = folded if len(folded) <= limit else folded[: limit - 1] + "…"
    return f"'{short}'"
