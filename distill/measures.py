"""What a model's answers look like, whatever they are worth: length, loops, languages, loose ends.

Pure measures over rows of `samples.jsonl`. The signs of repetition and of mixed languages are those
of the filters `repetition` and `language` at their defaults, so that a share here means what the
same word means in the funnel of the training data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distill.filter.language import Language
from distill.filter.repetition import Repetition
from distill.records import Grade, Problem, Trace
from distill.thinking import split

QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
UNJUDGED = Grade(outcome="ungraded")

Row = Mapping[str, Any]


class Measures:
    """The measures of many answers; `notes` says what cannot be told on this machine."""

    def __init__(self) -> None:
        self._repetition = Repetition()
        self._language = Language()
        self.notes: tuple[str, ...] = tuple(self._language.notes)

    def of(self, problems: Iterable[Problem], rows: Iterable[Row]) -> dict[str, Any]:
        """The text measures of one model on one task, all shares of its `answers`.

        Answers that could not be had (finish reason `failed`) are not among them. With no answer
        left every share is None, and `tokens` too.
        """
        had = [row for row in rows if row["finish_reason"] != "failed"]
        if not had:
            return {"answers": 0, "tokens": None, **dict.fromkeys(SHARES)}
        traces = [
            Trace(problem_id=row["problem_id"], index=row["index"], text=row["text"]) for row in had
        ]
        by_id = {problem.id: problem for problem in problems}
        pairs = [(by_id[trace.problem_id], trace) for trace in traces]
        parts = [split(trace.text) for trace in traces]
        return {
            "answers": len(had),
            "tokens": quantiles([row["completion_tokens"] for row in had]),
            "truncated": _share(row["finish_reason"] == "length" for row in had),
            "unfinished_thinking": _share(not part.finished for part in parts),
            "without_thinking": _share(part.reasoning is None for part in parts),
            "repetitive": _share(
                self._repetition(problem, trace, UNJUDGED) is not None for problem, trace in pairs
            ),
            "mixed_languages": _share(
                self._language(problem, trace, UNJUDGED) is not None for problem, trace in pairs
            ),
        }


SHARES = ("truncated", "unfinished_thinking", "without_thinking", "repetitive", "mixed_languages")


def quantiles(tokens: Sequence[int]) -> dict[str, int]:
    """Lengths at the marks of `QUANTILES`, each the length of an answer there is."""
    ordered = sorted(tokens)
    return {name: ordered[round(q * (len(ordered) - 1))] for name, q in QUANTILES.items()}


def _share(found: Iterable[bool]) -> float:
    flags = list(found)
    return sum(flags) / len(flags)
