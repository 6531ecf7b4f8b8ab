"""What graders will not be able to judge, found out before anything is sampled.

A grader that lacks a package for these problems is refused. Reference answers that cannot be read
as mathematics are counted and named, because a trace can match them only letter by letter: the
exact reader settles nearly all in microseconds; of those that it leaves open a sample of each
source is read by sympy, in workers with a deadline. Only answers that `math` will judge are read.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.errors import UsageError
from distill.grade.auto import Auto
from distill.grade.base import StagedGrader
from distill.grade.extract import last_boxed
from distill.grade.math import MAX_LENGTH
from distill.grade.parts import (
    OWN,
    GraderSpec,
    build,
    own_specs,
    rules_specs,
    source_specs,
)
from distill.grade.pool import GraderPool
from distill.records import Grade, Problem, read_records
from distill.schema import Grading, PartSpec

log = logging.getLogger(__name__)

SAMPLE = 200
"""Answers of one source, left open by the exact reader, that are read by sympy."""

TIMEOUT_S = 5.0


class Reader(StagedGrader):
    """`correct` if math-verify can read the answer as more than a text."""

    name, version = "gold reader", "1"

    def warm(self, part: str) -> None:
        from distill.grade.math import Math

        Math().warm("")

    def check(self, *args: Any) -> Grade:
        from math_verify import parse

        (gold,) = args
        for text in (f"${gold}$", gold):
            if parse(text, fallback_mode="no_fallback", parsing_timeout=None):
                return self.grade("correct", gold)
        return self.grade("unparsed", gold)


@dataclass
class _Source:
    """What is known of one source's answers."""

    judged: int = 0
    """Problems whose answer `math` will judge."""
    words: Counter[str] = field(default_factory=Counter)
    """Answers that are words, and of how many problems."""
    hard: Counter[str] = field(default_factory=Counter)
    """Answers that the exact reader leaves open."""
    misnamed: int = 0
    """Problems that name a grader which cannot be had."""
    example: str = ""

    def add(self, gold: str) -> None:
        self.judged += 1
        if len(gold) > MAX_LENGTH:  # `math` compares it as text whatever it says
            self.words[gold[:100]] += 1
            return
        kind = kind_of(gold)
        if kind != "mathematics":
            (self.words if kind == "words" else self.hard)[gold] += 1


def noted(work: Callable[..., object], grading: Grading, folder: Path) -> Callable[[Path], None]:
    """A step's work, `work(out=...)`, that writes problems; then a look at what will judge them.

    `folder` is where the paths of a user's graders start.
    """

    def both(out: Path) -> None:
        work(out=out)
        problems = list(read_records(Problem, out / "problems.jsonl"))
        check_ready(problems, grading, folder)
        path = out / "summary.json"
        summary = json.loads(path.read_text(encoding="utf-8"))
        notes = check_golds(problems, grading)
        for note in notes:
            log.warning(note)
        summary["notes"] = [*summary.get("notes", []), *notes]
        if own := own_graders(problems):
            summary["own_graders"] = own
        text = json.dumps(summary, ensure_ascii=False, indent=1)
        path.write_text(text + "\n", encoding="utf-8")

    return both


def own_graders(problems: Iterable[Problem]) -> dict[str, dict[str, Any]]:
    """The graders that problems name for themselves, each with the parameters that it has first."""
    found: dict[str, dict[str, Any]] = {}
    for problem in problems:
        if problem.metadata.get(OWN):
            with contextlib.suppress(UsageError):  # counted by `check_golds`
                for spec in own_specs(problem) or ():
                    found.setdefault(spec.name, spec.params)
    return found


