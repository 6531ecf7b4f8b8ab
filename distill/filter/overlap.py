"""Decontamination: drops traces of problems that share a passage with an evaluation problem.

DeepSeek-R1 removed training problems that had a 10-gram in common with an evaluation set
(arXiv 2501.12948v2, D.1). Taken literally that has two holes, which this module fills: a
question of fewer than ten words has no 10-gram, and questions written from a template share
their 10-grams without being the same question.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from distill.errors import DataError, UsageError
from distill.records import Grade, Problem, Trace

Run = tuple[str, ...]


class Overlap:
    """Drops every trace of a training problem that overlaps with an evaluation problem.

    Compared are the statements (without instruction and template), as words and numbers in
    lower case, LaTeX layout commands and punctuation left out:

    - two questions overlap if they are equal, or share a run of `n` words that is no template
      (operators and the code of diagrams are not part of runs);
    - a run is a *template* if it stands in more than `template_share` of all distinct
      questions (training and evaluation together) and in at least `template_min` of them;
    - so questions of fewer than `n` words overlap only if they are equal, operators included;
    - generated problems (reasoning-gym) are compared by task and whole question only.

    If more than `max_share` of a source's problems overlap, and more than two, DataError is
    raised with examples: either the source is the test set, or the rule misreads a template.
    `max_share: null` allows any share. `template_share: 1` switches the template rule off.
    """

    version = "1"

    def __init__(
        self,
        n: int = 10,
        max_share: float | None = 0.05,
        template_share: float = 0.005,
        template_min: int = 10,
    ) -> None:
        if n < 2 or template_min < 2 or not 0 < template_share <= 1:
            raise UsageError(
                f"filter 'overlap': n = {n}, template_min = {template_min}, "
                f"template_share = {template_share}",
                "needs n >= 2, template_min >= 2, 0 < template_share <= 1",
            )
        self.n, self.max_share = n, max_share
        self.template_share, self.template_min = template_share, template_min
        self.reasons: dict[str, str] = {}
        self.notes: list[str] = []

    def begin(
        self, problems: Mapping[str, Problem], tasks: Mapping[str, Sequence[Problem]]
    ) -> None:
        """Compare all training problems with all evaluation problems, once."""
        self.reasons, self.notes = {}, []
        if not any(tasks.values()):
            self.notes.append("overlap: no evaluation problems were given, nothing was compared")
            return
        index = _Index(self.n)
        for task, asked in tasks.items():
            for problem in asked:
                index.add(problem, task)
        index.forget_templates(problems.values(), self.template_share, self.template_min)
        for problem in problems.values():
            reason = index.find(problem)
            if reason:
                self.reasons[problem.id] = reason
        self.notes += index.notes()
        self._check_shares(problems)

    def __call__(self, problem: Problem, trace: Trace, grade: Grade) -> str | None:
        return self.reasons.get(problem.id)

    def _check_shares(self, problems: Mapping[str, Problem]) -> None:
        if self.max_share is None:
            return
        total = Counter(p.source for p in problems.values())
        hits: dict[str, list[str]] = defaultdict(list)
        for key in self.reasons:
            hits[problems[key].source].append(key)
        for source, keys in hits.items():
            if len(keys) > max(2, self.max_share * total[source]):
                shown = "\n".join(
                    f"    {problems[k].question[:90]!r}: {self.reasons[k]}" for k in keys[:3]
                )
                raise DataError(
                    f"overlap would drop {len(keys)} of {total[source]} problems of the source "
                    f"'{source}', more than {self.max_share:.0%}:\n{shown}",
                    "train on other problems or evaluate on other tasks; if this is meant, set "
                    "`overlap: {max_share: null}`, if these are templates, a lower template_share",
                )


@dataclass
class _Index:
    """Where each run of `n` words, and each whole question, stands among the evaluations."""

    n: int
    runs: dict[Run, tuple[str, str]] = field(default_factory=dict)
    whole: dict[Run, tuple[str, str]] = field(default_factory=dict)
    instances: dict[tuple[str, str], str] = field(default_factory=dict)
    counts: Counter[Run] = field(default_factory=Counter)
    seen: set[Run] = field(default_factory=set)
    templates: set[Run] = field(default_factory=set)
    questions: list[str] = field(default_factory=list)

    def add(self, problem: Problem, task: str) -> None:
        place = (task, problem.id)
        instance = generated_by(problem)
        if instance:
            self.instances.setdefault(instance, task)
            return
        everything = tuple(tokens(problem.question))
        if everything in self.seen:
            return
        self.whole[everything] = place
        self.seen.add(everything)
        self.questions.append(problem.question)
        for run in set(self._runs(problem.question)):
            self.runs.setdefault(run, place)
            self.counts[run] += 1

    def forget_templates(self, problems: Iterable[Problem], share: float, least: int) -> None:
        """Count every evaluation run in the distinct training questions; drop the common ones."""
        for problem in problems:
            if generated_by(problem):
                continue
            everything = tuple(tokens(problem.question))
            if everything in self.seen:
                continue
            self.seen.add(everything)
            self.counts.update(run for run in set(self._runs(problem.question)) if run in self.runs)
        limit = max(least - 1, share * len(self.seen))
        self.templates = {run for run, count in self.counts.items() if count > limit}
        for run in self.templates:
            del self.runs[run]

    def notes(self) -> list[str]:
        """What the template rule did, for the report."""
        if not self.templates:
            return []
        mostly = sum(2 * lost > total for total, lost in self._losses())
        return [
            f"overlap: {len(self.templates)} runs of {self.n} words were taken as templates, such "
            f"as '{' '.join(min(self.templates))}'; {mostly} evaluation questions consist mostly "
            "of them and are compared by the rest"
        ]

    def _losses(self) -> Iterator[tuple[int, int]]:
        for question in self.questions:
            runs = set(self._runs(question))
            yield len(runs), len(runs & self.templates)

    def find(self, problem: Problem) -> str | None:
        """Why this training problem overlaps, or None."""
        instance = generated_by(problem)
        if instance:
            task = self.instances.get(instance)
            return f"the same question is in '{task}': '{_cut(instance[1])}'" if task else None
        everything = tuple(tokens(problem.question))
        hit = self.whole.get(everything)
        if hit and everything:
            return f"the same question is in '{hit[0]}': '{_cut(' '.join(everything))}'"
        for run in self._runs(problem.question):
            if run in self.runs:
                task, other = self.runs[run]
                return f"shares '{' '.join(run)}' with problem {other} of '{task}'"
        return None

    def _runs(self, question: str) -> Iterator[Run]:
        found = words(question)
        return (tuple(found[at : at + self.n]) for at in range(len(found) - self.n + 1))


def generated_by(problem: Problem) -> tuple[str, str] | None:
    """(task, its own question) of a problem that reasoning-gym generated, None for any other.

    Only white space is folded: in a generated question a bracket may be what makes it another.
    """
    made = problem.metadata.get("reasoning_gym")
    if not isinstance(made, Mapping):
        return None
    entry = made.get("entry")
    question = entry.get("question") if isinstance(entry, Mapping) else None
    return str(made.get("task", "")), " ".join(str(question or problem.question).split())


# Commands that only change how mathematics looks, so that \dfrac{1}{2} is \frac12 is \frac{1}{2}.
_LAYOUT = re.compile(
    r"\\(?:left|right|[bB]ig+[lr]?|displaystyle|textstyle|limits|nolimits|quad|qquad|text|mbox|"
    r"mathrm|mathbf|mathit|textbf|textit|mathcal|operatorname|hspace|vspace|noindent|ldots|cdots|"
    r"dots)(?![a-zA-Z])\*?|\\[,;:!\\ ()\[\]]|[$~&]"
)
_SAME = {
    "dfrac": "frac",
    "tfrac": "frac",
    "le": "leq",
    "ge": "geq",
    "ne": "neq",
    "cdot": "*",
    "times": "*",
    "div": "/",
    "lt": "<",
    "gt": ">",
    "geqslant": "geq",
    "leqslant": "leq",
}
_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_TOKEN = re.compile(rf"\d+(?:\.\d+)?|[{_UNSPACED}]|[^\W\d_{_UNSPACED}]+|[-+*/=<>^%!|()\[\]]")
_SHORT_FRACTION = re.compile(r"(\\[dt]?frac)\s*(\d)\s*(\d)")
_DIAGRAM = re.compile(r"\[asy\].*?(?:\[/asy\]|\Z)", re.DOTALL)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))|(?<=\d)\{,\}(?=\d{3}(?!\d))")


def tokens(question: str) -> list[str]:
    """Words, numbers and operators of a question, in lower case, without LaTeX's layout."""
    text = _SHORT_FRACTION.sub(r"\1{\2}{\3}", _THOUSANDS.sub("", question))
    text = _LAYOUT.sub(" ", text)
    text = text.replace("−", "-").replace("–", "-").replace("×", "*").replace("·", "*")
    return [_SAME.get(token, token) for token in _TOKEN.findall(text.casefold())]


def words(question: str) -> list[str]:
    """`tokens` without operators, brackets and the code of diagrams: what runs are made of."""
    text = _DIAGRAM.sub(" ", question)
    return [token for token in tokens(text) if token[0].isalnum()]


def _cut(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
