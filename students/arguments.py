"""What trl's trainer is told: schedule, precision, checkpoints, sharding, trackers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from distill.students import sharding, zero3
from distill.students.hardware import Hardware

if TYPE_CHECKING:
    from distill.students.sft import Job


def arguments(job: Job, on: Hardware, total: int) -> Any:
    from trl import SFTConfig

    train = job.train
    options: dict[str, Any] = {}
    if zero3.zero3(train, on):
        options |= {"deepspeed": zero3.settings(train, on), **zero3.processes_on_a_cpu(on)}
    elif on.device == "cpu":
        options |= {"use_cpu": True}
        if on.world > 1:
            options |= {"ddp_backend": "gloo"}
    elif sharding.sharded(train, on) and train.get("offload"):
        # Shards that lie in the machine's memory are summed there: gradients' norm, loading.
        options |= {"ddp_backend": "cpu:gloo,cuda:nccl"}
    return SFTConfig(
        output_dir=str(job.out / "checkpoints"),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        num_train_epochs=1,
        learning_rate=float(train["learning_rate"]),
        lr_scheduler_type="cosine_warmup_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": float(train["min_lr_ratio"])},
        warmup_steps=math.ceil(float(train["warmup_ratio"]) * total),
        weight_decay=float(train["weight_decay"]),
        max_grad_norm=float(train["max_grad_norm"]),
        adam_beta2=float(train["adam_beta2"]),
        optim="adamw_torch_fused",
        bf16=on.precision == "bf16",
        gradient_checkpointing=bool(train.get("gradient_checkpointing")),
        gradient_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=min(10, max(1, total // 50)),
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=int(train.get("save_every") or 100),
        report_to="none",
        seed=job.seed % 2**32,
        disable_tqdm=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        **options,
    )
