"""Decontamination: drops traces of problems that overlap with an evaluation problem.

DeepSeek-R1 removed training problems that had a 10-gram in common with an evaluation set
(arXiv 2501.12948v2, D.1). Taken literally that rule misses short questions, which have no
10-gram, and questions in other words, and drops questions that share a stock phrase ("where m
and n are relatively prime positive integers") or the template that a program wrote both from.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from distill.errors import DataError, UsageError
from distill.filter.passages import Hit, Passages
from distill.filter.questions import Parsed, generated_by, parse
from distill.filter.rewordings import Rewordings, numbers
from distill.records import Grade, Problem, Trace, write_jsonl

HELDOUT = "heldout"
FILE = "overlaps.jsonl"
Siblings = Literal["keep", "drop"]


class Overlap:
    """Drops every trace of a training problem that overlaps with an evaluation problem.

    Compared are the statements (without instruction), as words and numbers in lower case; LaTeX's
    layout, operators and the code of diagrams are left out. A run is `n` such words in a row:

    - equal questions overlap, operators included; questions of fewer than `n` words overlap only
      so, or with the same formulas in other words;
    - a run that stands in at most `common` distinct questions, training and evaluation together,
      is distinctive: questions that share one overlap (R1's rule);
    - a commoner run is a stock phrase: questions overlap only if the runs they share cover
      `cover` of the shorter one;
    - a run in more than `common` and more than `template_share` of all questions is a template
      and never counts (for these counts, runs that differ in numbers are one run);
    - questions with the same numbers that are at least `alike` overlap: the same problem in other
      words (`rewordings.Rewordings`; null turns it off);
    - generated problems (reasoning-gym) are compared by task and question as a whole.

    Siblings share a passage, but each has a number that the other has not: the same problem with
    other numbers. R1's rule drops them; `siblings: keep` keeps them.

    `max_share` guards against misuse: if more of a source's problems (and more than two) overlap
    with benchmarks, DataError is raised with examples, because the source is the test set or the
    rule misreads a template. Held-out problems come from the same source, where relatives are
    to be expected: `max_heldout_share` is the limit for them. Null allows any share.
    """

    version = "2"

    def __init__(
        self,
        n: int = 10,
        max_share: float | None = 0.05,
        max_heldout_share: float | None = 0.3,
        common: int = 10,
        cover: float = 0.5,
        template_share: float = 0.005,
        alike: float | None = 0.6,
        siblings: Siblings = "drop",
    ) -> None:
        if n < 2 or common < 1 or not 0 < cover <= 1 or not 0 < template_share <= 1:
            raise UsageError(
                f"filter 'overlap': n = {n}, common = {common}, cover = {cover}, "
                f"template_share = {template_share}",
                "needs n >= 2, common >= 1, 0 < cover <= 1, 0 < template_share <= 1",
            )
        if (alike is not None and not 0.3 <= alike <= 1) or siblings not in get_args(Siblings):
            raise UsageError(
                f"filter 'overlap': alike = {alike}, siblings = {siblings!r}",
                "needs 0.3 <= alike <= 1 (or null), siblings 'keep' or 'drop'",
            )
        self.n, self.common, self.cover, self.template_share = n, common, cover, template_share
        self.alike, self.siblings = alike, siblings
        self.limits = {False: max_share, True: max_heldout_share}
        self.hits: dict[str, Hit] = {}
        self.texts: dict[str, tuple[str, str]] = {}
        """(source, question) of the problems in `hits`."""
        self.kept_siblings = 0
        self.notes: list[str] = []

    def begin(
        self, problems: Mapping[str, Problem], tasks: Mapping[str, Sequence[Problem]]
    ) -> None:
        """Compare all training problems with all evaluation problems, once.

        Raises DataError where too large a share of a source overlaps.
        """
        self.hits, self.texts, self.notes, self.kept_siblings = {}, {}, [], 0
        if not any(tasks.values()):
            self.notes.append("overlap: no evaluation problems were given, nothing was compared")
            return
        passages = Passages(self.n, self.common, self.cover, self.template_share)
        rewordings = Rewordings(self.alike, self.n) if self.alike is not None else None
        for task, asked in tasks.items():
            for problem in asked:
                entry = passages.add(problem, task)
                if entry and rewordings:
                    rewordings.add(entry)
        total = self._compare(problems, passages, rewordings)
        self.notes += passages.notes()
        if self.kept_siblings:
            self.notes.append(
                f"overlap: {self.kept_siblings} problems share a passage with an evaluation "
                "problem but have other numbers, and were kept (siblings: keep)"
            )
        self._check_shares(total)

    def __call__(self, problem: Problem, trace: Trace, grade: Grade) -> str | None:
        hit = self.hits.get(problem.id)
        return hit.reason if hit else None

    def write(self, out: Path) -> None:
        """Write `overlaps.jsonl`: both texts and what they share, for a person to read.

        Of two such filters in one chain the later one's file stays.
        """
        write_jsonl(out / FILE, self.rows())

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per training problem that overlaps."""
        for key, hit in self.hits.items():
            source, text = self.texts[key]
            yield {
                "problem_id": key,
                "source": source,
                "task": hit.asked.task,
                "eval_problem_id": hit.asked.problem_id,
                "rule": hit.rule,
                "score": round(hit.score, 4),
                "matched": hit.matched,
                "train_text": text,
                "eval_text": hit.asked.text,
            }

    def _compare(
        self, problems: Mapping[str, Problem], passages: Passages, rewordings: Rewordings | None
    ) -> Counter[str]:
        """Find the hits; the number of problems per source is returned."""
        total: Counter[str] = Counter()
        # How rare a passage is depends on all questions; only a few need the second look.
        doubtful: list[tuple[str, str, str]] = []
        for problem in problems.values():
            total[problem.source] += 1
            text = problem.question
            instance = generated_by(problem)
            if instance:
                self._enter(problem.id, problem.source, text, passages.find_instance(instance))
                continue
            question = parse(text)
            shares = passages.count(question)
            if (rewordings is not None and rewordings.count(question)) or shares:
                doubtful.append((problem.id, problem.source, text))
        passages.settle()
        if rewordings is not None:
            rewordings.settle()
        for key, source, text in doubtful:
            question = parse(text)
            hit = passages.find(question)
            if hit and self.siblings == "keep" and _are_siblings(question, hit):
                self.kept_siblings += 1
                hit = None
            if hit is None and rewordings is not None:
                hit = rewordings.find(question)
            self._enter(key, source, text, hit)
        return total

    def _enter(self, key: str, source: str, text: str, hit: Hit | None) -> None:
        if hit is not None:
            self.hits[key], self.texts[key] = hit, (source, text)

    def _check_shares(self, total: Mapping[str, int]) -> None:
        found: dict[tuple[str, bool], list[str]] = defaultdict(list)
        for key, hit in self.hits.items():
            found[self.texts[key][0], hit.asked.task == HELDOUT].append(key)
        for (source, heldout), keys in found.items():
            limit = self.limits[heldout]
            if limit is None or len(keys) <= max(2, limit * total[source]):
                continue
            shown = "\n".join(
                f"    {self.texts[k][1][:90]!r}: {self.hits[k].reason}" for k in keys[:3]
            )
            key = "max_heldout_share" if heldout else "max_share"
            tasks = ", ".join(sorted({self.hits[k].asked.task for k in keys}))
            raise DataError(
                f"overlap would drop {len(keys)} of {total[source]} problems of the source "
                f"'{source}', more than {limit:.0%}, for sharing text with {tasks}:\n{shown}",
                "train on other problems or evaluate on other tasks; if these are no copies but "
                "share a template, lower overlap's template_share; if they are the same problems "
                "with other numbers and may stay, `siblings: keep`; if all is as it should be, "
                f"allow it with `overlap: {{{key}: null}}`",
            )


def _are_siblings(question: Parsed, hit: Hit) -> bool:
    """True if each of the two has a number that the other has not."""
    ours, theirs = numbers(question), numbers(parse(hit.asked.text))
    return hit.rule != "equal" and bool(ours - theirs) and bool(theirs - ours)
