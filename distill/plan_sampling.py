"""What sampling will ask for and bring: problems, samples, tokens, money.

Adaptive sampling is simulated by its own policy on a mix of pass rates (`distill/simulate.py`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill import models, simulate
from distill.beta import Prior
from distill.errors import UsageError
from distill.policy import Policy
from distill.protocols import Capabilities
from distill.recipe import Recipe
from distill.records import read_jsonl

R1_TOKENS = 5355
"""Mean length of DeepSeek-R1's distillation traces in tokens (arXiv 2501.12948v2, Table 5)."""
R1_PROMPT_TOKENS = 200
"""Assumed length of a problem with its instruction in tokens; prompts are a small part of the
bill."""
SIMULATED = 4000
"""Problems whose sampling is simulated for a plan; the result is scaled."""


@dataclass(frozen=True, slots=True)
class Basis:
    """What is assumed of the problems: a Beta of pass rates, and tokens per sample.

    Of an earlier run also `lengths`, equally likely ones of correct traces with their prompts, and
    `speed`, the tokens per second with which it sampled `teacher`.
    """

    mix: Prior
    sample_tokens: float
    said: str
    lengths: tuple[int, ...] = ()
    speed: float | None = None
    teacher: str = ""

    @classmethod
    def of_run(cls, run: Path) -> Basis:
        """As an earlier run's grades have it, whatever policy its samples were bought with."""
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        steps = record["steps"]
        bought = steps.get("sample") or steps.get("import")
        if not bought or "grade" not in steps:
            raise UsageError(
                f"{run.name} has no graded traces to plan from",
                "name a run that went as far as `distill grade`",
            )
        tries: Counter[str] = Counter()
        correct: set[tuple[str, int]] = set()
        for row in read_jsonl(run.parent / steps["grade"]["folder"] / "grades.jsonl"):
            if row["outcome"] != "ungraded":
                tries[row["problem_id"]] += 1
                if row["outcome"] == "correct":
                    correct.add((row["problem_id"], row["index"]))
        folder = run.parent / bought["folder"]
        tokens, lengths = _trace_lengths(folder / "traces.jsonl", correct)
        if not tries or not sum(tokens):
            raise UsageError(f"{run.name} has no graded traces with token counts to plan from")
        solved = Counter(problem for problem, _ in correct)
        mix = simulate.fitted((n, solved[problem]) for problem, n in tries.items())
        return cls(
            mix,
            sum(tokens) / len(tokens),
            f"the {len(tries):,} problems of {run.name}",
            lengths,
            _speed(folder / "summary.json"),
            str(record.get("recipe", {}).get("teacher", {}).get("model", "")),
        )


def _trace_lengths(path: Path, correct: set[tuple[str, int]]) -> tuple[list[int], tuple[int, ...]]:
    """Completion tokens of all traces, and some whole lengths of the correct ones."""
    tokens, whole = [], []
    for row in read_jsonl(path):
        completion = row.get("completion_tokens", 0)
        tokens.append(completion)
        if completion and (row["problem_id"], row["index"]) in correct:
            whole.append(completion + row.get("prompt_tokens", 0))
    whole.sort()
    picked = [whole[round(i * (len(whole) - 1) / 63)] for i in range(64)] if whole else []
    return tokens, tuple(picked)


def _speed(path: Path) -> float | None:
    """The tokens per second that a sample step measured; None where it bought nothing."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return float(told["tokens_per_second"]) or None if told.get("bought") else None


@dataclass(frozen=True, slots=True)
class Expected:
    """What sampling is expected to take and to bring. Tokens are completion tokens.

    `accepted`, `solved` (problems with an accepted trace) and `complete` (with all wanted) are
    None for fixed n, whose traces are judged afterwards.
    """

    problems: int
    samples: int
    tokens: int
    money: float
    accepted: int | None = None
    solved: float | None = None
    complete: float | None = None
    rounds: int | None = None


def default_basis(recipe: Recipe) -> Basis:
    """R1's pass rates on unfiltered problems, and the teacher's mean length or R1's."""
    said = "assumed: R1 on unfiltered NuminaMath 1.5; `distill plan --from RUN` takes a pilot's"
    return Basis(simulate.OPEN_R1_MIX, tokens_per_trace(recipe), said)


def expected(recipe: Recipe, problems: int, basis: Basis) -> Expected:
    """What sampling `problems` takes if nothing is reused and nothing fails."""
    sampling, teacher = recipe.sampling, recipe.teacher
    if sampling.want is None:
        samples = problems * sampling.n
        tokens = round(samples * basis.sample_tokens)
        return Expected(problems, samples, tokens, _money(recipe, samples, tokens))
    some = min(problems, SIMULATED)
    scale = problems / some
    policy = Policy.from_sampling(sampling)
    outcomes = simulate.draw(
        some,
        policy.most,
        mix=basis.mix,
        sample_tokens=basis.sample_tokens,
        max_tokens=sampling.max_tokens,
    )
    budgets: list[float] = [sampling.budget_tokens] if sampling.budget_tokens else []
    each = (teacher.price_out + teacher.price_in * R1_PROMPT_TOKENS / basis.sample_tokens) / 1e6
    if sampling.budget_cost and each:
        budgets.append(sampling.budget_cost / each)
    found = simulate.simulate(
        policy,
        outcomes,
        budget=min(budgets) / scale if budgets else None,
        sample_tokens=basis.sample_tokens,
    )
    whole = found.whole
    samples, tokens = round(whole.samples * scale), round(whole.tokens * scale)
    return Expected(
        problems,
        samples,
        tokens,
        _money(recipe, samples, tokens),
        accepted=round(whole.accepted * scale),
        solved=whole.covered / some,
        complete=whole.complete / some,
        rounds=found.rounds if budgets else None,
    )


def _money(recipe: Recipe, samples: int, tokens: int) -> float:
    teacher = recipe.teacher
    return (tokens * teacher.price_out + samples * R1_PROMPT_TOKENS * teacher.price_in) / 1e6


def tokens_per_trace(recipe: Recipe) -> int:
    """The teacher's mean trace length from the catalog, else R1's, never above the limit."""
    known = None
    if recipe.teacher.model:
        known = getattr(models.teacher_entry(recipe.teacher.model), "mean_tokens", None)
    return min(int(known or R1_TOKENS), recipe.sampling.max_tokens)


def not_honoured(recipe: Recipe) -> list[str]:
    """What the teacher is known to ignore, from the catalog and the recipe; nothing is asked."""
    if not recipe.teacher.model:
        return []
    from distill.sampled import ignored

    promised = dict(models.teacher_entry(recipe.teacher.model).capabilities)
    promised |= recipe.teacher.options.get("capabilities") or {}
    return ignored(Capabilities(**promised), recipe.sampling)


def problem_count(recipe: Recipe, problems: Mapping[str, Any] | None = None) -> int | None:
    """How many problems will be sampled; None where the sources do not say."""
    if problems is not None and "problems" in problems:
        return int(problems["problems"])
    sizes = [source.size or source.rows for source in recipe.problems.sources]
    if not sizes or any(size is None for size in sizes):
        return recipe.problems.limit
    total = sum(size for size in sizes if size)
    kept = round(total * (1 - recipe.problems.heldout))
    return min(kept, recipe.problems.limit or kept)
