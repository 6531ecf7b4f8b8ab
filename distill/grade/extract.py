"""The final answer in the text after the thinking, found in one pass over the text.

Three outcomes need no grader and are decided here: `truncated` (cut off at the token limit with
no answer after the thinking), `unparsed` (nothing that looks like an answer), and, for problems
without a reference, `ungraded`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from typing import TypeVar

from distill.records import Grade, Trace
from distill.thinking import split

T = TypeVar("T")

_TOKEN = re.compile(
    r"\\{1,4}(?:boxed|fbox)\s{0,16}(?:\{|(?P<number>[-+]?\d[\d.,/]*))|\\.|[{}]", re.DOTALL
)
_BOX = re.compile(r"\\{1,4}(?:boxed|fbox)\s{0,16}")
_GLUE = r"(?:[\s$,;.]|\\[()\[\],;! ]|\\q?quad(?![a-z]))"
_AND = r"(?:\b(?:and|or)\b|\\text\s?\{\s?(?:and|or)\s?\}|&)"
_UNIT = (
    rf"(?:[a-z]{{1,12}}\s(?={_GLUE}{{0,4}}(?:{_AND}|[,;]))|"
    r"\\text\{ ?for part \([a-z]\) and \})"
)
_JOINED = re.compile(
    rf"{_GLUE}{{0,12}}(?:{_UNIT}{_GLUE}{{0,4}})?(?:{_AND}{_GLUE}{{0,12}})?(?:[A-Za-z](?:_\{{?\d\}}?)?\s?=\s?)?"
)
"""What may stand between two boxes that are one answer: "and", commas, a unit, the next `x_2 =`."""

_CONJUNCTION = re.compile(r"[ \t]{0,8}\$?[ \t]{0,8}\b(and|or)\b[ \t]{0,8}\$?[ \t]{0,8}")
_TAGGED = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL | re.IGNORECASE)
_HASHES = re.compile(r"^####[ \t]{0,8}(\S[^\n]*)$", re.MULTILINE)
_ANSWER_IS = (
    r"(?:[ \t]{1,4}(?:to|of|for)[ \t][^\n.:=]{0,40}?)?"
    r"[ \t]{0,8}\*{0,4}[ \t]{0,8}(?::|=|\bis\b|\bare\b|\bwould be\b|\*\*[ \t]{0,8}\n%s)"
    r"(?:[ \t]{1,8}(?:therefore|thus|then|simply|given by|equal to)\b)?"
    r"[ \t]{0,8}[:=]?[ \t]{0,8}\*{0,4}[ \t]{0,8}"
)
_PHRASES = (
    re.compile(r"final[ \t]{1,4}answers?" + _ANSWER_IS % r"|[ \t]{0,8}\n", re.IGNORECASE),
    re.compile(r"\banswers?" + _ANSWER_IS % "", re.IGNORECASE),
)
_DISPLAY = re.compile(r"\s*(?:\$\$(?P<dollars>.+?)\$\$|\\\[(?P<bracket>.+?)\\\])", re.DOTALL)
_FORMULA = re.compile(r"\$([^$]+)\$|\\\((.+?)\\\)")
_STRONG = re.compile(r"\*\*([^*\n]{1,80})\*\*")
_HEADING = re.compile(r"(?:step|part|case|note|problem|question|example|method)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$|\*)")
_MAX_ANSWER = 4000
"""Longest text taken for an answer after a phrase, in characters; a box may be longer."""


def answer_text(trace: Trace) -> str:
    """What the trace says after its thinking; empty where the thinking was never closed."""
    if trace.reasoning is None and not trace.answer:
        return split(trace.text).answer
    # An engine that split the text by other tags may have left ours in the answer.
    return split(trace.answer).answer


def thought_box(trace: Trace) -> str | None:
    """The last box inside the thinking, for graders that were told to look there."""
    thinking = trace.reasoning
    if thinking is None:
        thinking = split(trace.text).reasoning
    return last_boxed(thinking, cut=was_cut(trace)) if thinking else None


def was_cut(trace: Trace) -> bool:
    """True for an output that ended at the token limit."""
    return trace.finish_reason == "length"


def without_answer(trace: Trace, grader: str, version: str) -> Grade:
    """The grade of a trace in which no answer was found."""
    if was_cut(trace):
        return Grade(
            outcome="truncated",
            grader=grader,
            version=version,
            detail="reached the token limit before an answer",
        )
    parts = split(trace.text)
    open_ended = bool(parts.opened or trace.reasoning) and not answer_text(trace)
    detail = "no answer after the thinking" if open_ended else "no final answer found"
    return Grade(outcome="unparsed", grader=grader, version=version, detail=detail)


def final_answer(text: str, *, cut: bool = False) -> str | None:
    r"""The final answer of a text without thinking, or None.

    In this order: the last `\boxed{...}` (several joined by "and" or commas count as one answer)
    unless a number is called the final answer after it,
    `<answer>...</answer>`, GSM8K's `#### ...`, the last "final answer is ..." or "Answer: ...", a
    number or formula in bold in the last line.
    With `cut`, an expression that the end of the text broke off is no answer.
    """
    box = last_boxed(text, cut=cut)
    if box is not None:
        return _stated_later(text, cut) or box
    for pattern in (_TAGGED, _HASHES):
        marked = _last(m.group(1).strip() for m in pattern.finditer(text))
        if marked:
            return marked
    return _after_phrase(text, cut) or _bold(text, cut)


def last_boxed(text: str, *, cut: bool = False) -> str | None:
    r"""The content of the last non-empty `\boxed{...}`, with its inner braces, or None.

    A box whose brace is never closed counts up to the end of its line, unless the text was cut.
    Linear in the text, whatever the nesting.
    """
    spans, unclosed = _boxes(text)
    boxes = [span for span in spans if not text[span[1] : span[2]].isspace() and span[1] < span[2]]
    if unclosed is not None and not cut and (not boxes or unclosed[0] > boxes[-1][0]):
        rest = text[unclosed[1] : unclosed[1] + _MAX_ANSWER]
        body = re.split(r"\n|\$|\\\]|\\\)", rest, maxsplit=1)[0].strip().rstrip(".")
        if body:
            return _plain(body + "}" * max(0, body.count("{") - body.count("}")))
    if not boxes:
        return None
    found = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        between = text[box[3] : min(found[-1][0], box[3] + 40)]
        if box[3] + 40 < found[-1][0] or not _JOINED.fullmatch(between):
            break
        found.append(box)
    bodies = [_plain(text[box[1] : box[2]]) for box in reversed(found)]
    return ", ".join(dict.fromkeys(bodies))


Span = tuple[int, int, int, int]
"""Where a box's command, its content's begin and end, and its closing brace are."""


def _boxes(text: str) -> tuple[list[Span], tuple[int, int] | None]:
    # One stack of open braces; a box's entry remembers where the box began. Returns the complete
    # outermost boxes in order, and the last one left open.
    if "boxed" not in text and "fbox" not in text:
        return [], None
    boxes: list[Span] = []
    stack: list[tuple[int, int] | None] = []
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token == "{":
            stack.append(None)
        elif token == "}":
            opened = stack.pop() if stack else None
            if opened is not None:
                while boxes and boxes[-1][0] > opened[0]:
                    boxes.pop()
                boxes.append((*opened, match.start(), match.end()))
        elif match["number"]:
            boxes.append((match.start(), *match.span("number"), match.end()))
        elif token.endswith("{") and len(token) > 2:
            stack.append((match.start(), match.end()))
    return boxes, _last(entry for entry in stack if entry is not None)


def _plain(body: str) -> str:
    """The content of a box without further boxes and stray dollar signs in it."""
    body = _BOX.sub("", body).strip()
    if "$" in body:
        # `\boxed{12$ and $13}`
        body = _CONJUNCTION.sub(r" \\text{ \1 } ", body)
        body = re.sub(r"(?<!\\)\$", "", body).strip()
    wrapped = re.fullmatch(r"\{+([^{}]*)\}+", body)
    content = wrapped.group(1) if wrapped else body
    return re.sub(r"(?<!\\right)[.,]{1,4}$", "", content.strip())


def _after_phrase(text: str, cut: bool) -> str | None:
    for pattern in _PHRASES:
        for match in reversed(deque(pattern.finditer(text), maxlen=8)):
            rest = text[match.end() : match.end() + _MAX_ANSWER]
            display = _DISPLAY.match(rest)
            if display:
                return (display["dollars"] or display["bracket"]).strip() or None
            line, newline, _ = rest.lstrip().partition("\n")
            if cut and not newline and match.end() + len(rest) >= len(text):
                continue
            answer = _trim(line)
            if answer:
                return answer
    return None


def _bold(text: str, cut: bool) -> str | None:
    """What stands in bold in the last line, if it is mathematics and no heading."""
    line = text[-_MAX_ANSWER:].strip().rpartition("\n")[2]
    if cut:
        return None
    spans = [match[1].strip() for match in _STRONG.finditer(line)]
    plain = [span for span in spans if not span.endswith(":") and re.search(r"\d|\\[a-z]", span)]
    return _trim(plain[-1]) or None if plain and not _HEADING.match(plain[-1]) else None


def _stated_later(text: str, cut: bool) -> str | None:
    """A number or formula that is called the final answer after the last box."""
    start = text.rfind("boxed{")
    after = text[start:] if start >= 0 else ""
    if not _PHRASES[0].search(after):
        return None
    answer = _after_phrase(after, cut)
    plain = answer is not None and re.fullmatch(r"[-+]?\$?[\d][\d.,/]*", answer)
    return answer if plain else None


def _trim(line: str) -> str:
    """The answer at the start of a line: a formula, or the text up to the sentence's end."""
    line = line.strip().strip("*").strip()
    formula = _FORMULA.match(line)
    if formula and not re.match(r"\s*(?:,|and\b|or\b)\s*[$\\]", line[formula.end() :]):
        return (formula.group(1) or formula.group(2)).strip()
    end = _SENTENCE_END.search(line)
    if end:
        line = line[: end.start()]
    return line.strip().strip("*`").strip().rstrip(".,;:").strip()


def _last(items: Iterable[T]) -> T | None:
    last = None
    for item in items:
        last = item
    return last
