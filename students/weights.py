"""The weights that are trained: the base by its method, and the adapter on top of it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from distill.errors import MissingExtra
from distill.students import attention, kernels
from distill.students.hardware import Hardware
from distill.students.loading import Prepared, load_model


def trainable(
    prepared: Prepared, student: Mapping[str, Any], train: Mapping[str, Any], on: Hardware
) -> Any:
    """The base in the precision of its method, on whose weights (or adapter) training works."""
    import torch

    attention.register(on.context)
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
    model = load_model(prepared, student, **options)
    if on.kernels == "liger":
        kernels.apply(model)
    return model


def adapter(prepared: Prepared, student: Mapping[str, Any], train: Mapping[str, Any]) -> Any:
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
