"""The fine-tuning itself: weights, adapter, trl's trainer, and the student's folder at the end."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import MissingExtra, UsageError
from distill.students import checkpoints, data, export
from distill.students.loading import Prepared, load_model
from distill.students.packing import Layout

if TYPE_CHECKING:
    from distill.students.sft import Job

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where and in what precision this training computes."""

    device: str
    precision: str
    attention: str
    rank: int = 0
    world: int = 1

    @property
    def dtype(self) -> Any:
        import torch

        return torch.bfloat16 if self.precision == "bf16" else torch.float32


def hardware(train: Mapping[str, Any]) -> Hardware:
    """bf16 where the GPU has it, fp32 on a CPU; flash attention where it is installed."""
    import torch

    gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU") != "1"
    precision = train.get("precision") or "auto"
    if precision == "auto":
        precision = "bf16" if gpu and torch.cuda.is_bf16_supported() else "fp32"
    attention = train.get("attention")
    if not attention:
        flash = gpu and precision == "bf16" and importlib.util.find_spec("flash_attn")
        attention = "flash_attention_2" if flash else "sdpa"
    return Hardware(
        device=torch.cuda.get_device_name(0) if gpu else "cpu",
        precision=precision,
        attention=attention,
        rank=int(os.environ.get("RANK", "0")),
        world=int(os.environ.get("WORLD_SIZE", "1")),
    )


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
    arguments = _arguments(job, on, len(plan))  # first: it tells from_pretrained about FSDP
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
        model=_model(prepared, student, train, on),
        args=arguments,
        train_dataset=rows,
        processing_class=prepared.tokenizer,
        data_collator=list,
        callbacks=[progress],
        peft_config=_lora(prepared, student, train),
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
    _export(trainer, job, prepared, on, summary)


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


def layout_of(packing: bool, attention: str) -> Layout:
    """Kernels with variable lengths take one long row; others rows of equal width."""
    if not packing:
        return "padded"
    return "flat" if attention.startswith(("flash", "kernels-community")) else "rectangle"


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


def _model(
    prepared: Prepared, student: Mapping[str, Any], train: Mapping[str, Any], on: Hardware
) -> Any:
    import torch

    method = student.get("method", "full")
    options: dict[str, Any] = {"attn_implementation": on.attention}
    # Full fine-tuning keeps fp32 weights under bf16 autocast: an update of 1e-5 would be
    # rounded away in bf16. A frozen base has nothing to lose.
    options["dtype"] = torch.float32 if method == "full" else on.dtype
    if method == "qlora":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise MissingExtra("bitsandbytes", "qlora", "student.method: qlora")
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=on.dtype,
        )
        local = int(os.environ.get("LOCAL_RANK", "0"))
        options["device_map"] = {"": "cpu" if on.device == "cpu" else local}
    return load_model(prepared, student, **options)


def _lora(prepared: Prepared, student: Mapping[str, Any], train: Mapping[str, Any]) -> Any:
    """LoRA on all linear layers (LoRA Without Regret, Thinking Machines 2025), or None."""
    if student.get("method", "full") == "full":
        return None
    from peft import LoraConfig

    lora = train["lora"]
    options: dict[str, Any] = {}
    if prepared.new_tokens:
        # Rows of tokens that the base never saw mean nothing until they are trained.
        new = list(prepared.new_tokens)
        tied = prepared.config.get_text_config().tie_word_embeddings
        rows = {"embed_tokens": new} if tied else {"embed_tokens": new, "lm_head": new}
        options["trainable_token_indices"] = rows
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=int(lora["rank"]),
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules="all-linear",
        **options,
    )


def _arguments(job: Job, on: Hardware, total: int) -> Any:
    from trl import SFTConfig

    train = job.train
    trackers = list(train.get("trackers") or [])
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f"train.trackers: [{name}] needs the package '{name}', which is not installed",
                f"pip install {name}",
            )
    options: dict[str, Any] = {}
    if on.device == "cpu":
        options |= {"use_cpu": True}
        if on.world > 1:
            options |= {"ddp_backend": "gloo"}
    if train.get("fsdp") and on.world > 1:
        if on.device == "cpu":
            raise UsageError(
                "train.fsdp: true needs GPUs; accelerate shards nothing on a CPU",
                "leave it out: processes on a CPU use DDP",
            )
        # Only the first process reads the weights; the others get their shards from it.
        os.environ["ACCELERATE_USE_FSDP"] = "true"
        sharding = {"version": 2, "reshard_after_forward": True, "cpu_ram_efficient_loading": True}
        sharding["activation_checkpointing"] = bool(train.get("gradient_checkpointing"))
        options |= {"fsdp": True, "fsdp_config": sharding}
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
        bf16=on.precision == "bf16",
        gradient_checkpointing=bool(train.get("gradient_checkpointing")) and "fsdp" not in options,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=min(10, max(1, total // 50)),
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=int(train.get("save_every") or 100),
        save_total_limit=2,
        report_to=trackers or "none",
        seed=job.seed % 2**32,
        disable_tqdm=True,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        **options,
    )


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


def _export(
    trainer: Any, job: Job, prepared: Prepared, on: Hardware, summary: dict[str, Any]
) -> None:
    """Write the student's folder (rank 0)."""
    student = job.config["student"]
    card = export.card(
        prepared, job.config, summary, (job.config.get("card") or {}).get("name", "")
    )
    if student.get("method", "full") != "full":
        trainer.save_model(str(job.out / "adapter"))
        (job.out / "adapter" / "training_args.bin").unlink(missing_ok=True)
        model = (
            export.merge(job.out / "adapter", prepared, student, on.dtype) if on.rank == 0 else None
        )
    elif trainer.is_fsdp_enabled:
        gathered = job.out / ".weights"
        trainer.save_model(str(gathered))
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(gathered) if on.rank == 0 else None
    else:
        model = trainer.accelerator.unwrap_model(trainer.model)
    if on.rank == 0:
        export.save(model, prepared, job.student, on.dtype, card)
        (job.out / "fit.json").write_text(json.dumps(summary), encoding="utf-8")
