"""The mean of checkpoints: of the weights themselves, or of the weights that adapters make.

NeMo's OpenMath-Nemotron students are means of their last checkpoints. One group of tensors is read
from one checkpoint after another and summed in fp32, so that never more than the group is held
beside the model.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from distill.errors import DistillError, UsageError
from distill.students import checkpoints

GROUP_BYTES = 1 << 30
"""fp32 sums, and as much for what is read, held at a time."""

LORA = (".lora_A.", ".lora_B.")


def average(found: Sequence[Path], model: Any) -> None:
    """Put the mean of the checkpoints' trained weights into `model`; all processes call.

    Weights are averaged as they are. Of adapters the products B x A are averaged, because the
    product of two means is not the mean of the products: n adapters of rank r become one of rank
    n r, which is exactly their mean. Raises UsageError where a checkpoint is DeepSpeed's, and
    DistillError where one is damaged.
    """
    if not found:
        return
    for path in found:
        _readable(path)
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    for _, parameter in trained:
        parameter.grad = None  # their room is needed now
    pairs = [(n, p) for n, p in trained if any(part in n for part in LORA)]
    adapters = {name for name, _ in pairs}
    for group in _groups([(n, p) for n, p in trained if n not in adapters]):
        _mean(found, group)
    if pairs:
        _join(found, model, pairs)
    gc.collect()


def _readable(path: Path) -> None:
    if not (path / checkpoints.STATE).is_dir():
        raise UsageError(
            f"train.average reads checkpoints of our own form, and {path} is DeepSpeed's",
            "use shard: fsdp instead of zero3, or leave train.average out",
        )
    if (why := checkpoints.damage(path)) is not None:
        raise DistillError(
            f"checkpoint {path} cannot be averaged: {why}",
            "start the same command again: it goes on from the last whole one",
        )


class _Room:
    """What `checkpoints.load_weights` fills: parameters by name, sharded as the model's are."""

    def __init__(self, named: Sequence[tuple[str, Any]]) -> None:
        self.named = [(n, torch.nn.Parameter(torch.empty_like(p))) for n, p in named]

    def named_parameters(self) -> Iterator[tuple[str, Any]]:
        yield from self.named


def _groups(named: Sequence[tuple[str, Any]]) -> Iterator[list[tuple[str, Any]]]:
    group: list[tuple[str, Any]] = []
    size = 0
    for name, parameter in named:
        bytes_ = 4 * _local(parameter).numel()
        if group and size + bytes_ > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append((name, parameter))
        size += bytes_
    if group:
        yield group


def _local(tensor: Any) -> torch.Tensor:
    found: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found


@torch.no_grad()
def _mean(found: Sequence[Path], group: Sequence[tuple[str, Any]]) -> None:
    room = _Room(group)
    sums = [torch.zeros_like(_local(p), dtype=torch.float32) for _, p in group]
    for path in found:
        checkpoints.load_weights(path, room)
        for total, (_, read) in zip(sums, room.named, strict=True):
            total += _local(read).float()
    for total, (_, parameter) in zip(sums, group, strict=True):
        _local(parameter).copy_(total / len(found))


@torch.no_grad()
def _join(found: Sequence[Path], model: Any, pairs: Sequence[tuple[str, Any]]) -> None:
    """Lay the adapters side by side: A below A, and B / n beside B / n."""
    whole = [(n, torch.empty(p.shape, dtype=torch.float32)) for n, p in pairs]
    rooms = [_Room(whole) for _ in found]
    for path, room in zip(found, rooms, strict=True):
        checkpoints.load_weights(path, room)
    read = [dict(room.named) for room in rooms]
    for name, old in pairs:
        parts = [values[name].detach() for values in read]
        first = LORA[0] in name
        joined = torch.cat(parts, 0) if first else torch.cat(parts, 1) / len(parts)
        module = model.get_submodule(name.rpartition(".")[0])
        module.weight = torch.nn.Parameter(joined.to(old.device, old.dtype))
        module.in_features, module.out_features = joined.shape[1], joined.shape[0]
    _tell_rank(model, len(found))


def _tell_rank(model: Any, times: int) -> None:
    """What the adapter is saved with: alpha / r, by which products are scaled, stays."""
    for name, config in model.peft_config.items():
        if getattr(config, "use_rslora", False):
            raise DistillError("adapters scaled by the root of their rank cannot be joined")
        config.r *= times
        config.lora_alpha *= times
        for module in model.modules():
            if hasattr(module, "lora_A") and name in module.r:
                module.r[name] *= times
                module.lora_alpha[name] *= times
