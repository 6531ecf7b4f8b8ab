"""Where and in what precision a training computes, and how its tokens are laid out for that."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.students.packing import Layout


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


def layout_of(packing: bool, attention: str) -> Layout:
    """Kernels with variable lengths take one long row; others rows of equal width."""
    if not packing:
        return "padded"
    return "flat" if attention.startswith(("flash", "kernels-community")) else "rectangle"
