"""The program in a model's answer: which code block, and what to do where there is none."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

PYTHON = ("python", "py", "python3", "py3", "python 3", "ipython", "sage", "pypy", "pypy3")
LONGEST = 200_000
"""Longest text that is taken for a program, in characters."""

_FENCE = re.compile(r"([ \t]{0,12})(`{3,}|~{3,})([^`\n]*)$")
_STARTS = re.compile(r"(?:async[ \t]+)?(?:def|class)[ \t]+\w|(?:import|from)[ \t]+\w|@\w")
_GOES_ON = re.compile(
    r"[ \t#)\]}@]|(?:async|def|class|import|from|if|elif|else|for|while|try|except|finally|with"
    r"|return|global|assert|del|raise|pass|match|case|print|exec)\b"
    r"|[A-Za-z_][\w.]{0,80}(?:\[[^\n]{0,200}\])?(?:[ \t]*,[ \t]*[A-Za-z_]\w{0,80}){0,20}[ \t]*"
    r"(?::[^\n=]{0,80})?(?:[-+*/%&|^]|//|\*\*|<<|>>)?=|[A-Za-z_][\w.]{0,80}\("
)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: its language in small letters, its text, whether its fence was closed."""

    language: str
    text: str
    closed: bool


def blocks(text: str) -> list[Block]:
    """All fenced code blocks of a text, in order; one pass over its lines."""
    found: list[Block] = []
    lines: list[str] = []
    fence, indent, language = "", 0, ""
    for line in text.split("\n"):
        match = _FENCE.match(line.rstrip()) if "```" in line or "~~~" in line else None
        if not fence:
            if match:
                indent, fence = len(match[1]), match[2]
                language, lines = match[3].strip().lower(), []
        elif match and match[2].startswith(fence) and not match[3].strip():
            found.append(Block(language, _body(lines, indent), True))
            fence = ""
        else:
            lines.append(line)
    if fence:
        found.append(Block(language, _body(lines, indent), False))
    return found


def _body(lines: list[str], indent: int) -> str:
    text = "\n".join(line.rstrip("\r") for line in lines)
    return textwrap.dedent(text) if indent else text


def find_program(text: str, *, names: Sequence[str] = (), cut: bool = False) -> str | None:
    """The program in an answer (a text without thinking), or None.

    The last block that defines one of `names` (an example of its use often comes after it), else
    the last block marked as Python, else the last without a mark; where there are no blocks, the
    lines that look like Python. With `cut`, what the end of the text broke off is no program.
    """
    fenced = blocks(text)
    if cut and (not fenced or not fenced[-1].closed):
        return None
    marked = [b.text for b in fenced if b.language.split("{")[0].strip() in PYTHON]
    plain = [b.text for b in fenced if not b.language]
    kept = [b for b in (*plain, *marked) if b.strip() and len(b) <= LONGEST]
    # Kept in this order, a marked block is taken before one without a mark.
    defining = [b for b in kept if any(defines(b, name) for name in names)]
    if kept:
        return defining[-1] if defining else kept[-1]
    return None if fenced else _unfenced(text, bool(names))


def defines(program: str, name: str) -> bool:
    """Whether a program says at its top level what `name` is."""
    word = re.escape(name)
    return bool(
        re.search(
            rf"^(?:async[ \t]+)?(?:def|class)[ \t]+{word}\b|^{word}[ \t]*(?::[^\n=]*)?=(?!=)"
            rf"|^(?:from[ \t][^\n]{{0,100}}[ \t])?import[ \t][^\n]{{0,200}}\b{word}\b",
            program,
            re.MULTILINE,
        )
    )


def last_function(program: str) -> str | None:
    """The name of the last function that a program defines at its top level."""
    names = re.findall(r"^(?:async[ \t]+)?def[ \t]+(\w+)", program, re.MULTILINE)
    return names[-1] if names else None


def _unfenced(text: str, function: bool) -> str | None:
    lines = text[:LONGEST].split("\n")
    for start, line in enumerate(lines):
        if _STARTS.match(line):
            end = start
            while end < len(lines) and (not lines[end].strip() or _GOES_ON.match(lines[end])):
                end += 1
            return "\n".join(lines[start:end]).rstrip() + "\n"
    if function:
        # A completion in HumanEval's own way: the rest of a function.
        return text[:LONGEST] if _looks_like_body(lines) else None
    looks = bool(lines) and all(not line.strip() or _GOES_ON.match(line) for line in lines)
    return text[:LONGEST] if looks and text.strip() else None


def _looks_like_body(lines: list[str]) -> bool:
    first = next((line.strip() for line in lines if line.strip()), "")
    return bool(first) and bool(_GOES_ON.match(first))


def completed(prompt: str, body: str) -> str:
    """A function whose beginning is `prompt` and whose rest is `body`, indented as is needed.

    An answer loses the white space before its first line, and a code block often all of it; the
    first reading that Python can parse is taken, and what follows the function is left out.
    """
    stripped = body.strip("\n")
    lines = stripped.split("\n")
    inner = [lines[0]]
    for line in lines[1:]:
        if line.strip() and not line[0].isspace():
            break
        inner.append(line)
    readings = (
        stripped,
        textwrap.indent(stripped, "    "),
        "\n".join([f"    {lines[0].strip()}", *inner[1:]]),
        "\n".join(inner),
    )
    before = _statements(prompt)
    for reading in readings:
        whole = f"{prompt.rstrip()}\n{reading}\n"
        after = _statements(whole)
        if len(after) >= len(before) > 0 and after[len(before) - 1] > before[-1]:
            return whole
    return f"{prompt.rstrip()}\n{textwrap.indent(stripped, '    ')}\n"


def _statements(source: str) -> list[int]:
    """How many statements each one at the top level holds; empty for what does not compile."""
    try:
        compile(source, "<answer>", "exec", dont_inherit=True)
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [len(getattr(node, "body", ())) for node in tree.body]