def own_versions(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a grade depends on besides the recipe: the versions of the problems' own graders.

    `summary` is that of the step which wrote the problems.
    """
    versions = {}
    for name, params in sorted(summary.get("own_graders", {}).items()):
        with contextlib.suppress(UsageError):  # it will be an error of each of its traces
            versions[name] = build(GraderSpec(name, params, "")).version
    return {"own": versions} if versions else {}


def check_ready(problems: Sequence[Problem], grading: Grading, folder: Path) -> None:
    """Raise UsageError where a grader lacks what the problems that it will judge need.

    Asks the `ready(problems)` of graders that have one.
    """
    lists: list[tuple[str | None, list[GraderSpec]]] = [(None, rules_specs(grading, folder))]
    for source, specs in [*lists, *source_specs(grading, folder).items()]:
        for spec in specs:
            ready = getattr(build(spec), "ready", None)
            if ready is not None:
                ready([p for p in problems if _graded_as(p, grading) == source])


def _graded_as(problem: Problem, grading: Grading) -> str | None:
    """The source whose graders judge a problem; None: those of all, "": its own."""
    if problem.metadata.get(OWN):
        return ""
    return problem.source if problem.source in grading.by_source else None


def check_golds(problems: Iterable[Problem], grading: Grading) -> list[str]:
    """One note for each source with reference answers that cannot be read, with their number.

    Holds the different answers that are words or left open by the exact reader; numbers and
    formulas leave nothing behind.
    """
    sources: dict[str, _Source] = {}
    named: dict[str, list[str] | UsageError] = {}
    for problem in problems:
        source = sources.setdefault(problem.source, _Source())
        names = _names(problem, grading, named)
        if isinstance(names, UsageError):
            source.misnamed += 1
            source.example = source.example or names.message
        elif problem.gold is not None and (
            "math" in names or ("auto" in names and Auto.part_for(problem) == "math")
        ):
            source.add(last_boxed(problem.gold) or problem.gold)
    chosen = {name: _chosen(source.hard) for name, source in sources.items()}
    readable = _read([gold for golds in chosen.values() for gold in golds])
    notes = []
    for name, source in sorted(sources.items()):
        notes += _misnamed(name, source)
        notes += _unreadable(name, source, chosen[name], readable)
    return notes


def reads(grading: Grading) -> dict[str, Any]:
    """What `check_golds` depends on, for a step's identity; nothing for the default graders."""
    found = {"": _kinds(grading.graders)}
    found |= {source: _kinds(parts) for source, parts in grading.by_source.items()}
    return {} if found == {"": ["auto"]} else {"golds": found}


@functools.lru_cache(maxsize=1 << 16)
def kind_of(gold: str) -> str:
    """`mathematics` or `words` as the exact reader says, `open` where it does not say."""
    from distill.grade.forms_exact import TooHard
    from distill.grade.forms_read import Words, readings

    try:
        forms = readings(gold)
    except TooHard:
        return "open"
    except Exception as error:
        log.debug("the exact reader fails on %r: %s", gold[:80], error)
        return "open"
    words = [form.text for form in forms if isinstance(form, Words)]
    # A letter alone is a choice, which `math` knows.
    return (
        "words" if any(len(word) > 1 for text in words for word in text.split()) else "mathematics"
    )


def _kinds(parts: Sequence[PartSpec]) -> list[str]:
    return sorted({part.name for part in parts} & {"auto", "math"})


def _names(
    problem: Problem, grading: Grading, named: dict[str, list[str] | UsageError]
) -> list[str] | UsageError:
    """The graders of a problem; `named` remembers what problems named for themselves."""
    if not problem.metadata.get(OWN):
        parts = grading.by_source.get(problem.source, grading.graders)
        return [part.name for part in parts]
    written = repr(problem.metadata[OWN])
    if written not in named:
        try:
            named[written] = [build(spec).name for spec in own_specs(problem) or ()]
        except UsageError as error:
            named[written] = error
    return named[written]


def _chosen(hard: Counter[str]) -> list[str]:
    """A sample that depends on the answers alone."""
    if len(hard) <= SAMPLE:
        return list(hard)
    return sorted(hard, key=lambda gold: hashlib.sha256(gold.encode(errors="replace")).digest())[
        :SAMPLE
    ]


def _read(golds: Sequence[str]) -> dict[str, bool]:
    """Whether sympy can read each; a check that is killed counts as no."""
    if not golds:
        return {}
    spec = GraderSpec(f"{__name__}:Reader", {}, "")
    with GraderPool(timeout_s=TIMEOUT_S) as pool:
        tickets = {pool.submit(spec, "", (gold,)): gold for gold in dict.fromkeys(golds)}
        readable: dict[str, bool] = {}
        while pool.open:
            readable |= {tickets[ticket]: grade.correct for ticket, grade in pool.collect()}
    return readable


def _unreadable(
    name: str, source: _Source, chosen: Sequence[str], readable: dict[str, bool]
) -> list[str]:
    bad = [gold for gold in chosen if not readable[gold]]
    count = sum(source.words.values()) + sum(source.hard[gold] for gold in bad)
    if not count:
        return []
    about = ""
    if len(chosen) < len(source.hard):
        looked, of = sum(source.hard[gold] for gold in chosen), sum(source.hard.values())
        about = f" or more ({of - looked:,} unusual ones were not tried)"
    example = next(iter([*source.words, *bad]))
    return [
        f"source '{name}': {count:,}{about} of {source.judged:,} reference answers cannot be read "
        f"as mathematics, e.g. {example[:60]!r}: traces can match them only as text"
    ]


def _misnamed(name: str, source: _Source) -> list[str]:
    if not source.misnamed:
        return []
    return [
        f"source '{name}': the graders that {source.misnamed:,} problems name for themselves "
        f"cannot be had, and their traces will be errors; first: {source.example}"
    ]
