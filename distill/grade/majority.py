"""Majority vote: how many traces of a problem without a reference agree with each other.

A stage of the grade step after rules and judges, because it has to see all traces of a problem. It
decides nothing: outcomes stay `ungraded`, the share that agrees is the score, and only the filter
`majority` makes use of it. (Self-consistency, arXiv 2203.11171; as labels, arXiv 2504.16084.)
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.grade.base import Check, StagedGrader
from distill.grade.choice import KEY as CHOICES
from distill.grade.choice import Choice, Options, chosen_in
from distill.grade.exact import Words, is_words, normalise
from distill.grade.extract import answer_text, final_answer, was_cut
from distill.grade.gym import gradable
from distill.grade.math import Math
from distill.grade.service import Judge
from distill.grade.tally import Graded
from distill.records import Grade, Problem, Trace
from distill.schema import Grading, PartSpec

NAME = "majority"
MOST = 16
"""Different answers to one problem that are compared with each other by value; further ones, the
rarest, count as they are written."""

BATCH = 2048
"""Traces after which the answers of the whole problems among them are compared."""

LONGEST = 2000
"""Characters of an answer that is compared; a longer one counts as written."""

_WORDS = Words()
_COUNTS = re.compile(r"(?P<kind>a minority: |a tie: |no answer; )?(?P<of>\d+) of (?P<n>\d+) agree ")


class Majority(StagedGrader):
    """Says `ungraded` to every single trace; `Votes` counts. `check: true` also counts where a
    rule can grade, to say how often a majority is right."""

    name = NAME

    def __init__(self, *, check: bool = False) -> None:
        self.check_known = check
        parts = (Words.version, Choice.version, Math().version)
        self.version = "1; words {}; choice {}; math {}".format(*parts)

    def quick(self, problem: Problem, trace: Trace) -> Grade | Check:
        return self.grade("ungraded", detail="its problem's answers are counted together")


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a counted trace's grade says: `agree` of `traces` give the answer named in it.

    `kind` is "majority", "minority", "tie" or "no answer" (then `agree` is the largest group).
    """

    kind: str
    agree: int
    traces: int


def agreement(grade: Grade) -> Agreement | None:
    """The agreement that a grade records; None for one that no vote was counted for."""
    match = _COUNTS.match(grade.detail) if grade.grader == NAME else None
    if match is None:
        return None
    kind = (match["kind"] or "").removeprefix("a ").rstrip(":; ") or "majority"
    return Agreement(kind, int(match["of"]), int(match["n"]))


@dataclass(slots=True)
class Group:
    """Traces of one problem with equal answers, by their place among the problem's traces."""

    answer: str
    places: list[int]


def answer_of(problem: Problem, trace: Trace) -> str | None:
    """The answer that a trace votes for: a choice's letters, or its final answer."""
    text, cut = answer_text(trace), was_cut(trace)
    if problem.metadata.get(CHOICES):
        try:
            letters, _ = chosen_in(text, Options.of(problem), cut=cut)
        except (ValueError, TypeError):
            letters = ""
        return letters or None
    return final_answer(text, cut=cut)


def as_written(answers: Sequence[str | None]) -> list[Group]:
    """Groups of answers that are written alike, the largest first, then the earliest."""
    groups: dict[str, Group] = {}
    for place, answer in enumerate(answers):
        if answer is not None:
            key = normalise(answer, case=True)
            groups.setdefault(key, Group(answer, [])).places.append(place)
    return sorted(groups.values(), key=lambda g: (-len(g.places), g.places[0]))


def merged(groups: Sequence[Group], equal: Iterable[tuple[int, int]]) -> list[Group]:
    """Groups joined where two of them are `equal`; the larger one's way of writing stays.

    A group joins the first one before it that it equals and that has joined none itself, so that
    the outcome depends on nothing but the answers, whatever math-verify thinks of transitivity.
    """
    pairs = set(equal)
    heads: list[int] = []
    joined = {at: Group(group.answer, list(group.places)) for at, group in enumerate(groups)}
    for at, group in enumerate(groups):
        head = next((h for h in heads if (h, at) in pairs), None)
        if head is None:
            heads.append(at)
        else:
            joined[head].places = sorted(joined[head].places + group.places)
    return sorted((joined[h] for h in heads), key=lambda g: (-len(g.places), g.places[0]))


