"""Few-shot examples as plain text: how a base that knows no chat is asked at its best."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable

from distill.records import Problem

STOP = "\nQuestion:"
CANDIDATES = 200
LONGEST_GOLD = 200


def as_question(problem: Problem) -> str:
    """The last question of a prompt, which the model goes on from."""
    return f"Question: {problem.question}\nAnswer:"


def fewshot_prefix(
    problems: Iterable[Problem], shots: int, *, without: Container[str] = ()
) -> tuple[str, int]:
    r"""Text with `shots` answered problems, and how many there are.

    Examples are training problems with a reference answer, never one that is evaluated
    (`without`: ids). They are chosen by hash among the shorter half of the first few, so the choice
    is the same in every run and leaves room in a small context. Answers are boxed, because a box is
    what every grader finds.
    """
    found = []
    for problem in problems:
        if problem.gold and len(problem.gold) <= LONGEST_GOLD and problem.id not in without:
            found.append(problem)
            if len(found) == CANDIDATES:
                break
    found.sort(key=lambda problem: len(problem.question))
    short = found[: max(shots, len(found) // 2)]
    chosen = sorted(short, key=lambda p: hashlib.sha256(p.id.encode()).digest())[:shots]
    blocks = [f"{as_question(p)} \\boxed{{{p.gold}}}\n\n" for p in chosen]
    return "".join(blocks), len(chosen)
