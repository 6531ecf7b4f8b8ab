"""Where and in what precision a training computes, and how its tokens are laid out for that."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.errors import UsageError
from distill.students import attention as ours
from distill.students import kernels
from distill.students.packing import Layout


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where and in what precision this training computes."""

    device: str
    precision: str
    attention: str
    rank: int = 0
    world: int = 1
    context: int = 1
    """Processes that share one row of tokens (train.context_parallel)."""

    kernels: str = "torch"

    @property
    def replica(self) -> int:
        """Which of the `replicas` this process belongs to; each gets micro-batches of its own."""
        return self.rank // self.context

    @property
    def replicas(self) -> int:
        return self.world // self.context

    @property
    def dtype(self) -> Any:
        import torch

        return torch.bfloat16 if self.precision == "bf16" else torch.float32


def hardware(train: Mapping[str, Any], config: Any = None) -> Hardware:
    """bf16 where the GPU has it, fp32 on a CPU; the fastest attention that this model can use.

    `config` is the model's: with it, packed examples get attention of variable lengths
    (attention.py) where neither `train.attention` nor an installed flash-attn decides.
    """
    import torch

    gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU") != "1"
    precision = train.get("precision") or "auto"
    if precision == "auto":
        precision = "bf16" if gpu and torch.cuda.is_bf16_supported() else "fp32"
    context = int(train.get("context_parallel") or 1)
    attention = ours.VARLEN if context > 1 else train.get("attention")
    if not attention:
        flash = gpu and precision == "bf16" and importlib.util.find_spec("flash_attn")
        attention = "flash_attention_2" if flash else _attention(train, config)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    _check_context(context, world, train, config)
    return Hardware(
        device=torch.cuda.get_device_name(0) if gpu else "cpu",
        precision=precision,
        attention=attention,
        rank=int(os.environ.get("RANK", "0")),
        world=world,
        context=context,
        kernels=kernels.choose(train.get("kernels") or "auto", gpu, config),
    )


def _check_context(context: int, world: int, train: Mapping[str, Any], config: Any) -> None:
    """Refuse what cannot go with train.context_parallel."""
    if context == 1:
        return
    if world % context:
        raise UsageError(
            f"train.context_parallel: {context} processes are to share a row, of {world} in all",
            f"set processes (and nodes) so that their number is a multiple of {context}",
        )
    if not train.get("packing"):
        raise UsageError(
            "train.context_parallel splits packed rows, and train.packing is false",
            "set train.packing: true; bounds between examples hold all the same",
        )
    if train.get("attention") not in (None, "", ours.VARLEN):
        raise UsageError(
            f"train.attention: {train['attention']} cannot share a row between processes",
            "leave train.attention out with train.context_parallel",
        )
    why = config is not None and (
        ours.unpackable(config)
        or ours.unsupported(config)
        or ("" if ours.understood(config) else "its attention is its own code")
    )
    if why:
        raise UsageError(
            f"train.context_parallel cannot split this base: {why}",
            "leave train.context_parallel out; shard: fsdp and gradient_checkpointing save memory",
        )


def _attention(train: Mapping[str, Any], config: Any) -> str:
    if config is None:
        return "sdpa"
    if ours.unsupported(config):
        return "eager"  # sdpa would leave out what it cannot compute
    packs = train.get("packing") and not ours.unpackable(config)
    return ours.VARLEN if packs and ours.understood(config) else "sdpa"


def layout_of(packing: bool, attention: str, config: Any = None) -> Layout:
    """Attention of variable lengths takes one long row; masks take rows of equal width.

    A model whose examples cannot share a row (`attention.unpackable`) is never packed.
    """
    if not packing or (config is not None and ours.unpackable(config)):
        return "padded"
    flat = attention == ours.VARLEN or attention.startswith(("flash", "kernels-community"))
    return "flat" if flat else "rectangle"


def packing_note(train: Mapping[str, Any], config: Any) -> str:
    """What a reader must know where `train.packing` is not done, or ""."""
    why = ours.unpackable(config) if train.get("packing") else ""
    return f"not packed: {why}, so examples would see each other" if why else ""


def attention_cost(config: Any) -> float:
    """What the square of an example's length costs beside its length (packing.cost).

    A token's products with the weights of a layer are about 24 hidden^2 FLOPs, those of causal
    attention 2 hidden times the length: one over 12 hidden sizes.
    """
    return 1 / (12 * int(config.get_text_config().hidden_size))
