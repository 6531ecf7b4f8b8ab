"""The filter for text that no reader, and no student, should have to read.

DeepSeek-R1 dropped chains with long paragraphs and code blocks (arXiv 2501.12948v1, 2.3.3). To
these come what serving and copying leave behind: special tokens, turns of a dialogue that the model
made up, text in the wrong encoding, characters that show nothing, fences that never close.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

from distill.errors import UsageError
from distill.records import Grade, Problem, Trace


class Readability:
    """Drops traces that break one of these rules; each can be switched off.

    - `max_paragraph`: characters between two line breaks (null: any length);
    - `code`: with `auto` no block of program code where the problem has nothing to do with code,
      with `drop` in no problem, with `keep` everywhere;
    - `special_tokens`: none of a chat template's or tokenizer's tokens but those of `allow_tokens`;
    - `turns`: no "Human:", "Assistant:" or "### Instruction:" at the beginning of a line, unless
      the question has it;
    - `mojibake`: no UTF-8 read as Latin-1 ("Ã©" for "é", "â€™" for an apostrophe);
    - `max_broken`: control characters, U+FFFD, private use; `max_invisible`: zero-width characters
      and marks of direction (null: any number);
    - `balanced`: every code fence and `$$` is closed.
    """

    version = "1"

    def __init__(
        self,
        max_paragraph: int | None = 4000,
        code: Literal["auto", "keep", "drop"] = "auto",
        special_tokens: bool = True,
        allow_tokens: Sequence[str] = (),
        turns: bool = True,
        mojibake: bool = True,
        max_broken: int | None = 0,
        max_invisible: int | None = 10,
        balanced: bool = True,
    ) -> None:
        if max_paragraph is not None and max_paragraph < 1:
            raise UsageError(
                f"filter 'readability': max_paragraph = {max_paragraph}",
                "it is at least 1 character, or null for any length",
            )
        if code not in ("auto", "keep", "drop"):
            raise UsageError(f"filter 'readability': code = {code!r}", "it is auto, keep or drop")
        if isinstance(allow_tokens, str):
            raise UsageError(
                f"filter 'readability': allow_tokens = {allow_tokens!r}",
                'it is a list: ["<|begin_of_thought|>"]',
            )
        self.max_paragraph, self.code = max_paragraph, code
        self.allow_tokens = frozenset(allow_tokens)
        self.max_broken, self.max_invisible = max_broken, max_invisible
        self._checks: list[Callable[[str, Problem], str | None]] = []
        for wanted, check in (
            (special_tokens, self._special_token),
            (turns, _turn),
            (max_broken is not None, self._broken),
            (max_invisible is not None, self._invisible),
            (mojibake, _mojibake),
            (code != "keep", self._code),
            (balanced, _unbalanced),
            (max_paragraph is not None, self._paragraph),
        ):
            if wanted:
                self._checks.append(check)

    def __call__(self, problem: Problem, trace: Trace, grade: Grade) -> str | None:
        for check in self._checks:
            reason = check(trace.text, problem)
            if reason:
                return reason
        return None

    def _special_token(self, text: str, problem: Problem) -> str | None:
        for match in SPECIAL.finditer(text):
            if match.group() not in self.allow_tokens:
                return f"a special token: {_around(text, match.start(), match.end())}"
        return None

    def _broken(self, text: str, problem: Problem) -> str | None:
        pattern = _CONTROL if text.isascii() else _BROKEN
        return _too_many(pattern, text, self.max_broken or 0, "broken")

    def _invisible(self, text: str, problem: Problem) -> str | None:
        if text.isascii():
            return None
        return _too_many(_INVISIBLE, text, self.max_invisible or 0, "invisible")

    def _code(self, text: str, problem: Problem) -> str | None:
        if "```" not in text or (self.code == "auto" and about_code(problem)):
            return None
        for match in _FENCE.finditer(text):
            tag, body = match["tag"].lower(), match["body"]
            if tag not in _NO_CODE or (not tag and _PROGRAM.search(body)):
                return f"program code: {_quote(match.group())}"
        return None

    def _paragraph(self, text: str, problem: Problem) -> str | None:
        longest = max(text.split("\n"), key=len)
        if self.max_paragraph is None or len(longest) <= self.max_paragraph:
            return None
        return (
            f"a paragraph of {len(longest)} characters, more than {self.max_paragraph}: "
            f"{_quote(longest)}"
        )


# <|im_end|>, <｜end▁of▁sentence｜> and their like, [INST], <start_of_turn>, bytes and BPE's signs
# for a space. Tags of thinking are the business of `format`. Code blocks are no exception: a
# tokenizer that finds <|im_end|> in one ends the turn all the same.
SPECIAL = re.compile(
    r"<[|｜](?!(?:begin|end)_of_(?:thought|solution)[|｜]>)[^<>|｜\s]{2,40}[|｜]>"
    r"|<(?:(?:start|end)_of_(?:turn|text|image)|bos|eos|pad|unk|sop|eop|/s|0x[0-9A-F]{2}"
    r"|extra_id_\d+|(?:reserved|unused)_[a-z_]*\d+|\[?/?PAD\]?)>"
    r"|\[/?INST\]|<</?SYS>>|\[gMASK\]|\[(?:BOS|EOS|UNK|PAD|SEP|CLS)\]"
    r"|Ġ[A-Za-z]+Ġ|▁[A-Za-z]+▁"
)

_TURN = re.compile(
    r"\n[ \t]*(?:\*\*)?(?:"
    r"(?:User|Human|Assistant|USER|HUMAN|ASSISTANT|用户|助手)(?:\*\*)? ?[:：]"
    r"|#{2,3} ?(?:Instruction|Response|Human|Assistant|User)s?:"
    r"|System: You are )"
)


def _turn(text: str, problem: Problem) -> str | None:
    # With a line break in front the search goes from line to line, not by characters.
    text = "\n" + text
    for match in _TURN.finditer(text):
        if match.group().strip() not in problem.question:
            return f"a further turn: {_around(text, match.start(), match.end())}"
    return None


_C0 = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f"
_CONTROL = re.compile(f"[{_C0}]")
_BROKEN = re.compile(
    f"[{_C0}\x80-\x9f\ufffd\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff\U000f0000-\U0010ffff]"
)
# Without the joiners U+200C and U+200D, which Persian, Hindi and emoji are written with.
_INVISIBLE = re.compile("[\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


def _too_many(pattern: re.Pattern[str], text: str, most: int, kind: str) -> str | None:
    first = pattern.search(text)
    if first is None:
        return None
    count = len(pattern.findall(text, first.start()))
    if count <= most:
        return None
    shown = text[max(0, first.start() - 20) : first.start()]
    return (
        f"{count} {kind} characters, more than {most}: "
        f"U+{ord(first.group()):04X} after {_quote(shown)}"
    )


def _misread() -> str:
    """What a byte of 0x80 to 0xBF looks like when UTF-8 is read as Latin-1 or Windows-1252."""
    found = {chr(byte) for byte in range(0x80, 0xC0)}
    found |= {bytes([byte]).decode("cp1252", "ignore") for byte in range(0x80, 0xA0)} - {""}
    return re.escape("".join(sorted(found)))


# ftfy's `is_bad` was tried: a few MB/s, and it objects to Å³. These sequences hardly occur
# otherwise; French "é »" and Â², the square of an A with a hat, do and are left out.
_AGAIN = _misread()
_MOJIBAKE = re.compile(
    f"Ã[{_AGAIN}]"
    "|(?<=\\w)Â[¹²³]|Â[\xa0-±´-¸º-¿]"
    f"|â[€†‡ˆ‰Š‹„š\x80-\x9f][{_AGAIN}]"
    f"|ð[Ÿ\x9f][{_AGAIN}]{{2}}"
    f"|ï¿½|ï»¿"
    f"|(?:[Â-ß][{_AGAIN}]){{3,}}"
    f"|(?:[à-ï][{_AGAIN}]{{2}}){{2,}}"
)


_TWO_IN_A_ROW = re.compile("[Â-ô][^\x00-\x7f]")
"""What all of them begin with, found ten times as fast."""


def _mojibake(text: str, problem: Problem) -> str | None:
    if text.isascii() or not _TWO_IN_A_ROW.search(text):
        return None
    match = _MOJIBAKE.search(text)
    return None if match is None else f"mojibake: {_around(text, match.start(), match.end())}"


_FENCE = re.compile(r"```[ \t]*(?P<tag>[\w+#.-]*)(?P<body>.*?)(?:```|\Z)", re.DOTALL)
_NO_CODE = frozenset(["", "text", "txt", "plaintext", "math", "latex", "tex", "markdown", "md"])
_PROGRAM = re.compile(
    r"^[ \t]*(?:def |class |import |from \w+ import|return\b|print\(|for \w+ in |while |#include|"
    r"public |int main|console\.log|function \w+\(|let \w+ =|const \w+ =|\w+ = \w+\()",
    re.MULTILINE,
)
_ABOUT_CODE = re.compile(
    r"```|\b(?:code|coding|program(?:s|ming)?|pseudo-?code|script|algorithm|compiler|python|java|"
    r"javascript|typescript|rust|sql|bash|html|regex|c\+\+|leetcode|codeforces)(?![a-z])",
    re.IGNORECASE,
)


def about_code(problem: Problem) -> bool:
    """Whether code may be expected: by the problem's tests, its domain, or its own words."""
    if problem.metadata.get("tests"):
        return True
    if str(problem.metadata.get("domain", "")).lower() in ("code", "coding", "programming"):
        return True
    return bool(_ABOUT_CODE.search(problem.question))


def _unbalanced(text: str, problem: Problem) -> str | None:
    if text.count("```") % 2:
        at = text.rfind("```")
        return f"a code fence that never closes: {_quote(text[at : at + 60])}"
    if "$$" in text and len(_DISPLAY.findall(text)) % 2 and not _ADJACENT.search(text):
        at = text.rfind("$$")
        return f"a $$ that never closes: {_quote(text[max(0, at - 30) : at + 60])}"
    return None


_DISPLAY = re.compile(r"(?<![\\$])\$\$(?!\$)")
_ADJACENT = re.compile(r"[^\s\\$]\$\$[^\s$.,;:]")
"""`$x,$$y,$`: two formulas side by side, or a display in the midst of a line: who can tell."""


def _around(text: str, start: int, end: int) -> str:
    return _quote(text[max(0, start - 20) : end + 30])


def _quote(text: str, limit: int = 60) -> str:
    folded = " ".join(text[: 4 * limit].split())
    return f"'{folded if len(folded) <= limit else folded[: limit - 1] + '…'}'"
