"""Which weights the student gets: the last, those of the lowest validation loss, or a mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import DistillError, UsageError
from distill.students import checkpoints, sharding

if TYPE_CHECKING:
    from distill.students.saving import SavingTrainer
    from distill.students.sft import Job


def check(train: Mapping[str, Any], validation: object) -> None:
    """Refuse choices that nothing can decide."""
    if checkpoints.chooses(train) and not validation:
        key = "keep: best" if train.get("keep") == "best" else f"early_stop: {train['early_stop']}"
        raise UsageError(
            f"train.{key} goes by the validation loss, and there are no examples to measure it on",
            "keep some from training with select.validation, or name a file in train.development",
        )
    if train.get("keep") == "best" and int(train.get("average") or 1) > 1:
        raise UsageError(
            f"train.keep: best and train.average: {train['average']} both say which weights the "
            "student gets",
            "choose one of them",
        )


def keep(trainer: SavingTrainer, job: Job, planned: int) -> dict[str, Any]:
    """Put the chosen weights into the trainer's model; all processes call.

    Returns `kept_update`, `kept_why` and, where the training stopped early, `planned_updates`.
    """
    from distill.students import averaging

    if trainer.sharded:
        sharding.settle(trainer.model)
    last, seen = trainer.state.global_step, trainer.validation
    folder = job.out / "checkpoints"
    told: dict[str, Any] = {"kept_update": last, "kept_why": "the last update"}
    best = seen.best if seen else None
    # Of copies, the first process's is exported, and other nodes need not see its checkpoints.
    mine = trainer.sharded or trainer.is_deepspeed_enabled or trainer.args.should_save
    if seen and best is not None:
        lowest = seen.losses[best]
        if seen.stopped is not None:
            told["planned_updates"] = planned
            job.notes.append(
                f"stopped after {last} of {planned} updates: {seen.patience} measurements without "
                f"a validation loss below that of update {best} ({lowest:.4f})"
            )
        if seen.keep_best:
            told |= {"kept_update": best, "kept_why": f"the lowest validation loss ({lowest:.6f})"}
            if seen.losses.get(0, lowest) < lowest:
                job.notes.append(
                    f"the base's own validation loss ({seen.losses[0]:.4f}) is lower than that of "
                    "every measured update"
                )
            if best != last and mine:
                restore(trainer, folder / f"checkpoint-{best}")
    count = int(job.train.get("average") or 1)
    if count > 1:
        found = checkpoints.all_of(folder)[-count:]
        if mine:
            averaging.average(found, trainer.model)
        steps = ", ".join(str(checkpoints.step_of(path)) for path in found)
        told["kept_why"] = f"the mean of the checkpoints of updates {steps}"
        if len(found) < count:
            job.notes.append(
                f"train.average: {count}, but the training wrote {len(found)} checkpoints"
            )
    return told


def restore(trainer: SavingTrainer, path: Path) -> None:
    """Put a checkpoint's weights into the trainer's model; all processes call."""
    why = checkpoints.damage(path)
    if why is not None:
        raise DistillError(
            f"the best checkpoint {path} cannot be read: {why}",
            f"remove {path.parent} and train again",
        )
    if trainer.is_deepspeed_enabled:
        from transformers.integrations.deepspeed import deepspeed_load_checkpoint

        deepspeed_load_checkpoint(trainer.model_wrapped, str(path), load_module_strict=False)
    else:
        checkpoints.load_weights(path, trainer.model)
