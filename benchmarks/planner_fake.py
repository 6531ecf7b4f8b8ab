"""Peaks of real architectures at real lengths, without their memory: tensors without data.

The student's own modules and head run forward and backward under torch's FakeTensorMode: shapes,
kinds and lifetimes are those of a real run, only the numbers are missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM

from benchmarks.planner_flops import KINDS, config_of
from benchmarks.planner_tally import Tally, held
from distill.students import attention, head, pass_heads
from distill.students.catalog import Arch, find
from distill.students.memory import Parts, Setting, estimate


@dataclasses.dataclass(frozen=True)
class Fake:
    """A base of the catalog, the tokens of one example, and how it is trained in full."""

    base: str
    tokens: int
    precision: str = "bf16"
    checkpointing: bool = True

    @property
    def name(self) -> str:
        kind = f"{self.precision}{', checkpointed' if self.checkpointing else ''}"
        return f"{self.base.rpartition('/')[2]}, {self.tokens:,} tokens, full {kind}"


FEW = (
    Fake("Qwen/Qwen2.5-Math-1.5B", 4096, checkpointing=False),
    Fake("Qwen/Qwen2.5-Math-1.5B", 32768),
    Fake("Qwen/Qwen2.5-Math-7B", 32768),
    Fake("meta-llama/Llama-3.3-70B-Instruct", 32768),
)
MORE = (
    Fake("Qwen/Qwen2.5-Math-1.5B", 32768, "fp32"),
    Fake("Qwen/Qwen3-8B-Base", 16384),
    Fake("Qwen/Qwen3-8B-Base", 4096, checkpointing=False),
    Fake("meta-llama/Llama-3.1-8B", 32768),
    Fake("HuggingFaceTB/SmolLM2-135M", 8192, "fp32", checkpointing=False),
)


def rows(more: bool) -> Iterator[tuple[str, Parts, int]]:
    """(name, predicted, peak bytes of fake tensors) of each."""
    for case in (*FEW, *MORE) if more else FEW:
        predicted, measured = run(case)
        yield case.name, predicted, measured


def run(case: Fake) -> tuple[Parts, int]:
    """One forward and backward pass of the first update (no optimizer states yet)."""
    entry = find(case.base)
    arch = entry.arch
    assert arch is not None
    # Pieces of the head as large as on a GPU: a thousand small ones would take minutes here.
    with (
        mock.patch.object(head, "CPU_LOGITS_BYTES", head.GPU_LOGITS_BYTES),
        mock.patch.object(pass_heads, "CPU_LOGITS_BYTES", head.GPU_LOGITS_BYTES),
    ):
        return _run(case, entry.family, arch)


def _run(case: Fake, family: str, arch: Arch) -> tuple[Parts, int]:
    with FakeTensorMode():
        config = config_of(arch, KINDS[family])
        # transformers would build a causal mask that a real run does without.
        attention.register()
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.VARLEN)
        model.train()
        if case.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        ids = torch.zeros((1, case.tokens), dtype=torch.long)
        tally = Tally()
        tally.add(held(model))
        with tally:
            _pass(model, ids, case.precision == "bf16")
    setting = Setting(
        tokens=case.tokens,
        longest=case.tokens,
        precision="bf16" if case.precision == "bf16" else "fp32",
        layout="padded",
        checkpointing=case.checkpointing,
        accumulates=False,
        device="cpu",
    )
    parts = estimate.__wrapped__(arch, setting)  # not the cache: pieces have another size here
    return dataclasses.replace(parts, optimiser=0), tally.peak


def _pass(model: Any, ids: torch.Tensor, bf16: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        hidden = model.base_model(ids, use_cache=False).last_hidden_state
        # Which positions are trained is data; all of them, in the words that need none.
        picked = hidden.flatten(0, 1).index_select(0, torch.arange(ids.numel()))
        del hidden
        loss = head._of_plain_head(picked, model.get_output_embeddings().weight, ids.flatten())
        del picked
    loss.backward()
