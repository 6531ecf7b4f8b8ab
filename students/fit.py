"""The fine-tuning itself: trl's trainer over our updates, and what is told of it at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import DataError, UsageError
from distill.students import (
    checkpoints,
    data,
    export,
    keeping,
    saving,
    sharding,
    trackers,
    weights,
    zero3,
)
from distill.students.arguments import arguments
from distill.students.hardware import Hardware, attention_cost, hardware, layout_of, packing_note
from distill.students.loading import Prepared
from distill.students.metering import Meter
from distill.students.validation import Validation

if TYPE_CHECKING:
    from distill.students.sft import Job


def fit(job: Job, prepared: Prepared) -> None:
    """Train what `job.prepare()` prepared, and write `student/` and `fit.json` (rank 0)."""
    with quiet():
        _fit(job, prepared)


def _fit(job: Job, prepared: Prepared) -> None:
    from transformers import set_seed

    from distill.students.progress import Progress
    from distill.students.trainer import Updates

    train = job.train
    on = hardware(train, prepared.config)
    rows = data.load(job.out / "tokens")
    planned = job.plan()
    settings = arguments(job, on, len(planned))  # starts the process group
    resume = _resume(job.out / "checkpoints", train, on)
    common = {
        "budget": int(train.get("micro_batch_tokens") or train["max_length"]),
        "layout": layout_of(bool(train.get("packing")), on.attention, prepared.config),
        "square": attention_cost(prepared.config),
        "pad": prepared.tokenizer.pad_token_id,
        "rank": on.replica,
        "world": on.replicas,
        "shared_by": on.context,
        "part": on.rank % on.context,
    }
    progress = Progress(
        job.out / "log.jsonl",
        len(rows),
        int(train["batch_size"]),
        resume.step,
        log=on.rank == 0,
        meter=Meter.of(prepared.entry.arch, job.config["student"], train, on),
        trackers=trackers.start(job) if on.rank == 0 else [],
    )
    set_seed(job.seed % 2**32)  # adapters start at random
    updates = Updates(rows, planned[: resume.told.get("stopped")], **common)
    trainer = _trainer(job, prepared, on, settings, updates, progress)
    held = _validation(job, trainer, progress, common, len(planned), resume)
    sizes = _ready(trainer, train, on)
    with saving.memory("while training", trainer.setting):
        trainer.train(resume_from_checkpoint=str(resume.path) if resume.path else None)
    summary = {
        **_summary(job, prepared, on, planned),
        **sizes,
        "updates": trainer.state.global_step,
        "layout": common["layout"],
        "shard": train.get("shard", "none") if on.world > 1 else "none",
        "tokens_per_second": round(progress.tokens_per_second, 1),
        **progress.told(),
        "train_seconds": round(time.monotonic() - progress.started, 2),
        "final_loss": progress.last_loss,
        "validation_examples": held,
        "validation_loss": progress.validation_loss,
        "resumed_from": resume.step or None,
        **keeping.keep(trainer, job, len(planned)),
        "notes": job.notes,
    }
    with zero3.plain_loading(getattr(settings, "hf_deepspeed_config", None)):
        export.finish(trainer, job, prepared, on, summary)


def _trainer(
    job: Job, prepared: Prepared, on: Hardware, settings: Any, updates: Any, progress: Any
) -> saving.SavingTrainer:
    student, train = job.config["student"], job.train
    sharded = sharding.sharded(train, on)
    setting = (
        f"method {student.get('method', 'full')}, micro_batch_tokens {updates.budget}, "
        f"processes {on.world}, shard {train.get('shard', 'none')}, "
        f"gradient_checkpointing {bool(train.get('gradient_checkpointing'))}"
    )
    with (
        saving.memory("while the base was loaded", setting),
        sharding.first_process_loads(sharded),
        zero3.plain_loading(getattr(settings, "hf_deepspeed_config", None)),
    ):
        model = weights.trainable(prepared, student, train, on)
    return saving.SavingTrainer(
        model=model,
        args=settings,
        train_dataset=updates.data,
        processing_class=prepared.tokenizer,
        data_collator=list,
        callbacks=[progress],
        peft_config=weights.adapter(prepared, student, train),
        updates=updates,
        bad_batch=job.out / "nan_batch.json",
        on_update=progress.on_update,
        sharded=sharded,
        keep=max(2, int(train.get("average") or 1)),
        setting=setting,
    )


def _validation(
    job: Job, trainer: Any, progress: Any, common: Mapping[str, Any], total: int, resume: Resume
) -> int:
    """Have the loss on the validation split logged; returns how many examples it has."""
    from distill.students.trainer import Updates

    train = job.train
    if not (job.out / "validation").is_dir():
        if checkpoints.chooses(train):
            raise DataError(
                f"train.keep and train.early_stop go by the validation loss: {job.validation_note}",
                "loosen train.max_length, or give other examples with train.development",
            )
        return 0
    rows, size = data.load(job.out / "validation"), int(train["batch_size"])
    parts = [list(range(at, min(at + size, len(rows)))) for at in range(0, len(rows), size)]
    held = Updates(rows, parts, **common)
    trainer.validation = Validation(
        lambda: trainer.mean_loss(held),
        total,
        progress,
        keep_best=train.get("keep") == "best",
        patience=train.get("early_stop"),
        losses={int(step): loss for step, loss in resume.told.get("losses", {}).items()},
    )
    trainer.add_callback(trainer.validation)
    return len(rows)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own bars and warnings: the progress line is ours."""
    from transformers.utils import logging as hf

    level, bars = hf.get_verbosity(), hf.is_progress_bar_enabled()
    hf.set_verbosity_error()
    hf.disable_progress_bar()
    try:
        yield
    finally:
        hf.set_verbosity(level)
        if bars:
            hf.enable_progress_bar()


