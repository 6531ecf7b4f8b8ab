"""The filter for chains that mix languages.

DeepSeek-R1 dropped chains with mixed languages (arXiv 2501.12948v1, 2.3.3) and rewarded language
consistency: words in the target language over all words of the chain (2.3.2). Here the target is
the language of the problem. Scripts decide first, at the speed of a regular expression; a
detector is asked only where Latin letters leave a doubt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from distill.errors import MissingExtra, UsageError
from distill.filter import latin, scripts
from distill.filter.scripts import NAMES, SCRIPTS, language_code, prose
from distill.filter.target import Target, target_of
from distill.records import Grade, Problem, Trace


class Language:
    """Drops traces of which less than `min_consistency` of the words are in the problem's language.

    The problem's language is `metadata["language"]` (a code or an English name), or is told from
    its question. Words in the languages of `allow` count as consistent too. Code, LaTeX, addresses,
    single letters, short quotations in brackets or quotation marks and what the question itself
    says are in no language. `detector`: `auto` uses py3langid where it is installed, `off` never
    does, `required` refuses to start without it.
    """

    version = f"1+{latin.PACKAGE}-{latin.installed()}"

    def __init__(
        self,
        min_consistency: float = 0.99,
        allow: Sequence[str] = (),
        detector: Literal["auto", "off", "required"] = "auto",
    ) -> None:
        if not 0 <= min_consistency <= 1:
            raise UsageError(
                f"filter 'language': min_consistency = {min_consistency}", "it lies in [0, 1]"
            )
        if isinstance(allow, str) or not all(isinstance(name, str) for name in allow):
            raise UsageError(
                f"filter 'language': allow = {allow!r}",
                "it is a list of codes or names, as in [en, French]; YAML reads a bare no as false",
            )
        if detector is False:  # how YAML reads `off`
            detector = "off"
        if detector not in ("auto", "off", "required"):
            raise UsageError(
                f"filter 'language': detector = {detector!r}", "it is auto, off or required"
            )
        installed = latin.installed() is not None
        if detector == "required" and not installed:
            raise MissingExtra(
                latin.PACKAGE, "language", "filter 'language' with detector: required"
            )
        self.min_consistency = min_consistency
        self.allow = frozenset(language_code(name) for name in allow)
        self.detects = installed and detector != "off"
        self.notes: list[str] = []
        if not self.detects:
            why = (
                "the detector is off" if detector == "off" else f"{latin.PACKAGE} is not installed"
            )
            self.notes.append(
                f"language: {why}, so languages in Latin letters (an English problem thought about "
                "in French) were not told apart"
                + ("" if installed else ": pip install 'distill[language]'")
            )

    def measure(self, problem: Problem, trace: Trace) -> dict[str, float]:
        """R1's number: the share of words in the problem's language; 1 for a trace of no words."""
        return {"consistency": self._mix(problem, trace).consistency}

    def __call__(self, problem: Problem, trace: Trace, grade: Grade) -> str | None:
        mix = self._mix(problem, trace)
        if mix.consistency >= self.min_consistency:
            return None
        return (
            f"{_percent(1 - mix.consistency)} of {mix.words} words are not {mix.expected}: "
            f"{mix.foreign} '{_short(mix.quote)}'"
        )

    def _mix(self, problem: Problem, trace: Trace) -> Mix:
        named = problem.metadata.get("language")
        user = next((m["content"] for m in reversed(problem.messages) if m["role"] == "user"), "")
        target = target_of(problem.question, user, str(named or ""), self.allow, self.detects)
        return _measured(target, trace.text, problem.question, self.detects)


@dataclass(frozen=True, slots=True)
class Mix:
    """The share of `words` that are in the language `expected`; the longest foreign stretch."""

    consistency: float
    words: int = 0
    expected: str = ""
    foreign: str = ""
    quote: str = ""


@lru_cache(maxsize=4)
def _measured(target: Target, text: str, question: str, detects: bool) -> Mix:
    """Cached so that a trace that is measured and judged is read once."""
    if not target.scripts:
        return Mix(1.0)
    found = list(_foreign_script(target, text, question))
    codes = {code for code in target.codes if "Latin" in scripts.scripts_of(code)}
    foreign = sum(n for n, _, _ in found)
    if detects and codes:
        more, stretches = latin.foreign(codes, text, question)
        foreign += more
        found += stretches
    if not foreign:
        return Mix(1.0, expected=target.name)
    words = max(scripts.count_words(prose(text)), foreign)
    _, name, quote = max(found, key=lambda stretch: stretch[0])
    return Mix(1 - foreign / words, words, target.name, name, quote)


@lru_cache(maxsize=64)
def _foreign_letters(own: frozenset[str]) -> tuple[re.Pattern[str], ...]:
    """A letter that is foreign to these scripts, and three Greek ones in a row.

    Two patterns, because one with an alternative takes ten times as long.
    """
    others = scripts.characters(SCRIPTS.keys() - own - {"Latin", "Greek"})
    greek = SCRIPTS["Greek"]
    found = [f"[{others}]"] + ([] if "Greek" in own else [f"[{greek}][{greek}][{greek}]"])
    return tuple(re.compile(pattern) for pattern in found)


@lru_cache(maxsize=64)
def _stretches(own: frozenset[str]) -> tuple[re.Pattern[str], ...]:
    """Stretches in scripts that are foreign to these, over spaces and punctuation.

    Each begins with a plain character class, which is what makes a search fast, and no part can be
    read in two ways, which keeps it linear.
    """
    others = SCRIPTS.keys() - own - {"Latin", "Greek"}
    dense = scripts.characters(others & scripts.UNSPACED.keys())
    spaced = scripts.characters(others - scripts.UNSPACED.keys())
    mark = "\\s，。、；：！？,.;:·-"
    parts = [f"[{spaced}][{spaced}]++(?:[{mark}]{{1,3}}+[{spaced}]++)*+"]
    if dense:
        parts.append(f"[{dense}](?:[{dense}{spaced}]|[{mark}]{{1,3}}+(?=[{dense}{spaced}]))*+")
    return tuple(re.compile(part) for part in parts)


@lru_cache(maxsize=64)
def _phrases(own: frozenset[str]) -> tuple[re.Pattern[str], ...]:
    """Phrases of five Latin words or three Greek ones, where these are foreign.

    Their letters are everywhere in mathematics, and names stay as they are written, so that single
    words say nothing.
    """
    gap, found = "[ ,;:'’]{1,2}+", []
    if "Latin" not in own:
        c = scripts.LATIN
        found.append(f"[{c}][{c}]{{1,30}}+{gap}(?:[{c}]{{2,30}}+{gap}){{3}}[{c}][{c}]")
    if "Greek" not in own:
        c = SCRIPTS["Greek"]
        found.append(f"[{c}][{c}]{{2,30}}+{gap}[{c}]{{3,30}}+{gap}[{c}][{c}][{c}]")
    return tuple(re.compile(part) for part in found)


def _foreign_script(target: Target, text: str, question: str) -> Iterator[tuple[int, str, str]]:
    """(words, name of the language or script, stretch) of what is not in the target's scripts."""
    own = target.scripts
    if "Latin" in own and (
        text.isascii() or not any(pattern.search(text) for pattern in _foreign_letters(own))
    ):
        return
    text = prose(text)
    if "ja" in target.codes and "zh" not in target.codes:
        yield from _chinese_lines(text)
    for pattern in _stretches(own):
        said = sorted({m.group() for m in pattern.finditer(question)}, key=len, reverse=True)
        for match in pattern.finditer(text):
            stretch = match.group()
            if _quoted(text, match.start(), match.end()) or stretch in question:
                continue
            rest = stretch
            for phrase in said[:100]:
                rest = rest.replace(phrase, " ")
            count = scripts.count_words(rest)
            if count:
                yield count, _named(stretch), stretch
    for pattern in _phrases(own):
        yield from _foreign_lines(pattern, text, question)


