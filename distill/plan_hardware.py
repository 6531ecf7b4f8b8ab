"""The `about.hardware` line of a recipe: on which of the usual machines each method fits."""

from __future__ import annotations

import re

from distill.plan import Plan
from distill.plan_search import Found

NAMES = {"full": "full", "lora": "LoRA", "qlora": "QLoRA"}
SMALL = 8192
"""Tokens that a method should have at least on a machine where the recipe's length does not fit."""


def hardware_line(plan: Plan) -> str:
    """`QLoRA at 8k tokens on 1x24 GB; LoRA on 1x80 GB; full on 8x80 GB`, from small to large.

    Each method on the first of the plan's machines where it fits with the recipe's `max_length` and
    without offloading, and before that on the first where it fits with one of the two. The last
    stage of a recipe counts. Empty where nothing is known.
    """
    stage = list(plan.data)[-1]
    rows = [t for t in plan.trainings if t.stage == stage and t.best is not None]
    clauses: dict[tuple[int, str], list[str]] = {}
    for method, name in NAMES.items():
        given_up = False
        for number, row in enumerate(rows):
            found = (row.best or {})[method]
            terms = _terms(found, plan.recipe.train.max_length)
            if terms is None or (terms and given_up):
                continue
            clauses.setdefault((number, terms), []).append(name)
            if not terms:
                break
            given_up = True
    return "; ".join(
        f"{_and(names)}{terms} on {rows[number].machine.said}"
        for (number, terms), names in sorted(clauses.items())
    )


def _terms(found: Found, whole: int) -> str | None:
    """What fitting costs: nothing, ` at 8k tokens`, ` with offload`; None: it does not fit."""
    length = found.train["max_length"]
    if not found.trained.fits or length < min(SMALL, whole):
        return None
    shorter = f" at {length // 1024}k tokens" if length < whole else ""
    rank = re.search(r"^rank \d+", found.compromise)
    lower = f" of {rank.group()}" if rank else ""
    return lower + shorter + (" with offload" if found.train["offload"] else "")


def _and(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