@dataclass(frozen=True)
class Resume:
    """What to go on from; `path` is None for a start from the base."""

    path: Path | None = None
    step: int = 0
    told: Mapping[str, Any] = field(default_factory=dict)


def _resume(folder: Path, train: Mapping[str, Any], on: Hardware) -> Resume:
    """The checkpoint to go on from: all processes take the one that the first one found."""
    found: list[Any] = [None, {}]
    if on.rank == 0 and (path := checkpoints.last_complete(folder)):
        told = checkpoints.sealed(path)
        found = [path.name, {k: v for k, v in told.items() if k != "files"}]
    if on.world > 1:
        import torch.distributed as dist

        dist.broadcast_object_list(found)
    name, told = found
    if not name:
        return Resume()
    wanted = zero3.zero3(train, on)
    if told["zero3"] != wanted or (wanted and told["world"] != on.world):
        shard = "zero3" if told["zero3"] else "none or fsdp"
        raise UsageError(
            f"{folder / name} was written with train.shard: {shard} by {told['world']} processes, "
            "and the states of DeepSpeed fit only the same setting",
            f"set it back to go on, or remove {folder} to start anew",
        )
    return Resume(folder / name, int(told["step"]), told)


def _ready(trainer: saving.SavingTrainer, train: Mapping[str, Any], on: Hardware) -> dict[str, int]:
    """Last touches before training; returns the numbers of parameters."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainable = [p for p in trainer.model.parameters() if p.requires_grad]
    for parameter in trainable:
        # trl keeps QLoRA's adapters in bf16, where small updates are rounded away.
        if parameter.is_floating_point() and not trainer.is_deepspeed_enabled:
            parameter.data = parameter.data.float()
    sizes = {
        "params": int(trainer.model.num_parameters()),
        "trainable_params": sum(p.numel() for p in trainable),
    }
    if trainer.sharded:
        with saving.memory("while weights were sharded", trainer.setting):
            sharding.shard(trainer.model, train, on)
    return sizes


def _summary(job: Job, prepared: Prepared, on: Hardware, plan: list[list[int]]) -> dict[str, Any]:
    counts, train = job.counts, job.train
    seen = sum(len(u) for u in plan) / max(1, counts.examples)
    if counts.bad:
        reasons = "; ".join(f"{n}: {why}" for why, n in counts.bad.items())
        job.notes.append(f"{sum(counts.bad.values())} examples left out as untrainable ({reasons})")
    if prepared.entry.copy_of and prepared.entry.untrained:
        job.notes.append(
            f"the base has the config of {prepared.entry.copy_of}: "
            f"{', '.join(prepared.entry.untrained)} were taken as never trained"
        )
    if counts.too_long:
        job.notes.append(
            f"{counts.too_long} examples longer than {train['max_length']} tokens left out"
        )
    if job.validation_note:
        job.notes.append(job.validation_note)
    if note := packing_note(train, prepared.config):
        job.notes.append(note)
    return {
        "examples": counts.examples,
        "left_out_too_long": counts.too_long,
        "left_out_bad": sum(counts.bad.values()),
        "longest": counts.longest,
        "tokens": counts.tokens,
        "trained_tokens": counts.trained_tokens,
        "epochs": round(seen, 4),
        "method": job.config["student"].get("method", "full"),
        "device": on.device,
        "processes": on.world,
        "precision": on.precision,
        "attention": on.attention,
        "kernels": on.kernels,
        "context_parallel": on.context,
        "template": prepared.template,
        "positions": prepared.positions,
    }
