"""Evaluation questions by the passages they hold: who repeats one shares its words with it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from distill.filter.questions import Parsed, generated_by, parse
from distill.records import Problem

Run = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """One evaluation question."""

    task: str
    problem_id: str
    text: str
    size: int = 0
    """In words."""


@dataclass(frozen=True, slots=True)
class Hit:
    """What a training problem has in common with an evaluation problem.

    `rule` is what found it ("instance", "equal", "passage", "stock phrases", "rewording" or
    "formulas"), `score` the share of the shorter question's words that both have (for the last
    two: how alike they are), `matched` those words as the training problem has them.
    """

    asked: Asked
    rule: str
    score: float
    matched: str
    reason: str


@dataclass
class Passages:
    """The evaluation questions by their runs, by their whole text and by their instance.

    `add` all of them, `count` every training problem, `settle`; then `find`. A run is `n` words
    in a row; `common`, `cover` and `template_share` are explained at `overlap.Overlap`.
    """

    n: int
    common: int
    cover: float
    template_share: float
    asked: list[Asked] = field(default_factory=list)
    runs: dict[Run, list[int]] = field(default_factory=dict)
    """Run -> the questions in `asked` it stands in."""
    counts: Counter[Run] = field(default_factory=Counter)
    """Run with its numbers masked -> distinct questions it stands in."""
    whole: dict[bytes, Asked] = field(default_factory=dict)
    instances: dict[tuple[str, str], Asked] = field(default_factory=dict)
    templates: int = 0
    _seen: set[bytes] = field(default_factory=set)

    def add(self, problem: Problem, task: str) -> Asked | None:
        """Enter an evaluation problem; None for one that is generated or there already."""
        instance = generated_by(problem)
        if instance:
            self.instances.setdefault(instance, Asked(task, problem.id, problem.question))
            return None
        question = parse(problem.question)
        if question.key in self._seen:
            return None
        self._seen.add(question.key)
        entry = Asked(task, problem.id, problem.question, len(question.words))
        self.whole[question.key] = entry
        for run in set(self._runs(question.words)):
            self.runs.setdefault(run, []).append(len(self.asked))
        self.counts.update(set(self._runs(_masked(question.words))))
        self.asked.append(entry)
        return entry

    def count(self, question: Parsed) -> bool:
        """Count the runs of a distinct training question; whether `find` can find anything."""
        shared = {run for run in self._runs(_masked(question.words)) if run in self.counts}
        if question.key not in self._seen:
            self._seen.add(question.key)
            self.counts.update(shared)
        if question.key in self.whole:
            return True
        return bool(shared) and any(run in self.runs for run in self._runs(question.words))

    def settle(self) -> None:
        """Forget the runs that stand in too many of all questions to mean anything."""
        limit = max(self.common, self.template_share * len(self._seen))
        templates = [run for run in self.runs if self.counts[_masked(run)] > limit]
        self.templates = len(templates)
        for run in templates:
            del self.runs[run]

    def find_instance(self, instance: tuple[str, str]) -> Hit | None:
        """The generated evaluation problem that is the same one, or None."""
        asked = self.instances.get(instance)
        return _equal(asked, "instance", instance[1]) if asked else None

    def find(self, question: Parsed) -> Hit | None:
        """What a training question overlaps with, or None."""
        asked = self.whole.get(question.key)
        if asked is not None:
            return _equal(asked, "equal", " ".join(question.text.split()))
        shared: dict[int, set[int]] = defaultdict(set)
        for at, run in enumerate(self._runs(question.words)):
            for number in self.runs.get(run, ()):
                if self.counts[_masked(run)] <= self.common:
                    return self._passage(question.words, self.asked[number])
                shared[number].update(range(at, at + self.n))
        return self._covered(question.words, shared)

    def _passage(self, found: list[str], asked: Asked) -> Hit:
        """The longest passage both have, which is at least `n` words long."""
        theirs = parse(asked.text).words
        block = SequenceMatcher(None, found, theirs, autojunk=False).find_longest_match()
        text = " ".join(found[block.a : block.a + block.size])
        return Hit(
            asked,
            "passage",
            block.size / min(len(found), asked.size),
            text,
            f"shares '{cut(text)}' ({block.size} words) with problem {asked.problem_id} "
            f"of '{asked.task}'",
        )

    def _covered(self, found: list[str], shared: Mapping[int, set[int]]) -> Hit | None:
        """The overlap by stock phrases that make up most of a question."""
        for number, places in shared.items():
            asked = self.asked[number]
            share = len(places) / min(len(found), asked.size)
            if share >= self.cover:
                text = " ".join(found[at] for at in sorted(places))
                reason = (
                    f"shares {share:.0%} of its words, '{cut(text)}', with problem "
                    f"{asked.problem_id} of '{asked.task}'"
                )
                return Hit(asked, "stock phrases", share, text, reason)
        return None

    def notes(self) -> list[str]:
        """What the template rule did, for the report."""
        if not self.templates:
            return []
        left = Counter(number for numbers in self.runs.values() for number in numbers)
        bare = sum(a.size >= self.n and not left[i] for i, a in enumerate(self.asked))
        return [
            f"overlap: {self.templates} runs of {self.n} words stand in so many questions that "
            f"they count as templates; {bare} evaluation questions consist of nothing else and "
            "are found only if they are equal or reworded"
        ]

    def _runs(self, found: Sequence[str]) -> Iterator[Run]:
        return (tuple(found[at : at + self.n]) for at in range(len(found) - self.n + 1))


def _masked(words: Sequence[str]) -> Run:
    """A template filled with other numbers is the same template."""
    return tuple("#" if word[0].isdigit() else word for word in words)


def _equal(asked: Asked, rule: str, text: str) -> Hit:
    reason = f"the same question is problem {asked.problem_id} of '{asked.task}': '{cut(text)}'"
    return Hit(asked, rule, 1.0, text, reason)


def cut(text: str, limit: int = 60) -> str:
    """The text, or its beginning with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
