"""What to type after a training ran out of memory, or before it would."""

from __future__ import annotations

import logging
from typing import Any

from distill import plan_models
from distill.plan_data import expected_data
from distill.plan_machines import GIB, Machine, visible
from distill.plan_sampling import default_basis, problem_count
from distill.plan_search import METHODS, Found, as_it_is, cheapest
from distill.plan_training import memory
from distill.recipe import Recipe

log = logging.getLogger(__name__)

SMALLER = 0.85
"""A training that ran out of memory is advised a setting with at most this share of what was
planned for it: the plan was too low."""
ORDER = (
    "in this order: train.gradient_checkpointing=true; train.shard=fsdp with all GPUs in "
    "train.processes; train.offload=true; variant=lora, then variant=qlora; last "
    "train.max_length (longer examples are left out)"
)


def advice(recipe: Recipe, machine: Machine | None = None) -> str:
    """The cheapest change after which the training should fit, as overrides; never raises.

    `machine` is the one at hand (None: the GPUs that nvidia-smi shows). First the settings that
    change no result, then a shorter `max_length`, then the methods that need less. Where neither
    machine nor architecture is known: what to try in which order.
    """
    try:
        return _advice(recipe, machine or visible())
    except Exception as error:  # this sentence stands in another error's hint
        log.debug("no advice: %s", error)
        return ORDER


def _advice(recipe: Recipe, machine: Machine | None) -> str:
    arch = plan_models.student(recipe).arch
    if machine is None or arch is None:
        return ORDER
    data = expected_data(recipe, problem_count(recipe), default_basis(recipe))
    student, train = recipe.student.model_dump(mode="json"), recipe.train.model_dump(mode="json")
    planned = memory(arch, student, train).total / GIB
    most = SMALLER * min(planned, machine.gpu.usable / GIB)
    own = METHODS.index(recipe.student.method)
    tried = [cheapest(recipe, m, arch, machine, data, below=most) for m in METHODS[own:]]
    fitting = [f for f in tried if f.trained.fits and f.trained.needed <= most]
    usable = machine.gpu.usable / GIB
    odd = ""
    if planned < usable:
        odd = (
            f"the planner expected {planned:,.0f} of {usable:,.0f} GiB: see in nvidia-smi whether "
            "another process holds the GPU; else "
        )
    if not fitting:
        return (
            f"{odd}no setting that the planner knows needs clearly less on {machine.said}: use "
            f"more or larger GPUs (distill plan {recipe.name} --on 8x80)"
        )
    # A setting that leaves nothing out comes before one that does, whatever the method.
    best = next((f for f in fitting if not f.compromise), fitting[0])
    return f"{odd}by the planner this fits {machine.said}: {_told(best, planned)}"


def _told(found: Found, planned: float) -> str:
    need = f"{found.trained.needed:,.0f} instead of {planned:,.0f} GiB on each GPU"
    compromise = f"; {found.compromise}" if found.compromise else ""
    return f"{' '.join(found.overrides)} ({need}{compromise})"


def fits(recipe: Recipe, gpus: Machine | None = None) -> str | None:
    """Why the recipe's training will not fit these GPUs by the planner, and the way out; or None.

    `gpus` None: those that nvidia-smi shows. Also None where nothing is known. Never raises: it
    warns of what an estimate says.
    """
    try:
        machine = gpus or visible()
        arch: Any = plan_models.student(recipe).arch if machine is not None else None
        if machine is None or arch is None:
            return None
        data = expected_data(recipe, problem_count(recipe), default_basis(recipe))
        own = as_it_is(recipe, arch, machine, data).trained
        if own.fits:
            return None
        return f"the training does not fit {machine.said}: {own.short}; {advice(recipe, machine)}"
    except Exception as error:
        log.debug("no estimate: %s", error)
        return None
