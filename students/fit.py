"""The fine-tuning itself: trl's trainer over our updates, and what is told of it at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.students import checkpoints, data, export, weights
from distill.students.arguments import arguments
from distill.students.hardware import Hardware, hardware, layout_of
from distill.students.loading import Prepared

if TYPE_CHECKING:
    from distill.students.sft import Job


def fit(job: Job, prepared: Prepared) -> None:
    """Train what `job.prepare()` prepared, and write `student/` and `fit.json` (rank 0)."""
    with quiet():
        _fit(job, prepared)


def _fit(job: Job, prepared: Prepared) -> None:
    from distill.students.progress import Progress
    from distill.students.trainer import Updates, UpdateTrainer

    student, train = job.config["student"], job.train
    on = hardware(train)
    rows = data.load(job.out / "tokens")
    plan = job.plan()
    layout = layout_of(bool(train.get("packing")), on.attention)
    budget = int(train.get("micro_batch_tokens") or train["max_length"])
    resume = checkpoints.last_complete(job.out / "checkpoints") if on.rank == 0 else None
    resume = _agree(resume, job.out / "checkpoints", on)
    resumed = int(resume.name.rpartition("-")[2]) if resume else 0
    told = arguments(job, on, len(plan))  # first: it tells from_pretrained about FSDP
    progress = Progress(
        job.out / "log.jsonl", len(rows), int(train["batch_size"]), resumed, log=on.rank == 0
    )
    common = {
        "budget": budget,
        "layout": layout,
        "pad": prepared.tokenizer.pad_token_id,
        "rank": on.rank,
        "world": on.world,
    }
    trainer = UpdateTrainer(
        model=weights.trainable(prepared, student, train, on),
        args=told,
        train_dataset=rows,
        processing_class=prepared.tokenizer,
        data_collator=list,
        callbacks=[progress],
        peft_config=weights.adapter(prepared, student, train),
        updates=Updates(rows, plan, **common),
        bad_batch=job.out / "nan_batch.json",
        on_update=progress.on_update,
    )
    held = _validation(job, trainer, progress, common)
    sizes = _ready(trainer)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    summary = {
        **_summary(job, prepared, on, plan),
        **sizes,
        "layout": layout,
        "tokens_per_second": round(progress.tokens_per_second, 1),
        "train_seconds": round(time.monotonic() - progress.started, 2),
        "final_loss": progress.last_loss,
        "validation_examples": held,
        "validation_loss": progress.validation_loss,
        "resumed_from": resumed or None,
        "notes": job.notes,
    }
    export.finish(trainer, job, prepared, on, summary)


def _validation(job: Job, trainer: Any, progress: Any, common: Mapping[str, Any]) -> int:
    """Have the loss on the validation split logged; returns how many examples it has."""
    from distill.students.trainer import Updates
    from distill.students.validation import Validation

    if not (job.out / "validation").is_dir():
        return 0
    rows, size = data.load(job.out / "validation"), int(job.train["batch_size"])
    parts = [list(range(at, min(at + size, len(rows)))) for at in range(0, len(rows), size)]
    held = Updates(rows, parts, **common)
    total = len(trainer.updates)
    trainer.add_callback(Validation(lambda: trainer.mean_loss(held), total, progress))
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


def _agree(resume: Path | None, folder: Path, on: Hardware) -> Path | None:
    """All processes go on from the checkpoint that the first one chose."""
    if on.world == 1:
        return resume
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=on.device == "cpu")
    told: list[str | None] = [resume.name if resume else None]
    name = broadcast_object_list(told)[0]
    return folder / name if name else None


def _ready(trainer: Any) -> dict[str, int]:
    """Last touches before training; returns the numbers of parameters."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainable = [p for p in trainer.model.parameters() if p.requires_grad]
    for parameter in trainable:
        # trl keeps QLoRA's adapters in bf16, where small updates are rounded away.
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    return {
        "params": int(trainer.model.num_parameters()),
        "trainable_params": sum(p.numel() for p in trainable),
    }


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
    return {
        "examples": counts.examples,
        "left_out_too_long": counts.too_long,
        "left_out_bad": sum(counts.bad.values()),
        "longest": counts.longest,
        "tokens": counts.tokens,
        "trained_tokens": counts.trained_tokens,
        "updates": len(plan),
        "epochs": round(seen, 4),
        "method": job.config["student"].get("method", "full"),
        "device": on.device,
        "processes": on.world,
        "precision": on.precision,
        "attention": on.attention,
        "template": prepared.template,
        "positions": prepared.positions,
    }
