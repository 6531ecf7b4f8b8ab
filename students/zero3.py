"""Weights, gradients and optimizer states in shards by DeepSpeed's ZeRO-3, as transformers runs it.

FSDP2 (`sharding.py`) does the same with torch alone and is what this project tests most; this is
for those who have DeepSpeed running. Its checkpoints fit only the same number of processes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from typing import Any

from distill.errors import DistillError, MissingExtra
from distill.students.hardware import Hardware


def zero3(train: Mapping[str, Any], on: Hardware) -> bool:
    """Whether this training shards with DeepSpeed."""
    return train.get("shard") == "zero3" and on.world > 1


def settings(train: Mapping[str, Any], on: Hardware) -> dict[str, Any]:
    """DeepSpeed's configuration. Raises MissingExtra where it is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise MissingExtra("deepspeed", "deepspeed", "train.shard: zero3")
    stage: dict[str, Any] = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}
    if train.get("offload"):
        place = {"device": "cpu", "pin_memory": on.device != "cpu"}
        stage |= {"offload_optimizer": place, "offload_param": place}
    return {
        "zero_optimization": stage,
        "bf16": {"enabled": on.precision == "bf16"},
        "gradient_clipping": "auto",
        # An update is what our loader gives, whatever DeepSpeed takes for a batch.
        "gradient_accumulation_steps": 1,
        "train_micro_batch_size_per_gpu": 1,
        # torch's AdamW; DeepSpeed's own would have to be compiled.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


@contextlib.contextmanager
def plain_loading(config: Any) -> Iterator[None]:
    """Within it, `from_pretrained` loads whole weights: rows of new tokens are set in them.

    `config` is the trainer's `hf_deepspeed_config`, or None without DeepSpeed.
    """
    if config is None:
        yield
        return
    from transformers.integrations import deepspeed

    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed.set_hf_deepspeed_config(config)


def processes_on_a_cpu(on: Hardware) -> dict[str, Any]:
    """More for the trainer's arguments where there is no GPU; nothing where there is one.

    accelerate knows CPU processes and DeepSpeed, not both at once: it is given its state.
    """
    if on.device != "cpu":
        return {}
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    state = PartialState(cpu=True, backend="gloo")
    state.distributed_type = DistributedType.DEEPSPEED
    os.environ.pop("ACCELERATE_USE_CPU", None)  # told to use the CPU, it leaves DeepSpeed out
    return {"accelerator_config": {"use_configured_state": True}}


def require(trainer: Any) -> None:
    """Raise where the trainer would shard nothing: accelerate falls back to DDP unasked."""
    from accelerate.utils import DistributedType

    if trainer.accelerator.distributed_type != DistributedType.DEEPSPEED:
        raise DistillError(
            f"train.shard: zero3, and accelerate set up {trainer.accelerator.distributed_type}",
            "use shard: fsdp, which needs nothing but torch",
        )


@contextlib.contextmanager
def unsynced(accelerator: Any) -> Iterator[None]:
    """Within it a backward pass only adds to the gradients: accelerate steps after any other."""
    state = accelerator.gradient_state
    state._set_sync_gradients(False)
    try:
        yield
    finally:
        state._set_sync_gradients(True)
