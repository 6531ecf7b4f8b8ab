"""A trainer that saves and goes on: whole checkpoints, sharded or not, and clear ends.

Everything of `UpdateTrainer` but its checkpoints. A save that fails leaves the last complete
checkpoint where it is; memory that does not suffice is an error that says what was tried.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from distill.errors import DistillError
from distill.students import checkpoints, sharding, zero3
from distill.students.trainer import UpdateTrainer
from distill.students.validation import Validation


class SavingTrainer(UpdateTrainer):
    """The `keep` newest checkpoints are kept, and the best one where `validation` wants it.

    `setting` describes the training in the error of one that does not fit into memory.
    """

    validation: Validation | None = None

    def __init__(
        self,
        *args: Any,
        sharded: bool,
        keep: int,
        setting: str,
        **kw: Any,
    ) -> None:
        self.sharded, self.keep, self.setting = sharded, keep, setting
        super().__init__(*args, **kw)
        if self.args.deepspeed:
            zero3.require(self)
        if self.is_deepspeed_enabled:  # whose engine would step after every micro-batch
            self.accelerator.no_sync = lambda model: zero3.unsynced(self.accelerator)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """As UpdateTrainer's; out of memory becomes an error that names the update."""
        lengths = sorted(inputs.get("lengths") or (), reverse=True)
        what = f"in update {self.state.global_step + 1}, with examples of {_some(lengths)} tokens"
        with memory(what, self.setting):
            return super().training_step(model, inputs, num_items_in_batch)

    def mean_loss(self, updates: Any) -> float:
        """As UpdateTrainer's; shards are shards again afterwards."""
        loss = super().mean_loss(updates)
        if self.sharded:
            sharding.settle(self.model)
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The whole weights as a model folder; a checkpoint's are written with the optimizer."""
        if _internal_call and not self.is_deepspeed_enabled:
            return
        if not self.sharded:
            super().save_model(output_dir, _internal_call)
            return
        weights = sharding.gathered(self.model)
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        if not self.sharded:  # what is to be sharded may not fit on one device
            super()._move_model_to_device(model, device)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        path = Path(self.args.output_dir) / f"checkpoint-{step}"
        if checkpoints.damage(path) is None:
            return  # resumed from it and nothing was trained since
        try:
            super()._save_checkpoint(model, trial)
            self._meet()
            if self.args.should_save:
                checkpoints.seal(path, step, **self._told())
                checkpoints.prune(path.parent, self.keep, self._best())
            self._meet()  # others may look for the seal next
        except (OSError, RuntimeError, CheckpointException) as error:
            # torch's writers turn a full disk into errors of their own, which do not name it.
            own = "inline_container" in str(error) or "PytorchStreamWriter" in str(error)
            if isinstance(error, RuntimeError) and not own:
                raise
            if self.args.should_save:
                shutil.rmtree(path, ignore_errors=True)
            free = shutil.disk_usage(path.parent).free / 1e9
            raise DistillError(
                f"the checkpoint of update {step} could not be written to {path.parent}, where "
                f"{free:.2f} GB are free: {_last_line(error)}",
                "the last complete one is kept: make room and start the same command again",
            ) from error

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        path = Path(output_dir)
        path.mkdir(parents=True, exist_ok=True)
        if self.sharded:
            sharding.settle(self.model)
        checkpoints.write(path, self.model, self.optimizer)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), path / "scheduler.pt")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing: weights are read with the optimizer, once both are where they stay."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        path = Path(checkpoint)
        if self.sharded:
            sharding.settle(self.model)
        checkpoints.read(path, self.model, self.optimizer)
        self.lr_scheduler.load_state_dict(torch.load(path / "scheduler.pt", weights_only=True))
        rates = self.lr_scheduler.get_last_lr()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def _told(self) -> dict[str, Any]:
        """What a checkpoint remembers beside weights."""
        seen = self.validation
        return {
            "world": self.args.world_size,
            "zero3": bool(self.is_deepspeed_enabled),
            "losses": seen.losses if seen else {},
            "stopped": seen.stopped if seen else None,
        }

    def _best(self) -> set[int]:
        seen = self.validation
        return {seen.best} if seen and seen.keep_best and seen.best is not None else set()

    def _meet(self) -> None:
        """Wait for all processes."""
        if self.args.world_size > 1:
            torch.distributed.barrier()


@contextlib.contextmanager
def memory(what: str, setting: str) -> Iterator[None]:
    """Turn memory that does not suffice into an error that says when, and what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise DistillError(
            f"out of memory {what} ({setting}): {_last_line(error)}",
            "lower train.micro_batch_tokens or max_length, set gradient_checkpointing: true, use "
            "more processes with shard: fsdp (and offload: true), or method: lora or qlora; "
            "the same command goes on from the last checkpoint",
        ) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is torch's (or Python's) way to say that memory does not suffice."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(error)
    return "can't allocate memory" in said or "CUDA out of memory" in said


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1][:200] if lines else type(error).__name__


def _some(lengths: list[int], most: int = 8) -> str:
    shown = ", ".join(map(str, lengths[:most]))
    return shown + (f" and {len(lengths) - most} shorter ones of" if len(lengths) > most else "")
