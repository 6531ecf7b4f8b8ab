"""Decontamination: drops traces of problems that share a passage with an evaluation problem.

DeepSeek-R1 removed training problems that had a 10-gram in common with an evaluation set
(arXiv 2501.12948v2, D.1). Taken literally that rule misses short questions, which have no
10-gram, and drops questions that share a stock phrase ("where m and n are relatively prime
positive integers") or the template that a program wrote both from.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from distill.errors import DataError, UsageError
from distill.filter.questions import fingerprint, generated_by
from distill.records import Grade, Problem, Trace

Run = tuple[str, ...]
HELDOUT = "heldout"


class Overlap:
    """Drops every trace of a training problem that overlaps with an evaluation problem.

    Compared are the statements (without instruction), as words and numbers in lower case; LaTeX's
    layout, operators and the code of diagrams are left out. A run is `n` such words in a row:

    - equal questions overlap, operators included; for questions of fewer than `n` words that is
      the only rule;
    - a run that stands in at most `common` distinct questions, training and evaluation together,
      is distinctive: questions that share one overlap (R1's rule);
    - a commoner run is a stock phrase: questions overlap only if the runs they share cover
      `cover` of the shorter one;
    - a run in more than `common` and more than `template_share` of all questions is a template
      and never counts;
    - generated problems (reasoning-gym) are compared by task and question as a whole.

    `max_share` guards against misuse: if more of a source's problems (and more than two) overlap
    with benchmarks, DataError is raised with examples, because the source is the test set or the
    rule misreads a template. Held-out problems come from the same source, where relatives are
    to be expected: `max_heldout_share` is the limit for them. Null allows any share.
    """

    version = "1"

    def __init__(
        self,
        n: int = 10,
        max_share: float | None = 0.05,
        max_heldout_share: float | None = 0.3,
        common: int = 10,
        cover: float = 0.5,
        template_share: float = 0.005,
    ) -> None:
        if n < 2 or common < 1 or not 0 < cover <= 1 or not 0 < template_share <= 1:
            raise UsageError(
                f"filter 'overlap': n = {n}, common = {common}, cover = {cover}, "
                f"template_share = {template_share}",
                "needs n >= 2, common >= 1, 0 < cover <= 1, 0 < template_share <= 1",
            )
        self.n, self.common, self.cover, self.template_share = n, common, cover, template_share
        self.limits = {False: max_share, True: max_heldout_share}
        self.hits: dict[str, Hit] = {}
        self.notes: list[str] = []

    def begin(
        self, problems: Mapping[str, Problem], tasks: Mapping[str, Sequence[Problem]]
    ) -> None:
        """Compare all training problems with all evaluation problems, once."""
        self.hits, self.notes = {}, []
        if not any(tasks.values()):
            self.notes.append("overlap: no evaluation problems were given, nothing was compared")
            return
        index = Index(self.n, self.common, self.cover, self.template_share)
        for task, asked in tasks.items():
            for problem in asked:
                index.add(problem, task)
        index.count(problems.values())
        for problem in problems.values():
            hit = index.find(problem)
            if hit:
                self.hits[problem.id] = hit
        self.notes += index.notes()
        self._check_shares(problems)

    def __call__(self, problem: Problem, trace: Trace, grade: Grade) -> str | None:
        hit = self.hits.get(problem.id)
        return hit.reason if hit else None

    def _check_shares(self, problems: Mapping[str, Problem]) -> None:
        total = Counter(p.source for p in problems.values())
        found: dict[tuple[str, bool], list[str]] = defaultdict(list)
        for key, hit in self.hits.items():
            found[problems[key].source, hit.task == HELDOUT].append(key)
        for (source, heldout), keys in found.items():
            limit = self.limits[heldout]
            if limit is None or len(keys) <= max(2, limit * total[source]):
                continue
            shown = "\n".join(
                f"    {problems[k].question[:90]!r}: {self.hits[k].reason}" for k in keys[:3]
            )
            key = "max_heldout_share" if heldout else "max_share"
            raise DataError(
                f"overlap would drop {len(keys)} of {total[source]} problems of the source "
                f"'{source}', more than {limit:.0%}:\n{shown}",
                "train on other problems or evaluate on other tasks; if these are no copies but "
                "share a template, lower overlap's template_share; if all is as it should be, "
                f"allow it with `overlap: {{{key}: null}}`",
            )


@dataclass(frozen=True, slots=True)
class Hit:
    """The evaluation task that a training problem overlaps with, and what they share."""

    task: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Asked:
    """One evaluation question."""

    task: str
    problem_id: str
    size: int
    """In words."""


@dataclass
class Index:
    """The evaluation questions by their runs, by their whole text and by their instance."""

    n: int
    common: int
    cover: float
    template_share: float
    asked: list[_Asked] = field(default_factory=list)
    runs: dict[Run, list[int]] = field(default_factory=dict)
    """Run -> the questions in `asked` it stands in."""
    counts: Counter[Run] = field(default_factory=Counter)
    whole: dict[bytes, str] = field(default_factory=dict)
    instances: dict[tuple[str, str], str] = field(default_factory=dict)
    templates: int = 0
    _seen: set[bytes] = field(default_factory=set)

    def add(self, problem: Problem, task: str) -> None:
        """Enter an evaluation problem; a question that is there already is not entered twice."""
        instance = generated_by(problem)
        if instance:
            self.instances.setdefault(instance, task)
            return
        key, found = fingerprint(problem.question)
        if key in self._seen:
            return
        self._seen.add(key)
        self.whole[key] = task
        for run in set(self._runs(found)):
            self.runs.setdefault(run, []).append(len(self.asked))
            self.counts[run] += 1
        self.asked.append(_Asked(task, problem.id, len(found)))

    def count(self, problems: Iterable[Problem]) -> None:
        """Count in how many distinct training questions each run stands; forget the templates."""
        for problem in problems:
            if generated_by(problem):
                continue
            key, found = fingerprint(problem.question)
            if key not in self._seen:
                self._seen.add(key)
                runs = set(self._runs(found))
                self.counts.update(run for run in runs if run in self.runs)
        limit = max(self.common, self.template_share * len(self._seen))
        templates = [run for run, count in self.counts.items() if count > limit]
        self.templates = len(templates)
        for run in templates:
            del self.runs[run]

    def find(self, problem: Problem) -> Hit | None:
        """What a training problem overlaps with, or None."""
        instance = generated_by(problem)
        if instance:
            task = self.instances.get(instance)
            if task is None:
                return None
            return Hit(task, f"the same question is in '{task}': '{_cut(instance[1])}'")
        key, found = fingerprint(problem.question)
        task = self.whole.get(key)
        if task is not None:
            text = _cut(" ".join(problem.question.split()))
            return Hit(task, f"the same question is in '{task}': '{text}'")
        shared: dict[int, set[int]] = defaultdict(set)
        for at, run in enumerate(self._runs(found)):
            for number in self.runs.get(run, ()):
                if self.counts[run] <= self.common:
                    other = self.asked[number]
                    return Hit(
                        other.task,
                        f"shares '{' '.join(run)}' with problem {other.problem_id} "
                        f"of '{other.task}'",
                    )
                shared[number].update(range(at, at + self.n))
        return self._covered(found, shared)

    def _covered(self, found: list[str], shared: Mapping[int, set[int]]) -> Hit | None:
        """The overlap by stock phrases that make up most of a question."""
        for number, places in shared.items():
            other = self.asked[number]
            share = len(places) / min(len(found), other.size)
            if share >= self.cover:
                text = _cut(" ".join(found[at] for at in sorted(places)))
                return Hit(
                    other.task,
                    f"shares {share:.0%} of its words, '{text}', with problem "
                    f"{other.problem_id} of '{other.task}'",
                )
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
            "are found only if they are equal"
        ]

    def _runs(self, found: list[str]) -> Iterator[Run]:
        return (tuple(found[at : at + self.n]) for at in range(len(found) - self.n + 1))


def _cut(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
