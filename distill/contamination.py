"""How much of an evaluation was trained on: the overlap filter's rules, asked the other way round.

The filter drops training problems that overlap with an evaluation; a recipe may leave it out or
loosen it. So every evaluation looks again, at what was really trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from distill.filter.overlap import Overlap
from distill.records import Problem, read_jsonl, read_records


def contaminated(
    trained: Sequence[Path], problems: Path, tasks: Mapping[str, Sequence[Problem]]
) -> dict[str, dict[str, str]]:
    """task -> evaluation problem -> the training problem that it overlaps with.

    `trained` are the data sets (JSONL rows with `problem_id`), `problems` the file of the problems
    they were made from. Rules are the filter's with its defaults, and no share is too large.
    """
    wanted = {str(row.get("problem_id")) for path in trained for row in read_jsonl(path)}
    seen = {p.id: p for p in read_records(Problem, problems) if p.id in wanted}
    forward = _rows(seen, tasks)
    # A training problem is reported with one evaluation problem; there may be more it overlaps.
    suspects = {key: seen[key] for key in {row["problem_id"] for row in forward}}
    found: dict[str, dict[str, str]] = {task: {} for task in tasks}
    for task, asked in tasks.items():
        own = [row for row in forward if row["task"] == task]
        found[task] = {row["eval_problem_id"]: row["problem_id"] for row in own}
        for row in _rows({p.id: p for p in asked}, {"trained": [*suspects.values()]}):
            found[task].setdefault(row["problem_id"], row["eval_problem_id"])
    return found


def _rows(
    problems: Mapping[str, Problem], tasks: Mapping[str, Sequence[Problem]]
) -> Sequence[Mapping[str, str]]:
    looking = Overlap(max_share=None, max_heldout_share=None)
    looking.begin(problems, tasks)
    return [*looking.rows()]
