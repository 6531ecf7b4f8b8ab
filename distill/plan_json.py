"""A plan as plain data: what `distill plan --json` prints. docs/planning.md names every key."""

from __future__ import annotations

import dataclasses
from typing import Any

from distill.plan import Plan, Training
from distill.plan_assumes import assumptions
from distill.plan_hardware import cheapest_places, hardware_line
from distill.plan_models import Served
from distill.plan_sampling import not_honoured
from distill.plan_search import Found
from distill.plan_training import as_dict, trainable

SCHEMA = 1


def as_json(plan: Plan) -> dict[str, Any]:
    """All figures of a plan, JSON-ready. Keys are only added, or `schema` is raised."""
    recipe, student = plan.recipe, plan.student
    sampling: dict[str, Any] | None = None
    if plan.sampling is not None:
        sampling = dataclasses.asdict(plan.sampling)
        speed = plan.tokens_per_second
        sampling["hours"] = sampling["tokens"] / speed / 3600 if speed else None
    train = recipe.train.model_dump(mode="json")
    return {
        "schema": SCHEMA,
        "recipe": recipe.name,
        "variant": recipe.variant,
        "student": {
            "name": student.name,
            "params": student.params,
            "adapter_params": trainable(student.arch, "lora", train) if student.arch else None,
            "unknown": student.why or None,
        },
        "teacher": dataclasses.asdict(plan.teacher)
        if isinstance(plan.teacher, Served)
        else {"name": recipe.teacher.model, "unknown": plan.teacher},
        "data": [_data(plan, stage) for stage in plan.data],
        "training": [_training(row) for row in plan.trainings],
        "cheapest": [
            {"stage": stage, "method": method, "machine": machine.label, **(_found(found) or {})}
            for stage in plan.data
            for method, (machine, found) in cheapest_places(plan, stage).items()
        ],
        "sampling": sampling,
        "basis": dataclasses.asdict(plan.basis),
        "ignored": not_honoured(recipe),
        "evaluation": dataclasses.asdict(plan.asked),
        "serving": [
            {
                "machine": row.machine.label,
                "teacher": dataclasses.asdict(row.teacher) if row.teacher else None,
                "sampling_hours": row.sampling_hours,
                "student": dataclasses.asdict(row.student) if row.student else None,
                "evaluation_hours": row.evaluation_hours,
            }
            for row in plan.answers
        ],
        "disk_gb": dict(plan.disk),
        "machines": [
            {**dataclasses.asdict(row.machine), "usd_per_hour": row.machine.price}
            for row in plan.answers
        ],
        "hardware": hardware_line(plan),
        "assumes": assumptions(plan),
    }


def _data(plan: Plan, stage: str) -> dict[str, Any]:
    from distill.stages import stages_of

    train = next(s.recipe for s in stages_of(plan.recipe) if s.name == stage).train
    plain = train.model_dump(mode="json")
    data = plan.data[stage].within(train.max_length)
    return {
        "stage": stage,
        "examples": data.examples,
        "mean_tokens": data.mean,
        "left_out_too_long": data.too_long,
        "updates": data.updates(plain),
        "tokens": data.tokens(plain),
        "said": data.said,
    }


def _training(row: Training) -> dict[str, Any]:
    return {
        "stage": row.stage,
        "machine": row.machine.label,
        "recipe": _found(row.own),
        "best": None if row.best is None else {m: _found(f) for m, f in row.best.items()},
    }


def _found(found: Found | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        **as_dict(found.trained),
        "overrides": list(found.overrides),
        "max_length": found.train["max_length"],
        "compromise": found.compromise or None,
    }
