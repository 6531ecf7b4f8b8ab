"""The `about.hardware` line of a recipe: on which of the usual machines each method fits."""

from __future__ import annotations

from distill.plan import Plan
from distill.plan_machines import machine

NAMES = {"full": "full", "lora": "LoRA", "qlora": "QLoRA"}
SMALL = 8192
"""Tokens that a method should have at least on a machine where the recipe's length does not fit."""


def hardware_line(plan: Plan) -> str:
    """`full on 8x80 GB; LoRA and QLoRA on 1x80 GB`: the first of the plan's machines for each.

    The last stage counts. A smaller machine on which a method fits with a lower `max_length` is
    named too: `QLoRA on 1x24 GB at 8k tokens`. Empty where nothing is known.
    """
    stage = list(plan.data)[-1]
    rows = [t for t in plan.trainings if t.stage == stage and t.best is not None]
    whole = plan.recipe.train.max_length
    places: dict[str, list[str]] = {}
    for method, name in NAMES.items():
        shorter = ""
        for row in rows:
            found = (row.best or {})[method]
            length = found.train["max_length"]
            if not found.trained.fits or length < min(SMALL, whole):
                continue
            said = machine(row.machine.label).said
            if length >= whole:
                places.setdefault(said, []).append(name)
                break
            if not shorter:
                shorter = f"{said} at {length // 1024}k tokens"
                places.setdefault(shorter, []).append(name)
    return "; ".join(f"{_and(names)} on {place}" for place, names in places.items())


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
