"""What a training and a server keep in memory, by part, before anything is loaded.

`estimate(arch, setting)` is the peak of one process of a training. docs/memory.md derives every
number and works one case by hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from distill.students.catalog import Arch
from distill.students.flops import adapter_params, linear_params

PLAIN_LOGITS_BYTES = 256 << 20
"""As students/trainer.py: fp32 logits up to this size are computed at once."""
CONTEXT_BYTES = 600 << 20
"""CUDA context, cuBLAS workspaces and NCCL buffers that no tensor owns; assumed, not measured."""
FRAGMENTATION = 0.06
"""Share of the tensor peak that the caching allocator reserves beyond it; assumed, not measured."""

Method = Literal["full", "lora", "qlora"]
Shard = Literal["none", "fsdp", "zero3"]
Layout = Literal["padded", "rectangle", "flat"]


@dataclass(frozen=True, slots=True)
class Setting:
    """How a student is trained, as far as memory goes.

    `tokens` are those of the largest micro-batch of one process, padding included: the greater of
    `train.micro_batch_tokens` and the longest example. `longest` is the longest example (the width
    of a row). `accumulates`: some update takes more than one micro-batch in a process.
    `new_tokens`: rows of the embedding that LoRA trains. `world` is the number of processes.
    """

    tokens: int
    longest: int
    method: Method = "full"
    precision: Literal["bf16", "fp32"] = "bf16"
    layout: Layout = "flat"
    checkpointing: bool = True
    accumulates: bool = True
    world: int = 1
    shard: Shard = "none"
    offload: bool = False
    rank: int = 32
    dropout: bool = False
    new_tokens: int = 0
    kernels: Literal["torch", "liger"] = "torch"
    context_parallel: int = 1
    device: Literal["cuda", "cpu"] = "cuda"

    @classmethod
    def of(
        cls,
        student: Mapping[str, Any],
        train: Mapping[str, Any],
        *,
        longest: int = 0,
        world: int = 1,
        **changes: Any,
    ) -> Setting:
        """The setting of a recipe's sections; `longest` is `train.max_length` where not known."""
        longest = longest or int(train["max_length"])
        lora = train.get("lora") or {}
        precision = train.get("precision")
        found = cls(
            tokens=max(longest, int(train.get("micro_batch_tokens") or train["max_length"])),
            longest=longest,
            method=student.get("method") or "full",
            precision="fp32" if precision == "fp32" else "bf16",
            layout="flat" if train.get("packing") else "padded",
            checkpointing=bool(train.get("gradient_checkpointing", True)),
            world=world,
            shard=train.get("shard") or "none",
            offload=bool(train.get("offload")),
            rank=int(lora.get("rank") or 32),
            dropout=bool(lora.get("dropout")),
            context_parallel=int(train.get("context_parallel") or 1),
        )
        return dataclasses.replace(found, **changes)


@dataclass(frozen=True, slots=True)
class Parts:
    """Bytes of one process at its worst moment, and what it keeps on the host.

    `peak` is what the allocator's counters say (torch.cuda.max_memory_allocated); `total` is what
    the device must have.
    """

    weights: int
    gradients: int
    optimiser: int
    activations: int
    logits: int
    buffers: int
    fragmentation: int = 0
    context: int = 0
    host: int = 0

    @property
    def states(self) -> int:
        """Weights, gradients and optimizer: what does not depend on the tokens."""
        return self.weights + self.gradients + self.optimiser

    @property
    def peak(self) -> int:
        """Tensor bytes on the device at the worst moment."""
        return self.states + self.activations + self.logits + self.buffers

    @property
    def total(self) -> int:
        """`peak` and what no tensor owns: fragmentation and the context."""
        return self.peak + self.fragmentation + self.context


def estimate(arch: Arch, setting: Setting) -> Parts:
    """Peak memory of one process of this training, by part."""
    width = 4 if setting.precision == "fp32" else 2
    tokens = setting.tokens // setting.context_parallel
    adapters = adapter_params(arch, setting.rank) + setting.new_tokens * arch.hidden
    if setting.method == "full":
        trained, weights = arch.params, 4 * arch.params
    else:
        linear = linear_params(arch)
        each = 0.5 + 1 / 64 + 4 / 64 / 256 if setting.method == "qlora" else width
        trained = adapters
        weights = round(linear * each) + (arch.params - linear) * width + 4 * adapters
    shards = setting.world if setting.shard != "none" else 1
    dim = arch.head_dim or arch.hidden // arch.heads
    q, kv = arch.heads * dim, arch.kv_heads * dim
    layer = tokens * width * (6 * arch.intermediate + 2 * kv + 10 * arch.hidden + 2 * q)
    boundary = tokens * arch.hidden * (4 if setting.method == "full" else width)
    activations = arch.layers * boundary + layer
    if not setting.checkpointing:
        activations = arch.layers * layer
    logits = min(tokens * arch.vocab * 4, PLAIN_LOGITS_BYTES) * 3
    buffers = 0
    if setting.world > 1 and setting.shard == "none":
        buffers = 4 * trained
    elif setting.world > 1:
        buffers = 2 * 2 * (arch.params - arch.vocab * arch.hidden) // arch.layers
    parts = Parts(
        weights // shards,
        4 * trained // shards,
        0 if setting.offload else 8 * trained // shards,
        activations,
        logits,
        buffers,
        host=8 * trained // shards if setting.offload else 0,
    )
    if setting.device == "cpu":
        return parts
    return dataclasses.replace(
        parts, fragmentation=round(FRAGMENTATION * parts.peak), context=CONTEXT_BYTES
    )


def kv_bytes(arch: Arch, tokens: int, dtype_bytes: int = 2) -> int:
    """Bytes of the keys and values of `tokens` tokens in all layers."""
    dim = arch.head_dim or arch.hidden // arch.heads
    return 2 * arch.layers * arch.kv_heads * dim * tokens * dtype_bytes


@dataclass(frozen=True, slots=True)
class Serving:
    """Memory of a server on one device of a tensor-parallel group, in bytes.

    `sequences` is how many sequences of the full length fit at once; 0: the model does not fit.
    """

    weights: int
    kv_per_sequence: int
    free: int
    sequences: int


def serving(
    arch: Arch,
    params_bytes: int,
    gpu_bytes: int,
    length: int,
    *,
    gpus: int = 1,
    kv_dtype_bytes: int = 2,
    utilisation: float = 0.9,
    reserve: int = 2 << 30,
) -> Serving:
    """How many sequences of `length` tokens a server holds at once.

    `params_bytes` are the weights' bytes as they are served (2 per weight in bf16, 1 in FP8),
    spread over `gpus` devices of `gpu_bytes` each. `utilisation` is vLLM's
    gpu_memory_utilization; `reserve` is for its activations and CUDA graphs.
    """
    weights = -(-params_bytes // gpus)
    # Devices beyond the number of key-value heads hold copies of them.
    per_sequence = kv_bytes(arch, length, kv_dtype_bytes) // min(gpus, arch.kv_heads)
    free = max(0, int(gpu_bytes * utilisation) - weights - reserve)
    return Serving(weights, per_sequence, free, free // per_sequence)
