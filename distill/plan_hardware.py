"""Where each method fits, and where it costs least: the `about.hardware` line of a recipe."""

from __future__ import annotations

import re

from distill.plan import Plan
from distill.plan_machines import Machine
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


def cheapest_places(plan: Plan, stage: str) -> dict[str, tuple[Machine, Found]]:
    """For each method the machine on which this training costs least, and its setting there.

    A machine on which nothing has to be given up comes before one on which something has. A method
    that fits none of the machines, and a training of unknown size, are left out.
    """
    found: dict[str, tuple[Machine, Found]] = {}
    for method in NAMES:
        rows = [
            (row.machine, row.best[method])
            for row in plan.trainings
            if row.stage == stage and row.best is not None
        ]
        fitting = [r for r in rows if r[1].trained.money is not None]
        if fitting:
            found[method] = min(fitting, key=_price)
    return found


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


def _price(place: tuple[Machine, Found]) -> tuple[bool, float]:
    found = place[1]
    return bool(found.compromise), found.trained.money or 0.0
