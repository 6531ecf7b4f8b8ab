"""Regular expressions: to find the answer in the response, or as the reference itself.

A pattern may backtrack for ever on what a model wrote, so every search runs in a worker that can
be killed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from distill.errors import UsageError
from distill.grade.base import Check, StagedGrader
from distill.grade.exact import normalise
from distill.grade.extract import answer_text, final_answer, was_cut, without_answer
from distill.records import Grade, Problem, Trace

FLAGS = {
    "i": re.IGNORECASE,
    "ignorecase": re.IGNORECASE,
    "m": re.MULTILINE,
    "multiline": re.MULTILINE,
    "s": re.DOTALL,
    "dotall": re.DOTALL,
    "x": re.VERBOSE,
    "verbose": re.VERBOSE,
    "a": re.ASCII,
    "ascii": re.ASCII,
}


class Regex(StagedGrader):
    """Judges by a regular expression (Python's `re`), in one of two ways, or in both.

    With `pattern` the answer is its last match (`which: first` for the first) in the text after
    the thinking: `group` of it, by number or name (by default the first group, or the whole match
    where there is none). It must equal the gold after `exact.normalise`; `case: true` keeps upper
    case apart. With `gold: pattern` the gold is itself a pattern that the answer must match, as a
    whole, or anywhere with `match: search`. Raises UsageError for what does not compile.
    """

    name = "regex"
    version = "1"

    def __init__(
        self,
        pattern: str = "",
        *,
        group: int | str | None = None,
        flags: str | Sequence[str] = (),
        which: Literal["last", "first"] = "last",
        gold: Literal["text", "pattern"] = "text",
        match: Literal["full", "search"] = "full",
        case: bool = False,
    ) -> None:
        _one_of("which", which, ("last", "first"))
        _one_of("gold", gold, ("text", "pattern"))
        _one_of("match", match, ("full", "search"))
        if not pattern and gold == "text":
            raise UsageError(
                "grader 'regex' has no pattern",
                "{regex: {pattern: 'Result: (.+)'}}, or {regex: {gold: pattern}}",
            )
        self.flags = _flags(flags)
        self.pattern = _compiled(pattern, self.flags) if pattern else None
        self.group = self._group(group)
        self.which, self.gold, self.match, self.case = which, gold, match, case

    def _group(self, group: int | str | None) -> int | str:
        if self.pattern is None:
            return 0
        if group is None:
            return 1 if self.pattern.groups else 0
        if group in self.pattern.groupindex or (
            isinstance(group, int) and 0 <= group <= self.pattern.groups
        ):
            return group
        names = ", ".join(self.pattern.groupindex) or "no names"
        raise UsageError(
            f"grader 'regex': no group {group!r} in {self.pattern.pattern!r}",
            f"it has {self.pattern.groups} groups: {names}",
        )

    def quick(self, problem: Problem, trace: Trace) -> Grade | Check:
        if problem.gold is None:
            return self.grade("ungraded", detail="the problem has no reference answer")
        text = answer_text(trace)
        if self.pattern is None:
            answer = final_answer(text, cut=was_cut(trace))
            text = text.strip() if answer is None and not was_cut(trace) else answer or ""
        without = without_answer(trace, self.name, self.version)
        if not text:
            return without
        return Check((problem.gold, text, without.outcome), (problem.gold, text, without.outcome))

    def check(self, *args: Any) -> Grade:
        gold, text, without = args
        answer = self.found(text) if self.pattern else text
        if answer is None:
            pattern = self.pattern.pattern if self.pattern else ""
            detail = f"nothing in the answer matches {pattern!r:.80}"
            return self.grade(without, detail=detail)
        try:
            equal = self.equal(gold, answer)
        except re.error as error:
            detail = f"the reference answer {gold!r:.60} is no regular expression: {error}"
            return self.grade("error", answer, detail=detail)
        return self.grade("correct" if equal else "wrong", answer)

    def found(self, text: str) -> str | None:
        """What the pattern finds in a text, stripped; None where it matches nothing."""
        assert self.pattern is not None
        last = None
        for match in self.pattern.finditer(text):
            value = match.group(self.group)
            if value is not None:
                last = value.strip()
                if self.which == "first":
                    break
        return last

    def equal(self, gold: str, answer: str) -> bool:
        """Whether an answer is, or matches, the gold. Raises re.error for a gold pattern."""
        if self.gold == "text":
            return normalise(gold, case=self.case) == normalise(answer, case=self.case)
        compiled = re.compile(gold, self.flags)
        how = compiled.fullmatch if self.match == "full" else compiled.search
        return how(answer.strip()) is not None


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(
            f"grader 'regex': {name} = {value!r}", f"it is one of {', '.join(allowed)}"
        )


def _flags(names: str | Sequence[str]) -> re.RegexFlag:
    found = re.RegexFlag(0)
    single = isinstance(names, str) and names.lower() not in FLAGS
    for name in list(names) if single else [names] if isinstance(names, str) else names:
        flag = FLAGS.get(str(name).lower().removeprefix("re."))
        if flag is None:
            raise UsageError(f"grader 'regex': no flag {name!r}", f"known: {', '.join(FLAGS)}")
        found |= flag
    return found


def _compiled(pattern: str, flags: re.RegexFlag) -> re.Pattern[str]:
    try:
        return re.compile(pattern, flags)
    except re.error as error:
        where = "" if error.pos is None else f" at character {error.pos}"
        raise UsageError(
            f"grader 'regex': {pattern!r} does not compile: {error.msg}{where}",
            "in YAML write patterns in single quotes, where a backslash is a backslash",
        ) from None
