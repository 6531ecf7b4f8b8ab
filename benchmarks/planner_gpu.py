"""Peaks of real architectures on a GPU: random weights, one update, the allocator's own count."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.planner_flops import KINDS, config_of
from distill.errors import UsageError
from distill.students import attention
from distill.students.catalog import Arch, find
from distill.students.head import add_nll_head
from distill.students.memory import Method, Parts, Setting, estimate

RANK = 32


@dataclasses.dataclass(frozen=True)
class Step:
    base: str
    tokens: int
    method: Method = "full"
    checkpointing: bool = True

    @property
    def name(self) -> str:
        saved = ", checkpointed" if self.checkpointing else ""
        return f"{self.base.rpartition('/')[2]}, {self.tokens:,} tokens, {self.method}{saved}"


SMALL, LARGE = "Qwen/Qwen2.5-Math-1.5B", "Qwen/Qwen2.5-Math-7B"
FEW = tuple(Step(SMALL, n, m) for m in ("full", "lora") for n in (4096, 16384, 32768))
MORE = (
    *(Step(LARGE, n, "lora") for n in (4096, 16384, 32768)),
    Step(SMALL, 4096, "full", checkpointing=False),
    Step(LARGE, 4096, "full"),
)


def rows(more: bool) -> Iterator[tuple[str, Parts, int]]:
    """(name, predicted, torch.cuda.max_memory_allocated) of each step that fits."""
    if not torch.cuda.is_available():
        raise UsageError("--gpu needs a GPU", "leave it out: tensors are counted on the CPU")
    attention.register()
    total = torch.cuda.get_device_properties(0).total_memory
    for step in (*FEW, *MORE) if more else FEW:
        arch = find(step.base).arch
        assert arch is not None
        setting = Setting(
            tokens=step.tokens,
            longest=step.tokens,
            method=step.method,
            rank=RANK,
            layout="padded",
            checkpointing=step.checkpointing,
            accumulates=True,
        )
        predicted = estimate(arch, setting)
        if predicted.total > total:
            print(f"{step.name}: predicted {predicted.total / 1e9:.0f} GB do not fit, not run")
            continue
        yield step.name, predicted, _measure(step, arch)


def _measure(step: Step, arch: Arch) -> int:
    kind = KINDS[find(step.base).family]
    full = step.method == "full"
    with torch.device("cuda"):
        model: Any = AutoModelForCausalLM.from_config(
            config_of(arch, kind, max(32768, step.tokens)),
            attn_implementation=attention.VARLEN,
            dtype=torch.float32 if full else torch.bfloat16,
        )
    add_nll_head(model)
    if not full:
        from peft import LoraConfig, get_peft_model

        adapter = LoraConfig(task_type="CAUSAL_LM", r=RANK, target_modules="all-linear")
        model = get_peft_model(model, adapter)
    model.train()
    if step.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if not full:
            model.enable_input_require_grads()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    ids = torch.randint(0, arch.vocab, (1, step.tokens), device="cuda")
    for update in range(2):
        for _ in range(2):
            with torch.autocast("cuda", torch.bfloat16):
                loss = model(input_ids=ids, nll=ids, use_cache=False)
            (loss / ids.numel()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if update == 0:
            torch.cuda.reset_peak_memory_stats()
    peak = int(torch.cuda.max_memory_allocated())
    del model, optimizer, trained, loss
    gc.collect()
    torch.cuda.empty_cache()
    return peak
