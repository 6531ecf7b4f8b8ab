"""What a run leaves on disk at its fullest, by part, in GB."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill import models
from distill.plan_data import Data
from distill.plan_machines import GB
from distill.plan_models import Served
from distill.plan_training import trainable
from distill.recipe import Recipe

TEXT_BYTES = 4
"""Bytes of a token's text in JSONL: English and LaTeX have three to four characters a token."""
COPIES = 2
"""A trace lies in the pool and in the sample step; what is selected a third time."""
TOKEN_BYTES = 8
"""A token of the tokenised data set: 64-bit ids."""
STATES = 12
"""Bytes of a trained weight in a checkpoint: fp32 and AdamW's two moments."""


def disk(
    recipe: Recipe,
    arch: Any,
    trace_tokens: float | None,
    teacher: Served | str,
    trainings: list[tuple[Recipe, Data]],
) -> dict[str, float]:
    """GB by part; a part that is unknown or nothing is left out.

    `trainings` are the stages of the recipe with their data. Weights count as they are published
    (bf16), and only where they have to be fetched.
    """
    parts: dict[str, float] = {}
    if arch is not None and not _is_here(recipe.student.base, recipe):
        parts["base"] = 2 * arch.params
    engine = recipe.teacher.engine
    if recipe.teacher.model and not engine:
        engine = models.teacher_entry(recipe.teacher.model).engine
    embedded = engine in ("transformers", "vllm") and recipe.traces is None
    if isinstance(teacher, Served) and embedded and not _is_here(recipe.teacher.model, recipe):
        parts["teacher"] = teacher.weights
    if trace_tokens:
        parts["traces"] = trace_tokens * TEXT_BYTES * COPIES
    for stage, data in trainings:
        if data.examples is not None:
            tokens = data.examples * data.mean
            parts["training set"] = parts.get("training set", 0) + tokens * TEXT_BYTES
            # Removed when the student is complete, so the largest stage counts.
            parts["tokens"] = max(parts.get("tokens", 0), tokens * TOKEN_BYTES)
        if arch is not None:
            here = checkpoints(arch, stage.student.method, stage.train.model_dump(mode="json"))
            parts["checkpoints"] = max(parts.get("checkpoints", 0), here)
            parts["students"] = parts.get("students", 0) + 2 * arch.params
            if stage.student.method != "full":
                adapter = trainable(arch, stage.student.method, stage.train.model_dump(mode="json"))
                parts["adapters"] = parts.get("adapters", 0) + 4 * adapter
    return {name: size / GB for name, size in parts.items() if size}


def checkpoints(arch: Any, method: str, train: Mapping[str, Any]) -> float:
    """Bytes of the checkpoints that are kept, and of one more while it is written."""
    kept = max(2, int(train.get("average") or 1)) + (train.get("keep") == "best") + 1
    return float(kept * STATES * trainable(arch, method, train))


def _is_here(name: str, recipe: Recipe) -> bool:
    """Whether a model is a local folder, or ships with the package."""
    here = models.local(name, recipe.folder)
    try:
        return Path(here).is_dir() or Path(models.teacher_entry(here).model).is_dir()
    except OSError:
        return False
