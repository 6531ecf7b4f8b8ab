"""The student as others get it: a plain, complete model folder with a card."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.students import adapter as lora
from distill.students import data
from distill.students.hardware import Hardware
from distill.students.loading import Prepared, set_generation
from distill.students.sharding import unsharded

if TYPE_CHECKING:
    from distill.students.sft import Job

PROBES, PROBE_TOKENS = 3, 256
"""Examples, and tokens of each, by which a merged adapter is compared with the unmerged one."""


def save(model: Any, prepared: Prepared, folder: Path, dtype: Any, card: str) -> None:
    """Write weights (safetensors, cast to `dtype`), config, generation config, tokenizer with
    its chat template, and the card; under a temporary name first."""
    model = model.to(dtype)
    model.config.dtype = dtype
    model.config.use_cache = True  # the Trainer switches it off
    set_generation(model, prepared.tokenizer)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    prepared.tokenizer.save_pretrained(temporary)
    (temporary / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def card(
    prepared: Prepared, config: Mapping[str, Any], counts: Mapping[str, Any], recipe: str
) -> str:
    """README.md of the student: what it is, how it was made, how it is to be prompted."""
    student, train = config["student"], config["train"]
    entry = prepared.entry
    told = dict(config.get("card") or {})
    # A stage starts from the student of the stage before; the base is that of the first one.
    base = str(told.get("base") or entry.base)
    more = {k: v for k, v in told.items() if k not in ("name", "recipe", "base")}
    kept, long = counts["examples"], counts["left_out_too_long"]
    lines = [
        "---",
        f"base_model: {base}",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [distill, reasoning, sft]",
        "---",
        "",
        f"# {recipe or 'student'}",
        "",
        f"A reasoning model distilled into `{base}` with distill"
        + (f" by the recipe `{recipe}`." if recipe else "."),
        "",
        "| | |",
        "|---|---|",
        f"| base | {base}{_of(entry.licence)} |",
        f"| method | {student.get('method', 'full')} fine-tuning |",
        f"| examples | {kept:,} ({long:,} too long: left out) |",
        f"| tokens per epoch | {counts['tokens']:,} ({counts['trained_tokens']:,} trained) |",
        f"| training | {counts['updates']:,} updates of {train.get('batch_size')} examples, "
        f"{train.get('epochs')} epochs, peak learning rate {train.get('learning_rate')} |",
        f"| positions | {prepared.positions:,} |",
        f"| chat template | {prepared.template} (in the tokenizer) |",
        *(f"| {key} | {value} |" for key, value in more.items()),
        "",
        "Sample at temperature 0.6 and top-p 0.95 (in `generation_config.json`), without a system",
        "prompt. The answer is `<think>...</think>` and what follows it"
        + ("; the prompt already opens `<think>`." if prepared.spec.prefill else "."),
        "",
    ]
    return "\n".join(lines)


def _of(licence: str) -> str:
    return f" ({licence})" if licence else ""


def probes(tokens: Path) -> list[list[int]]:
    """Token ids of the first examples of a training: what merging an adapter is checked with."""
    rows = data.load(tokens)
    return [list(rows[i]["input_ids"][:PROBE_TOKENS]) for i in range(min(PROBES, len(rows)))]


def count_rows(prepared: Prepared, summary: dict[str, Any]) -> None:
    """Say by how many rows the embedding grew, because the tokenizer had more tokens than it."""
    arch = prepared.entry.arch
    added = max(0, prepared.vocab - arch.vocab) if arch is not None else 0
    summary["embedding_rows_added"] = added
    if added:
        summary["notes"] = [
            *summary.get("notes", []),
            f"{added} rows were added to the embedding: its tokenizer has more tokens than it had",
        ]


def finish(
    trainer: Any, job: Job, prepared: Prepared, on: Hardware, summary: dict[str, Any]
) -> None:
    """Write the student's folder (rank 0)."""
    student = job.config["student"]
    count_rows(prepared, summary)
    text = card(prepared, job.config, summary, (job.config.get("card") or {}).get("name", ""))
    if student.get("method", "full") != "full":
        trainer.save_model(str(job.out / "adapter"))
        (job.out / "adapter" / "training_args.bin").unlink(missing_ok=True)
        model = None
        if on.rank == 0:
            probe = probes(job.out / "tokens")
            model, found = lora.merge(job.out / "adapter", prepared, student, on.dtype, probe)
            summary["merge_logits_max_diff"] = found
    elif trainer.sharded:
        model = unsharded(trainer.model)
    elif trainer.is_deepspeed_enabled:
        gathered = job.out / ".weights"
        trainer.save_model(str(gathered))
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(gathered) if on.rank == 0 else None
    else:
        model = trainer.accelerator.unwrap_model(trainer.model)
    if on.rank == 0:
        save(model, prepared, job.student, on.dtype, text)
        (job.out / "fit.json").write_text(json.dumps(summary), encoding="utf-8")