def _foreign_lines(
    pattern: re.Pattern[str], text: str, question: str
) -> Iterator[tuple[int, str, str]]:
    """Lines with a phrase: all words of its script in them are foreign."""
    end = -1
    for match in pattern.finditer(text):
        if match.start() < end or match.group() in question:
            continue
        start = text.rfind("\n", 0, match.start()) + 1
        end = text.find("\n", match.end())
        end = len(text) if end < 0 else end
        script = frozenset([scripts.script_of(match.group())])
        count = len(scripts.word_pattern(script).findall(text, start, end))
        yield count, _named(match.group()), text[match.start() : end]


def _chinese_lines(text: str, least: int = 10) -> Iterator[tuple[int, str, str]]:
    """Lines of at least so many Han characters and no kana: Japanese writes no such sentence."""
    han, kana = (re.compile(f"[{SCRIPTS[name]}]") for name in ("Han", "Kana"))
    for line in text.split("\n"):
        count = len(han.findall(line))
        if count >= least and not kana.search(line):
            yield count, NAMES["zh"], line.strip()


_OPENING, _CLOSING = "(（[\"'“‘«「『《", ")）]\"'”’»」』》"


def _quoted(text: str, start: int, end: int, most: int = 12) -> bool:
    """True for a short stretch in brackets or quotation marks: a name, or a word spoken of."""
    return (
        end - start <= most
        and start > 0
        and end < len(text)
        and text[start - 1] in _OPENING
        and text[end] in _CLOSING
    )


def _named(stretch: str) -> str:
    script = scripts.script_of(stretch)
    code = scripts.SPOKEN.get(script, "")
    if script == "Han" and re.search(f"[{SCRIPTS['Kana']}]", stretch):
        code = "ja"
    return NAMES.get(code) or f"{script} letters"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def _short(text: str, limit: int = 60) -> str:
    folded = " ".join(text.split())
    return folded if len(folded) <= limit else folded[: limit - 1] + "…"
