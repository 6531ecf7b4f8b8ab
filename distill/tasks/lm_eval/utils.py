"""What `distill_problems.yaml` needs: problems from a file, and our default grader."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from distill.grade.auto import Auto
from distill.records import Problem, Trace, from_row, read_records, to_row
from distill.thinking import split


def load(file: str = "", **_: Any) -> dict[str, Any]:
    """The problems of a JSONL file of Problem rows, as lm-eval wants a data set.

    Only the last message is asked; a system prompt goes in by `--system_instruction`.
    """
    import datasets

    if not file:
        raise ValueError('name the problems: --metadata \'{"file": "heldout.jsonl"}\'')
    rows = [
        {
            "prompt": problem.messages[-1]["content"],
            "gold": problem.gold or "",
            # As text: problems of different sources have different metadata.
            "row": json.dumps(to_row(problem)),
        }
        for problem in read_records(Problem, Path(file))
    ]
    return {"test": datasets.Dataset.from_list(rows)}


def process_results(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """Shares of correct and of parsed answers among all samples of one problem."""
    problem = from_row(Problem, json.loads(doc["row"]))
    texts = results[0] if isinstance(results[0], list) else results
    outcomes = [_grader()(problem, _trace(problem, text)).outcome for text in texts]
    return {
        "pass@1": sum(o == "correct" for o in outcomes) / len(outcomes),
        "parsed": sum(o in ("correct", "wrong") for o in outcomes) / len(outcomes),
    }


@cache
def _grader() -> Auto:
    return Auto()


def _trace(problem: Problem, text: str) -> Trace:
    parts = split(text)
    return Trace(
        problem_id=problem.id, index=0, text=text, reasoning=parts.reasoning, answer=parts.answer
    )