class Votes:
    """The stage: `over(graded)` in the order of the traces, then `summary()`."""

    def __init__(self, grader: Majority, config: Grading, folder: Path) -> None:
        self.grader, self.config = grader, config
        rules = Grading(
            graders=[PartSpec(name="math")], timeout_s=config.timeout_s, workers=config.workers
        )
        self.judge = Judge(rules, folder)
        self.counts: Counter[str] = Counter()
        self.by_share, self.checked = [0] * 11, [[0, 0] for _ in range(11)]
        self._seen: set[str] = set()

    def __enter__(self) -> Votes:
        return self

    def __exit__(self, *exc: object) -> None:
        self.judge.__exit__(*exc)

    def wants(self, problem: Problem) -> bool:
        """Whether the answers to a problem are counted."""
        parts = self.config.by_source.get(problem.source, self.config.graders)
        named = any(part.name == NAME for part in parts)
        return named and (self.grader.check_known or not gradable(problem))

    def over(self, graded: Iterable[Graded]) -> Iterator[Graded]:
        """The same traces in the same order, those of problems without a rule with their votes."""
        held: list[Graded] = []
        for item in graded:
            if len(held) >= BATCH and item.problem.id != held[-1].problem.id:
                yield from self._count(held)
                held = []
            held.append(item)
        yield from self._count(held)

    def _count(self, held: list[Graded]) -> list[Graded]:
        ballots: dict[str, _Ballot] = {}
        for item in held:
            problem = item.problem
            counts = gradable(problem) or item.grade.outcome == "ungraded"
            if counts and self.wants(problem):
                ballots.setdefault(problem.id, _Ballot(problem)).items.append(item)
        for ballot in ballots.values():
            ballot.groups = as_written([item.answer for item in ballot.items])
        self._compare(list(ballots.values()))
        for ballot in ballots.values():
            ballot.groups = merged(ballot.groups, ballot.equal)
            self._settle(ballot)
        return held

    def _compare(self, ballots: Sequence[_Ballot]) -> None:
        """Find each problem's groups whose answers have the same value.

        The second answers of all problems are compared together, then the third, and so on, each
        with those before it that equal none before them: what a worker could not compare once is
        hard, and is not tried with every other answer.
        """
        for at in range(1, MOST):
            asked: list[tuple[_Ballot, int]] = []
            pairs: list[tuple[Problem, Trace]] = []
            for ballot in ballots:
                for head in ballot.heads if at < len(ballot.groups) else ():
                    first, second = ballot.groups[head].answer, ballot.groups[at].answer
                    if ballot.problem.metadata.get(CHOICES):
                        continue  # letters are what they are
                    if is_words(first) or is_words(second):
                        ballot.equal |= {(head, at)} if _WORDS.equal(first, second) else set()
                    elif head in ballot.hard or max(len(first), len(second)) > LONGEST:
                        self.counts["not_compared"] += 1
                    else:
                        asked.append((ballot, head))
                        pairs.append(_pair(first, second))
            for (ballot, head), grade in zip(asked, self.judge.grade_many(pairs), strict=True):
                self.counts["compared"] += 1
                if grade.outcome == "error":
                    self.counts["not_compared"] += 1
                    ballot.hard |= {head, at}
                elif grade.correct:
                    ballot.equal.add((head, at))
            for ballot in ballots:
                ballot.enter(at)

    def _settle(self, ballot: _Ballot) -> None:
        total, groups = len(ballot.items), ballot.groups
        largest = len(groups[0].places) if groups else 0
        tied = len(groups) > 1 and len(groups[1].places) == largest
        known = gradable(ballot.problem)
        if ballot.problem.id in self._seen:
            self.counts["torn"] += 1
        self._seen.add(ballot.problem.id)
        place = largest * 10 // total
        if known:
            self._check(ballot, largest, tied, place)
            return
        self.counts["problems"] += 1
        self.counts["traces"] += total
        self.counts["answered"] += sum(len(group.places) for group in groups)
        self.counts["no_answer" if not groups else "tied" if tied else "plurality"] += 1
        self.counts["majority"] += 2 * largest > total
        self.by_share[place] += 1
        of = {place: group for group in groups for place in group.places}
        for at, item in enumerate(ballot.items):
            item.grade = self._grade(of.get(at), groups, total, tied)

    def _check(self, ballot: _Ballot, largest: int, tied: bool, place: int) -> None:
        self.counts["known"] += 1
        self.counts["known_traces"] += len(ballot.items)
        self.counts["known_correct"] += sum(item.grade.correct for item in ballot.items)
        if not largest or tied:
            self.counts["known_open"] += 1
            return
        right = ballot.items[ballot.groups[0].places[0]].grade.correct
        self.checked[place][0] += 1
        self.checked[place][1] += right

    def _grade(self, own: Group | None, groups: Sequence[Group], total: int, tied: bool) -> Grade:
        if not groups:
            return self.grader.grade("ungraded", detail=f"none of {total} has an answer")
        top = groups[0]
        most = f"{len(top.places)} of {total} agree on {_quote(top.answer)}"
        if own is None:
            return self.grader.grade("ungraded", score=0.0, detail=f"no answer; {most}")
        mine = f"{len(own.places)} of {total} agree on {_quote(own.answer)}"
        if tied and len(own.places) == len(top.places):
            other = next(group for group in groups if group is not own)
            detail = f"a tie: {mine}, as many on {_quote(other.answer)}"
        elif own is not top:
            detail = f"a minority: {mine}, {len(top.places)} on {_quote(top.answer)}"
        else:
            detail = mine
        return self.grader.grade(
            "ungraded", own.answer, score=len(own.places) / total, detail=detail
        )

    def summary(self) -> dict[str, Any]:
        """What the grade step's summary says under `majority`."""
        counts = self.counts
        told: dict[str, Any] = {
            "version": self.grader.version,
            **{key: counts[key] for key in ("problems", "traces", "answered")},
            **{key: counts[key] for key in ("majority", "plurality", "tied", "no_answer")},
            "by_share": self.by_share,
            **{key: counts[key] for key in ("compared", "not_compared")},
        }
        if self.grader.check_known:
            asked, right = (sum(column) for column in zip(*self.checked, strict=True))
            rate = counts["known_correct"] / max(1, counts["known_traces"])
            told["checked"] = {
                "problems": counts["known"],
                "decided": asked,
                "right": right,
                "pass_rate": round(rate, 4),
                "by_share": self.checked,
            }
        return told

    def notes(self) -> list[str]:
        """What a reader must know about the votes."""
        counts, found = self.counts, []
        if counts["problems"]:
            found.append(
                f"majority: {counts['majority']:,} of {counts['problems']:,} problems without a "
                "reference have an answer that more than half of their traces agree on; all stay "
                "ungraded"
            )
        if counts["not_compared"]:
            found.append(
                f"majority: {counts['not_compared']:,} pairs of answers could not be compared and "
                "count as different"
            )
        if counts["torn"]:
            found.append(
                f"majority: the traces of {counts['torn']:,} problems do not stand together; each "
                "stretch was counted alone"
            )
        return found


