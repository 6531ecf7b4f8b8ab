"""FLOPs and parameters: the formulas of students/flops.py against torch's counter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import AutoConfig, AutoModelForCausalLM

from distill.students import flops
from distill.students.catalog import Arch, bases, find

KINDS = {"qwen2": "qwen2", "qwen3": "qwen3", "llama3": "llama", "smollm2": "llama"}
RANK = 4


@dataclass(frozen=True)
class Count:
    """A number predicted and counted."""

    name: str
    predicted: int
    counted: int

    @property
    def ratio(self) -> float:
        return self.predicted / self.counted


def config_of(arch: Arch, kind: str, positions: int = 32768) -> Any:
    """transformers' config of an architecture of the catalog."""
    return AutoConfig.for_model(
        kind,
        vocab_size=arch.vocab,
        hidden_size=arch.hidden,
        intermediate_size=arch.intermediate,
        num_hidden_layers=arch.layers,
        num_attention_heads=arch.heads,
        num_key_value_heads=arch.kv_heads,
        head_dim=arch.head_dim or arch.hidden // arch.heads,
        tie_word_embeddings=arch.tied,
        max_position_embeddings=positions,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )


def parameters() -> Iterator[Count]:
    """Weights of every base of the catalog, against transformers' own model on no device."""
    for base in bases():
        entry = find(base)
        if entry.arch is None or entry.family not in KINDS:
            continue
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config_of(entry.arch, KINDS[entry.family]))
        yield Count(base, entry.arch.params, sum(p.numel() for p in model.parameters()))


def counted_flops() -> Iterator[Count]:
    """Forward passes and trainings of small models, attention counted as full squares."""
    shapes = {
        "llama": Arch(64, 3, 4, 2, 192, 400, tied=False),
        "qwen2": Arch(96, 2, 6, 2, 160, 700, tied=True, qkv_bias=True),
        "qwen3": Arch(64, 2, 4, 2, 128, 300, tied=False, head_dim=32, qk_norm=True),
    }
    for kind, arch in shapes.items():
        yield _forward(kind, arch)
        for method in ("full", "lora"):
            for checkpointing in (False, True):
                yield _training(kind, arch, method, checkpointing)


def _model(kind: str, arch: Arch, method: str, checkpointing: bool) -> Any:
    from distill.students.head import add_nll_head

    model = AutoModelForCausalLM.from_config(config_of(arch, kind), attn_implementation="sdpa")
    add_nll_head(model)
    model.train()
    if method == "lora":
        from peft import LoraConfig, get_peft_model

        adapter = LoraConfig(task_type="CAUSAL_LM", r=RANK, target_modules="all-linear")
        model = get_peft_model(model, adapter)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if method == "lora":
            model.enable_input_require_grads()
    return model


def _forward(kind: str, arch: Arch) -> Count:
    model, ids = _model(kind, arch, "full", False), _ids(arch)
    with torch.no_grad(), _counter() as counter:
        model(ids, use_cache=False)
    predicted = flops.forward_flops(arch, [ids.shape[1]] * 2, causal=False)
    return Count(f"{kind} forward", predicted, counter.get_total_flops())


def _training(kind: str, arch: Arch, method: str, checkpointing: bool) -> Count:
    model, ids = _model(kind, arch, method, checkpointing), _ids(arch)
    labels = ids.clone()
    labels[:, :10] = -100
    with _counter() as counter:
        model(input_ids=ids, nll=labels, use_cache=False).backward()
    predicted = flops.hardware_flops(
        arch,
        [ids.shape[1]] * 2,
        method,
        rank=RANK,
        checkpointing=checkpointing,
        trained=int((labels >= 0).sum()),
        causal=False,
    )
    name = f"{kind} {method}{', checkpointed' if checkpointing else ''}"
    return Count(name, predicted, counter.get_total_flops())


def _ids(arch: Arch) -> torch.Tensor:
    return torch.arange(2 * 90).view(2, 90) % arch.vocab


def _counter() -> FlopCounterMode:
    """torch's counter, told of fused attention on a CPU and of products that add in place."""

    def forward(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(q, k, v))

    def backward(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_backward_flop_count(grad, q, k, v))

    def added(_: Any, a: Any, b: Any, *__: Any, **___: Any) -> int:
        return int(2 * a[0] * a[1] * b[1])

    aten = torch.ops.aten
    known = {
        aten.addmm_: added,
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    return FlopCounterMode(display=False, custom_mapping=known)
