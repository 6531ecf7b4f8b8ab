"""What a setting of the trainer takes on a machine: memory by part, hours, money.

Memory and FLOPs are the formulas of `students/memory.py` and `students/flops.py`. Hours are the
FLOPs over the peak at an assumed utilisation, the uneven shares of the processes (the trainer's own
packing of a few updates drawn from the lengths), and what sharding and offloading move.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from distill import models
from distill.plan_data import Data
from distill.plan_machines import GB, GIB, Machine, assumed
from distill.recipe import Recipe

DRAWN = 4
"""Updates whose layout is simulated."""
PARTS = ("weights", "gradients", "optimiser", "activations", "logits", "buffers")
"""Parts of `students/memory.py: Parts` that tensors own; what is left is fragmentation and CUDA's
context."""


@dataclass(frozen=True, slots=True)
class Trained:
    """One setting on one machine: GiB per GPU, `host` in GB per node, hours of all epochs.

    `host` includes merging an adapter at the end, which decides nothing: another machine can do it.

    `short` says in words why it does not fit (empty: it fits). `mfu` is the share of the GPUs' peak
    that the model's FLOPs make of these hours. Hours, money and mfu are None where the number of
    examples is unknown or it does not fit.
    """

    method: str
    parts: Mapping[str, float]
    needed: float
    usable: float
    host: float
    short: str
    hours: float | None
    money: float | None
    mfu: float | None

    @property
    def fits(self) -> bool:
        return not self.short

    @property
    def free(self) -> float:
        """Share of the GPU's memory that is left."""
        return 1 - self.needed / self.usable


def processes(train: Mapping[str, Any]) -> int:
    """All processes of a training."""
    return int(train["processes"]) * int(train["nodes"])


def evaluate(
    arch: Any,
    student: Mapping[str, Any],
    train: Mapping[str, Any],
    machine: Machine,
    data: Data,
    mfu: float | None = None,
) -> Trained:
    """What training with these sections of a recipe takes on `machine`."""
    parts = memory(arch, student, train)
    host, merged = _host(arch, parts, student["method"], train)
    short = misplaced(train, machine) or _short(parts, host, machine)
    hours = None if short else hours_of(arch, student, train, machine, data, mfu)
    useful = None
    if hours:
        flops = _flops(arch, student, train, data, "training_flops").mean() * _seen(train, data)
        useful = float(flops / (hours * 3600 * processes(train) * machine.gpu.flops))
    other = parts.total - sum(getattr(parts, name) for name in PARTS)
    return Trained(
        method=student["method"],
        parts={name: getattr(parts, name) / GIB for name in PARTS} | {"other": other / GIB},
        needed=parts.total / GIB,
        usable=machine.gpu.usable / GIB,
        host=max(host, merged) / GB,
        short=short,
        hours=hours,
        money=hours * machine.price if hours is not None else None,
        mfu=useful,
    )


def memory(arch: Any, student: Mapping[str, Any], train: Mapping[str, Any]) -> Any:
    """`students/memory.py: Parts` of one process, at its longest example, on a GPU.

    `student` is that section of a recipe, and `new_tokens` the rows that LoRA trains beside it.
    """
    setting = models.of_students("memory:Setting").of(
        student, train, world=processes(train), new_tokens=int(student.get("new_tokens") or 0)
    )
    return models.of_students("memory:estimate")(arch, setting)


def _host(arch: Any, parts: Any, method: str, train: Mapping[str, Any]) -> tuple[float, float]:
    """Bytes of a node's memory that training takes, and those that merging an adapter takes."""
    here = int(train["processes"])
    width = {"full": 4, "lora": 2, "qlora": 0}[method]
    # Where weights are sharded only the first process of a node reads them.
    read = width * arch.params * (1 if train["shard"] != "none" else here)
    # An adapter is merged into the base's weights in fp32.
    merged = 4 * arch.params if method != "full" else 0
    return float(max(parts.host * here, read)), float(merged)


def misplaced(train: Mapping[str, Any], machine: Machine) -> str:
    """What a setting asks for that the machine does not have, or nothing."""
    asks, nodes = int(train["processes"]), int(train["nodes"])
    if asks <= machine.gpus and nodes <= machine.nodes:
        return ""
    return f"asks for {nodes} nodes of {asks} GPUs" if nodes > 1 else f"asks for {asks} GPUs"


def _short(parts: Any, host: float, machine: Machine) -> str:
    """What memory lacks, or nothing."""
    usable = machine.gpu.usable
    if parts.total > usable:
        return f"needs {parts.total / GIB:,.0f} of {usable / GIB:,.0f} GiB"
    there = machine.gpu.host * machine.gpus * GB
    if host > there:
        return f"needs {host / GB:,.0f} of about {there / GB:,.0f} GB on the host"
    return ""


def at_least(
    arch: Any, student: Mapping[str, Any], train: Mapping[str, Any], room: float = math.inf
) -> float:
    """A lower bound of the bytes of one process, much faster than `memory`; often equal to it.

    Each moment of a training is linear in the number of layers, and the peak is the largest of
    them: so what two small models tell of the next layers can only be too little. Less is done
    where weights and optimizer alone are more than `room`.
    """
    shards = processes(train) if train["shard"] != "none" else 1
    states = {"full": 16.0, "lora": 2.0, "qlora": 0.5}[student["method"]] * arch.params / shards
    if shards > 1 and train["offload"]:
        states = 0.0
    if arch.layers < 6 or states > room:
        return states
    # Of two layers sharding gathers less: they are no part of the line.
    few, more = (
        memory(dataclasses.replace(arch, layers=layers), student, train).total for layers in (3, 4)
    )
    return max(states, few + (more - few) * (arch.layers - 3))


# -- hours ---------------------------------------------------------------------------------------


