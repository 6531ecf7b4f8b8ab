"""What a training keeps in memory, by part, before anything is loaded.

`estimate(arch, setting)` is the peak of one process of a training. docs/memory.md derives every
number and works one case by hand.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from distill.students.catalog import Arch
from distill.students.flops import adapter_params
from distill.students.pass_heads import loss_of, merged_rows
from distill.students.passes import Block, Linear, Pass, Shape
from distill.students.tape import Buffer, Meter, Tape, Weight

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
    `trained`: those of `tokens` that have a label (0: all). `layout` as in students/packing.py:
    `flat` is one row of attention with variable lengths, `rectangle` rows with masks, `padded` one
    example a row. `new_tokens`: rows of the embedding that LoRA trains. `world` is the number of
    processes; with `shard` they divide weights, gradients and optimizer among them.
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
    trained: int = 0
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
            kernels="liger" if train.get("kernels") == "liger" else "torch",
            context_parallel=int(train.get("context_parallel") or 1),
        )
        return dataclasses.replace(found, **changes)

    @property
    def shape(self) -> Shape:
        """The rows of the largest micro-batch, as students/packing.py lays them out."""
        tokens = -(-self.tokens // self.context_parallel)
        rows = 1 if self.layout == "flat" else max(1, self.tokens // self.longest)
        return Shape(
            rows,
            tokens // rows,
            self.trained // self.context_parallel or tokens,
            masked=self.layout == "rectangle",
            split=self.layout == "flat" and self.device == "cpu",
            cuda=self.device == "cuda",
            dropout=self.dropout,
            liger=self.kernels == "liger",
        )


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


@functools.lru_cache(maxsize=4096)
def estimate(arch: Arch, setting: Setting) -> Parts:
    """Peak memory of one process of this training, by part.

    Of the second update or a later one, in its largest micro-batch: the optimizer has its states,
    and with `accumulates` an earlier micro-batch has left its gradients.
    """
    meter = Meter()
    model = _Model(arch, setting)
    held = model.hold(meter)
    _run(model, arch, setting, meter)
    del held
    worst = meter.worst
    parts = Parts(
        weights=worst.get("weights", 0),
        gradients=worst.get("gradients", 0),
        optimiser=worst.get("optimiser", 0),
        activations=worst.get("activations", 0),
        logits=worst.get("logits", 0),
        buffers=worst.get("buffers", 0),
        host=model.host,
    )
    if setting.device == "cpu":
        return parts
    return dataclasses.replace(
        parts, fragmentation=round(FRAGMENTATION * parts.peak), context=CONTEXT_BYTES
    )


class _Model:
    """The weights of a student by its method, and the bytes that do not depend on tokens."""

    def __init__(self, arch: Arch, setting: Setting) -> None:
        self.arch, self.setting = arch, setting
        self.full = setting.method == "full"
        self.shards = setting.world if setting.shard != "none" else 1
        self.bf16 = setting.precision == "bf16"
        # Sharded weights are gathered in bf16 and used as they are; others are fp32 where they
        # are trained and cast by autocast, product by product.
        self.autocast = self.bf16 and self.shards == 1
        self.base_width = 4 if (self.full and self.shards == 1) or not self.bf16 else 2
        self.offloads = setting.offload and self.shards > 1
        self.all: list[Weight] = []
        self.bytes = 0
        dim = arch.head_dim or arch.hidden // arch.heads
        h, q, kv, inner = arch.hidden, arch.heads * dim, arch.kv_heads * dim, arch.intermediate
        self.embedding = self._weight(arch.vocab * h)
        self.blocks = [
            Block(
                (self._weight(h), self._weight(h)),
                self._linear(q, h, arch.qkv_bias),
                self._linear(kv, h, arch.qkv_bias),
                self._linear(kv, h, arch.qkv_bias),
                self._linear(h, q),
                self._linear(inner, h),
                self._linear(inner, h),
                self._linear(h, inner),
                (self._weight(dim), self._weight(dim)) if arch.qk_norm else None,
            )
            for _ in range(arch.layers)
        ]
        self.last = self._weight(h)
        self.head = self.embedding if arch.tied else self._weight(arch.vocab * h)
        self.new_embedding = self.new_head = None
        if setting.new_tokens and not self.full:
            self.new_embedding = self._adapter(setting.new_tokens * h)
            self.new_head = (
                self.new_embedding if arch.tied else self._adapter(setting.new_tokens * h)
            )

    def _weight(self, count: int) -> Weight:
        weight = Weight(count, self.base_width, self.full, 0 if self.offloads else self.shards)
        self.all.append(weight)
        stored = 4 if self.full else self.base_width
        self.bytes += count * stored
        return weight

    def _adapter(self, count: int) -> Weight:
        width = 2 if self.shards > 1 and self.bf16 else 4
        weight = Weight(count, width, True, 0 if self.offloads else self.shards)
        self.all.append(weight)
        self.bytes += count * 4
        return weight

    def _linear(self, rows: int, columns: int, bias: bool = False) -> Linear:
        count, rank = rows * columns, self.setting.rank
        if self.setting.method == "qlora":
            weight = Weight(count, self.base_width, False)
            self.bytes += nf4_bytes(count)
        else:
            weight = self._weight(count)
        layer = Linear(rows, columns, weight, self._weight(rows) if bias else None)
        if not self.full:
            layer.rank = rank
            layer.a, layer.b = self._adapter(rank * columns), self._adapter(rows * rank)
            layer.quantised = self.setting.method == "qlora"
        return layer

    @property
    def trained(self) -> int:
        return sum(w.count for w in self.all if w.trained)

    @property
    def host(self) -> int:
        """Bytes per process that offloading moves to the machine's memory: all its shards."""
        if not self.offloads:
            return 0
        return (self.bytes + 12 * self.trained) // self.shards

    def hold(self, meter: Meter) -> list[Buffer]:
        """Count weights, optimizer states, earlier gradients, and copies that sharing takes."""
        setting, held = self.setting, []
        if not self.offloads:
            held.append(Buffer(meter, "weights", self.bytes // self.shards))
            held.append(Buffer(meter, "optimiser", 8 * self.trained // self.shards))
        if setting.accumulates:
            for weight in self.all:
                weight.keep(meter)
        if setting.world > 1:
            held.append(Buffer(meter, "buffers", self._shared()))
        return held

    def _shared(self) -> int:
        """DDP's buckets, or the layers that are gathered at one moment."""
        if self.shards == 1:
            return 4 * self.trained
        width = 2 if self.bf16 else 4
        arch, trains = self.arch, 1 if self.full else 0
        head = arch.vocab * arch.hidden
        outside = head * (1 if arch.tied else 2) + arch.hidden
        layer = (arch.params - outside) // arch.layers
        adapter = 0 if self.full else adapter_params(arch, self.setting.rank) // arch.layers
        # The embedding and the head stay from the forward pass on, with the head's gradient. Of the
        # layers one is at work and, between the first and the last, the next one is on its way;
        # the gradients of the one before, in fp32, are summed over the processes into shards.
        here = min(2, max(1, arch.layers - 1))
        gathered = width * (outside + head * trains + here * (layer + adapter))
        summed = layer * trains + adapter
        return gathered + 4 * summed + 4 * summed // self.shards


def nf4_bytes(count: int) -> int:
    """Bytes of a weight in nf4 with double quantisation, as bitsandbytes keeps it.

    Half a byte each; a one-byte scale per 64 weights; an fp32 scale per 256 of those; and the two
    code books (16 and 256 numbers) and an offset in fp32.
    """
    blocks = -(-count // 64)
    return -(-count // 2) + blocks + 4 * -(-blocks // 256) + 4 * (16 + 256 + 1)


def _run(model: _Model, arch: Arch, setting: Setting, meter: Meter) -> None:
    """One forward and backward pass over the largest micro-batch."""
    tape = Tape(meter, autocast=model.autocast)
    run = Pass(tape, arch, setting.shape, 2 if model.bf16 else 4)
    embedding = model.embedding
    if model.new_embedding is not None:
        embedded = run.embed(merged_rows(run, embedding, model.new_embedding), False)
    else:
        embedded = run.embed(embedding, setting.checkpointing)
    hidden = run.hidden(embedded, model.blocks, model.last, setting.checkpointing)
    del embedded
    loss = loss_of(run, hidden, model.head, model.new_head)
    tape.end_autocast()
    del hidden
    tape.backward(loss)