@dataclass(slots=True)
class _Ballot:
    """One problem's traces and what they answer."""

    problem: Problem
    items: list[Graded] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    heads: list[int] = field(default_factory=lambda: [0])
    """Places of groups that equal none before them."""
    equal: set[tuple[int, int]] = field(default_factory=set)
    hard: set[int] = field(default_factory=set)
    """Places of groups with an answer that could not be compared."""

    def enter(self, at: int) -> None:
        """Make a group a head, once it was compared with the heads before it."""
        if at < len(self.groups) and not any((head, at) in self.equal for head in self.heads):
            self.heads.append(at)


def _pair(gold: str, answer: str) -> tuple[Problem, Trace]:
    problem = Problem(messages=(), gold=gold, id="majority")
    return problem, Trace(problem_id=problem.id, index=0, text=f"\\boxed{{{answer}}}")


def _quote(text: str, limit: int = 60) -> str:
    folded = " ".join(text.split())
    return f"'{folded}'" if len(folded) <= limit else f"'{folded[: limit - 1]}…'"


def votes_of(graders: Sequence[StagedGrader], config: Grading, folder: Path) -> Votes | None:
    """The stage, where the recipe names it."""
    named = [grader for grader in graders if isinstance(grader, Majority)]
    if not named:
        return None
    check = any(grader.check_known for grader in named)
    return Votes(Majority(check=check), config, folder)


def with_answer(item: Graded, votes: Votes) -> Graded:
    """A graded trace with the answer it votes for, read while its text is still here."""
    if item.trace is None or not votes.wants(item.problem):
        return item
    return dataclasses.replace(item, answer=answer_of(item.problem, item.trace))
