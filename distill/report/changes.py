"""Problem by problem: which the student answers better or worse than the base, and how.

The samples of an evaluation are streamed; texts are kept only of the problems that are shown.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.report.reading import STRICT, Reader
from distill.report.traces import questions, take_apart

SHOWN_CHANGES = 5
PAIRS = {"gained": 2, "lost": 2, "neither": 1}
MARKED = ("subject", "difficulty")
"""Groups that a problem's metadata names."""

Rates = dict[str, dict[str, float]]
"""role -> problem id -> share of correct samples."""

Labels = dict[str, dict[str, str]]
"""kind (source, subject, difficulty) -> problem id -> name of its group."""


def read_rates(samples: Path, read: Reader = STRICT) -> dict[str, Rates]:
    """The rates of each task; samples that nobody could grade are left out."""
    seen: dict[str, dict[str, dict[str, list[bool]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for row in read.rows(samples):
        of = seen[str(row.get("task"))][str(row.get("role"))]
        if row.get("outcome") != "ungraded":
            of[str(row.get("problem_id"))].append(row.get("outcome") == "correct")
    return {
        task: {
            role: {problem: sum(right) / len(right) for problem, right in problems.items()}
            for role, problems in roles.items()
        }
        for task, roles in seen.items()
    }


def labels_of(files: Sequence[Path], rates: Rates, read: Reader) -> Labels:
    """The groups of the sampled problems, from the first file that has a problem."""
    wanted = {problem for of in rates.values() for problem in of}
    labels: Labels = {"source": {}, **{kind: {} for kind in MARKED}}
    for path in files:
        if not wanted - labels["source"].keys():
            break
        for problem in read.problems(path):
            if problem.id in wanted and problem.id not in labels["source"]:
                labels["source"][problem.id] = problem.source or "unnamed"
                for kind in MARKED:
                    if problem.metadata.get(kind) is not None:
                        labels[kind][problem.id] = str(problem.metadata[kind])
    return labels


def changed(rates: Rates, against: str | None) -> dict[str, Any] | None:
    """Problems the student answers more or less often than the base, and the extreme ones."""
    if against not in rates or "student" not in rates:
        return None
    base, student = rates[against], rates["student"]
    rows: list[dict[str, Any]] = [
        {"problem_id": p, "base": base[p], "student": student[p]} for p in base if p in student
    ]
    gained = [r for r in rows if r["student"] > r["base"]]
    lost = [r for r in rows if r["student"] < r["base"]]
    neither = [r for r in rows if r["student"] == r["base"] == 0]

    def extreme(side: list[dict[str, Any]]) -> list[dict[str, Any]]:
        by_size = sorted(side, key=lambda r: (-abs(r["student"] - r["base"]), _lot(r)))
        return by_size[:SHOWN_CHANGES]

    return {
        "better": len(gained),
        "worse": len(lost),
        "same": len(rows) - len(gained) - len(lost),
        "gained": extreme(gained),
        "lost": extreme(lost),
        "neither": sorted(neither, key=_lot)[: PAIRS["neither"]],
    }


def _lot(row: Mapping[str, Any]) -> str:
    return hashlib.sha256(str(row["problem_id"]).encode()).hexdigest()


def name_problems(changes: dict[str, Any] | None, files: Sequence[Path], read: Reader) -> None:
    """Put question and reference answer to the problems of `changed`."""
    if changes is None:
        return
    rows = [row for kind in PAIRS for row in changes[kind]]
    asked = questions(files, {row["problem_id"] for row in rows}, read)
    for row in rows:
        row.update(asked.get(row["problem_id"], {"question": "", "gold": None}))


def pairs(
    samples: Path,
    task: str,
    against: str | None,
    changes: Mapping[str, Any] | None,
    files: Sequence[Path],
    read: Reader,
) -> list[dict[str, Any]]:
    """Base and student on the same problem: as many losses as gains, and one that both missed."""
    if changes is None:
        return []
    wanted = {
        row["problem_id"]: kind for kind, many in PAIRS.items() for row in changes[kind][:many]
    }
    answers: dict[tuple[str, str], tuple[bool, dict[str, Any]]] = {}
    for row in read.rows(samples):
        problem, role = str(row.get("problem_id")), str(row.get("role"))
        if row.get("task") != task or problem not in wanted or role not in (against, "student"):
            continue
        role = "student" if role == "student" else "base"
        winner = {"gained": "student", "lost": "base"}.get(wanted[problem])
        telling = (row.get("outcome") == "correct") == (role == winner)
        if (problem, role) not in answers or (telling and not answers[problem, role][0]):
            answers[problem, role] = (telling, _answer(row))
    asked = questions(files, set(wanted), read)
    return [
        {
            "kind": kind,
            "problem_id": problem,
            **asked.get(problem, {"question": "", "gold": None}),
            "base": answers[problem, "base"][1],
            "student": answers[problem, "student"][1],
        }
        for problem, kind in wanted.items()
        if (problem, "base") in answers and (problem, "student") in answers
    ]


def _answer(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "index": row.get("index", 0),
        "outcome": str(row.get("outcome", "ungraded")),
        "extracted": row.get("extracted"),
        "length": row.get("completion_tokens"),
        "finish_reason": row.get("finish_reason"),
        **take_apart(str(row.get("text") or "")),
    }
