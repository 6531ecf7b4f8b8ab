"""Tags and text: the only place that splits reasoning from answer, or joins them.

R1-style output is `<think>REASONING</think>ANSWER`. Three things go wrong with it in practice:
the template already wrote `<think>` (so the output starts inside), the server took the tags
away (so reasoning arrives in a field of its own), or the chain was never closed. Other makers
write other tags: `STYLES` has them, `parse` and `convert` read them.
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
class Style:
    """How a family of models marks its thinking, and the marks it puts around the answer.

    `answer` is the pair around the answer, if there is one; `noise` are marks without meaning.
    `leads` says that the opening is ordinary words, which count at the start of a text alone.
    """

    tags: ThinkTags
    answer: ThinkTags | None = None
    noise: tuple[str, ...] = ()
    leads: bool = False


STYLES: dict[str, Style] = {
    "think": Style(DEFAULT_TAGS),
    # Sky-T1, OpenThoughts, Bespoke-Stratos.
    "begin_of_thought": Style(
        ThinkTags("<|begin_of_thought|>", "<|end_of_thought|>"),
        ThinkTags("<|begin_of_solution|>", "<|end_of_solution|>"),
    ),
    "thinking": Style(ThinkTags("<thinking>", "</thinking>")),
    "reasoning": Style(ThinkTags("<reasoning>", "</reasoning>")),
    "thought": Style(ThinkTags("<thought>", "</thought>")),
    "mistral": Style(ThinkTags("[THINK]", "[/THINK]")),
    "kimi": Style(ThinkTags("◁think▷", "◁/think▷")),
    "seed": Style(ThinkTags("<seed:think>", "</seed:think>")),
    "minimax": Style(ThinkTags("<mm:think>", "</mm:think>")),
    "cohere": Style(
        ThinkTags("<|START_THINKING|>", "<|END_THINKING|>"),
        ThinkTags("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ),
    "gemma": Style(ThinkTags("<|channel>thought\n", "<channel|>"), noise=("<turn|>",)),
    "harmony": Style(
        ThinkTags(
            "<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>"
        ),
        noise=("<|start|>assistant", "<|end|>", "<|return|>"),
    ),
    "granite": Style(ThinkTags("Here is my thought process:", "Here is my response:"), leads=True),
}
"""Tags by the name under which reports count them. Where vLLM 0.32 has a parser for a family, the
strings are that parser's; the others were seen in published traces."""


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


@dataclass(frozen=True, slots=True)
class Parsed:
    """A text in whatever style: its parts, the style's name ("none" without tags).

    `complete` is False where the thinking, or a block around the answer, was never closed.
    """

    parts: Split
    style: str
    complete: bool


def parse(text: str, given: ThinkTags = DEFAULT_TAGS) -> Parsed:
    """Take a text apart by the given tags or, where it has none of them, by those of `STYLES`.

    Tags that are left over inside stay, under our own name, so that the format filter sees them.
    """
    for name, style in {"as given": Style(given), **STYLES}.items():
        if _uses(style, text):
            known = "think" if style.tags == DEFAULT_TAGS else name
            return _parsed(text, style, known)
    # Where the thinking was cut away, the marks around the answer may be left.
    answer, complete = text, True
    for style in STYLES.values():
        answer, closed = _unwrapped(answer, style)
        complete = complete and closed
    return Parsed(Split(None, answer.strip(), 0, 0), "none", complete)


def convert(text: str, given: ThinkTags = DEFAULT_TAGS) -> tuple[str, str]:
    """(canonical text, name of the style it was in).

    convert("[THINK]2 + 2[/THINK]4") == ("<think>\\n2 + 2\\n</think>\\n\\n4", "mistral")
    """
    found = parse(text, given)
    if found.parts.finished:
        return join(found.parts.reasoning, found.parts.answer), found.style
    return f"{DEFAULT_TAGS.open}\n{found.parts.reasoning}", found.style


def _uses(style: Style, text: str) -> bool:
    if style.leads:
        return text.lstrip().startswith(style.tags.open)
    return style.tags.open in text or style.tags.close in text


def _parsed(text: str, style: Style, name: str) -> Parsed:
    found = split(text, style.tags)
    answer, closed = _unwrapped(found.answer, style)
    reasoning = found.reasoning
    for mark in style.noise:
        answer = answer.replace(mark, "")
        reasoning = None if reasoning is None else reasoning.replace(mark, "").strip()
    if reasoning is not None and style.tags != DEFAULT_TAGS:
        reasoning = reasoning.replace(style.tags.open, DEFAULT_TAGS.open)
        reasoning = reasoning.replace(style.tags.close, DEFAULT_TAGS.close)
    parts = Split(reasoning, answer.strip(), found.opened, found.closed)
    return Parsed(parts, name, parts.finished and closed)


def _unwrapped(answer: str, style: Style) -> tuple[str, bool]:
    """The answer without the marks around it, and whether they were closed."""
    marks = style.answer
    if marks is None or (marks.open not in answer and marks.close not in answer):
        return answer, True
    closed = marks.close in answer
    return answer.replace(marks.open, "").replace(marks.close, "").strip(), closed


def sanitise(text: str) -> tuple[str, bool]:
    """Replace lone surrogates, which no UTF-8 file can hold, by U+FFFD; True if any was there."""
    clean = re.sub(r"[\ud800-\udfff]", "\ufffd", text)
    return clean, clean != text


def _strip_open(head: str, tags: ThinkTags) -> str:
    head = head.strip()
    if head.startswith(tags.open):
        head = head[len(tags.open) :]
    return head.strip()