def _seen(train: Mapping[str, Any], data: Data) -> float:
    return data.seen(train) or 0.0


def _flops(
    arch: Any, student: Mapping[str, Any], train: Mapping[str, Any], data: Data, what: str
) -> np.ndarray[Any, Any]:
    """FLOPs of a forward and backward pass over each of the lengths."""
    checkpointing = bool(train["gradient_checkpointing"])
    rank = int(train["lora"]["rank"])
    return _flops_of(arch, data.lengths, what, student["method"], rank, checkpointing)


@cache
def _flops_of(
    arch: Any, lengths: tuple[int, ...], what: str, method: str, rank: int, checkpointing: bool
) -> np.ndarray[Any, Any]:
    count = models.of_students(f"flops:{what}")
    options = {"checkpointing": checkpointing} if what == "hardware_flops" else {}
    return np.array([float(count(arch, [n], method, rank=rank, **options)) for n in lengths])


def hours_of(
    arch: Any,
    student: Mapping[str, Any],
    train: Mapping[str, Any],
    machine: Machine,
    data: Data,
    mfu: float | None = None,
) -> float | None:
    """Hours of all epochs; None where the number of examples is unknown."""
    updates = data.updates(train)
    if updates is None:
        return None
    method, gpu = student["method"], machine.gpu
    together = max(1, int(train["context_parallel"]))
    work = _flops(arch, student, train, data, "hardware_flops")
    # The utilisation is that of full training with recomputation, as papers report it: what the
    # GPU really does is more, and other methods do it at the same rate.
    useful = _flops_of(arch, data.lengths, "training_flops", "full", 1, True).sum()
    done = _flops_of(arch, data.lengths, "hardware_flops", "full", 1, True).sum()
    rate = gpu.flops * (mfu or assumed("mfu")) * done / useful
    budget = int(train["micro_batch_tokens"] or train["max_length"])
    batch = min(int(train["batch_size"]), data.examples or 1)
    drawn = _layout(data.lengths, batch, budget, processes(train), bool(train["packing"]))
    busiest = sum(max(work[mine].sum() for mine in shares) for _, shares in drawn) / DRAWN
    passes = sum(most for most, _ in drawn) / DRAWN
    # The updates that were drawn stand for the mean one, whose work is known.
    every = sum(work[mine].sum() for _, shares in drawn for mine in shares) / DRAWN
    compute = busiest / every * work.mean() * batch / rate
    # Sharing a row evens out the processes' work, which is left out, and moves keys and values.
    compute *= assumed("context_parallel") ** math.log2(together)
    if method == "qlora":
        compute *= assumed("qlora")
    moved = _moved(arch, student, train, machine, passes, compute)
    return float(updates * (compute + moved) / 3600)


@cache
def _layout(
    lengths: tuple[int, ...], batch: int, budget: int, world: int, packing: bool
) -> list[tuple[int, list[Any]]]:
    """Some updates as the trainer lays them out: passes, and indices into `lengths` by process."""
    lay_out = models.of_students("packing:lay_out")
    share = models.of_students("packing:share")
    rng = np.random.default_rng(0)
    found = []
    for _ in range(DRAWN):
        drawn = rng.integers(0, len(lengths), batch)
        sizes = {i: lengths[n] for i, n in enumerate(drawn)}
        parts = lay_out(list(sizes), sizes, budget, "flat" if packing else "padded")
        shares = share(parts, sizes, world)
        mine = [drawn[[i for m in some for row in m.rows for i in row]] for some in shares]
        found.append((len(shares[0]), mine))
    return found


def _moved(
    arch: Any,
    student: Mapping[str, Any],
    train: Mapping[str, Any],
    machine: Machine,
    passes: float,
    compute: float,
) -> float:
    """Seconds of an update that moving weights and gradients adds to `compute` seconds of work."""
    world, gpu = processes(train), machine.gpu
    full = student["method"] == "full"
    trained = arch.params if full else trainable(arch, student["method"], train)
    link = gpu.link if int(train["nodes"]) == 1 else min(gpu.link, assumed("network") * GB)
    if world == 1:
        return 0.0
    if train["shard"] == "none":
        # All-reduce of fp32 gradients once per update, half hidden behind the backward pass.
        return 2 * 4 * trained / link / 2
    # Weights in bf16 are gathered for the forward and again for the backward pass, gradients in
    # fp32 are scattered; it is hidden as far as there is work to hide it behind.
    gathered = passes * (2 * 2 * arch.params + 4 * trained) / link
    extra = max(0.0, gathered - compute) + 0.1 * min(gathered, compute)
    if train["offload"]:
        host = assumed("host_link") * GB
        upload = passes * 2 * 2 * arch.params / world / host
        # AdamW on the host reads and writes weights, gradients and two moments in fp32.
        step = 28 * trained / int(train["nodes"]) / (assumed("host_bandwidth") * GB)
        extra += upload + 2 * 4 * trained / world / host + step
    return extra


def flops_of(arch: Any, recipe: Recipe, data: Data) -> float:
    """Model FLOPs of all epochs: what MFU counts."""
    student, train = recipe.student.model_dump(mode="json"), recipe.train.model_dump(mode="json")
    each = _flops(arch, student, train, data, "training_flops").mean()
    return float(each * _seen(train, data))


def trainable(arch: Any, method: str, train: Mapping[str, Any]) -> int:
    """Weights that a method trains (without rows of new tokens)."""
    if method == "full":
        return int(arch.params)
    return int(models.of_students("flops:adapter_params")(arch, int(train["lora"]["rank"])))


def as_dict(found: Trained) -> dict[str, Any]:
    """For `--json`."""
    return dataclasses.asdict(found) | {"fits": found.fits, "free": found.free}
