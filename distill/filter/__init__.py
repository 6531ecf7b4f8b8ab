"""Filters: each returns None to keep a trace, or the reason to drop it.

A filter is called as `filter(problem, trace, grade)`. `run` is the step: `reading` and `parallel`
bring the traces to the filters, `asking` asks them, `ledger` adds up. `parts` makes a recipe's list
into filters. Each filter has a file of its own; `outcome` has those that read the grade, `corpus`
has `duplicates`.
"""

from __future__ import annotations

KNOWN: dict[str, str] = {
    "truncated": "distill.filter.outcome:Truncated",
    "correct": "distill.filter.outcome:Correct",
    "majority": "distill.filter.majority:Majority",
    "format": "distill.filter.format:Format",
    "thinking": "distill.filter.thinking:Thinking",
    "length": "distill.filter.length:Length",
    "repetition": "distill.filter.repetition:Repetition",
    "difficulty": "distill.filter.difficulty:Difficulty",
    "duplicates": "distill.filter.corpus:Duplicates",
    "near_duplicates": "distill.filter.minhash:NearDuplicates",
    "language": "distill.filter.language:Language",
    "readability": "distill.filter.readability:Readability",
    "refusals": "distill.filter.identity:Refusals",
    "identity": "distill.filter.identity:Identity",
    "overlap": "distill.filter.overlap:Overlap",
}
"""The names that a recipe's `filters` may use without saying where they are."""
