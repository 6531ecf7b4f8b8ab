"""Tags and text: the only place that splits reasoning from answer, or joins them.

R1-style output is `<think>REASONING</think>ANSWER`. Three things go wrong with it in practice:
the template already wrote `<think>` (so the output starts inside), the server took the tags
away (so reasoning arrives in a field of its own), or the chain was never closed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ThinkTags:
    """The pair of strings between which a model thinks."""

    open: str = "<think>"
    close: str = "</think>"


DEFAULT_TAGS = ThinkTags()


@dataclass(frozen=True, slots=True)
class Split:
    """A text taken apart. `reasoning` is None where the model did not think at all."""

    reasoning: str | None
    answer: str
    opened: int
    closed: int

    @property
    def finished(self) -> bool:
        """True if no thinking was begun, or it was closed: only then `answer` is an answer."""
        return self.reasoning is None or self.closed > 0


def split(text: str, tags: ThinkTags = DEFAULT_TAGS, *, prompt_opens: bool = False) -> Split:
    """Take a raw output apart at its LAST closing tag.

    `prompt_opens` says that the prompt ended with the opening tag, so the text starts inside
    the thinking. A chain that was never closed has no answer. A closing tag without an opening
    one counts as thinking from the start (servers and templates swallow the opening tag).
    """
    opened = text.count(tags.open) + (1 if prompt_opens else 0)
    closed = text.count(tags.close)
    if closed:
        head, _, answer = text.rpartition(tags.close)
        return Split(_strip_open(head, tags), answer.strip(), opened, closed)
    if prompt_opens:
        return Split(_strip_open(text, tags), "", opened, 0)
    _, tag, after = text.partition(tags.open)
    if tag:
        return Split(after.strip(), "", opened, 0)
    return Split(None, text.strip(), opened, 0)


def join(reasoning: str | None, answer: str, tags: ThinkTags = DEFAULT_TAGS) -> str:
    """The canonical text of a reasoning and an answer; without reasoning, the answer alone."""
    if reasoning is None:
        return answer.strip()
    return f"{tags.open}\n{reasoning.strip()}\n{tags.close}\n\n{answer.strip()}"


def canonical(text: str, tags: ThinkTags = DEFAULT_TAGS, *, prompt_opens: bool = False) -> str:
    """`text` with the tags written out as the student should say them.

    An unfinished chain stays unfinished; the opening tag that the prompt held is put back.
    """
    parts = split(text, tags, prompt_opens=prompt_opens)
    if parts.reasoning is None:
        return parts.answer
    if not parts.closed:
        return f"{tags.open}\n{parts.reasoning}"
    return join(parts.reasoning, parts.answer, tags)


def sanitise(text: str) -> tuple[str, bool]:
    """Replace lone surrogates, which no UTF-8 file can hold, by U+FFFD; True if any was there."""
    clean = re.sub(r"[\ud800-\udfff]", "\ufffd", text)
    return clean, clean != text


def _strip_open(head: str, tags: ThinkTags) -> str:
    head = head.strip()
    if head.startswith(tags.open):
        head = head[len(tags.open) :]
    return head.strip()
