"""What `distill_problems.yaml` needs: problems from a file, and our graders in killable workers."""

from __future__ import annotations

import atexit
import json
from functools import cache
from pathlib import Path
from typing import Any

from distill.grade.service import Judge
from distill.records import Problem, Trace, from_row, read_records, to_row
from distill.schema import Grading
from distill.thinking import split


def load(file: str = "", grader: str = "auto", **_: Any) -> dict[str, Any]:
    """The problems of a JSONL file of Problem rows, as lm-eval wants a data set.

    `grader` judges them (docs/graders.md). Only the last message is asked; a system prompt goes in
    by `--system_instruction`. Raises ValueError without a file, UsageError for an unknown grader.
    """
    import datasets

    if not file:
        raise ValueError('name the problems: --metadata \'{"file": "heldout.jsonl"}\'')
    _judge(grader)
    rows = [
        {
            "prompt": problem.messages[-1]["content"],
            "gold": problem.gold or "",
            "grader": grader,
            # As text: problems of different sources have different metadata.
            "row": json.dumps(to_row(problem)),
        }
        for problem in read_records(Problem, Path(file))
    ]
    return {"test": datasets.Dataset.from_list(rows)}


def process_results(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """Shares of correct and of parsed answers among all samples of one problem.

    Nothing for a problem that nobody can grade: it is left out of the mean.
    """
    problem = from_row(Problem, json.loads(doc["row"]))
    texts = results[0] if isinstance(results[0], list) else results
    pairs = [(problem, _trace(problem, index, text)) for index, text in enumerate(texts)]
    outcomes = [grade.outcome for grade in _judge(doc["grader"]).grade_many(pairs)]
    if "ungraded" in outcomes:
        return {}
    return {
        "pass@1": sum(o == "correct" for o in outcomes) / len(outcomes),
        "parsed": sum(o in ("correct", "wrong") for o in outcomes) / len(outcomes),
    }


@cache
def _judge(grader: str) -> Judge:
    judge = Judge(Grading.model_validate({"graders": [grader]}), Path.cwd())
    atexit.register(judge.pool.close)
    return judge


def _trace(problem: Problem, index: int, text: str) -> Trace:
    parts = split(text)
    return Trace(
        problem_id=problem.id,
        index=index,
        text=text,
        reasoning=parts.reasoning,
        answer=parts.answer,
    )
