"""Weights, gradients and optimizer states in shards over the processes: torch's FSDP2.

`fully_shard` on every decoder layer and on what is left, in the same way on GPUs and on CPU
processes, so that a test without a GPU runs what a GPU runs. accelerate's own FSDP is not used:
on a CPU it silently trains with DDP.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from distill.errors import DistillError, UsageError
from distill.students.hardware import Hardware

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger(__name__)


def sharded(train: Mapping[str, Any], on: Hardware) -> bool:
    """Whether this training shards with FSDP2; one process has nobody to share with."""
    return train.get("shard") == "fsdp" and on.world > 1


def check(student: Mapping[str, Any], train: Mapping[str, Any]) -> None:
    """Refuse what cannot be sharded."""
    if train.get("shard") == "fsdp" and student.get("method") == "qlora":
        raise UsageError(
            "train.shard: fsdp cannot shard weights of 4 bits (student.method: qlora)",
            "leave shard out (each process holds the base in 4 bits), or train with method: lora",
        )
    if train.get("offload") and train.get("shard", "none") == "none":
        raise UsageError(
            "train.offload moves shards to the machine's memory, and train.shard is none",
            "set train.shard: fsdp (or zero3), or leave offload out",
        )


@contextlib.contextmanager
def first_process_loads(active: bool) -> Iterator[None]:
    """Within it, `from_pretrained` reads weights in the first process of a machine only.

    The others get zeros that take no memory until they are written to.
    """
    if not active:
        yield
        return
    told = {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def shard(model: nn.Module, train: Mapping[str, Any], on: Hardware) -> None:
    """Shard `model` in place over all processes, with the weights that the first process holds.

    Trainable parameters stay fp32; with bf16, layers are gathered and computed in bf16 and
    gradients are summed in fp32. With `train.offload` the shards live in the machine's memory.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

    kind = "cpu" if on.device == "cpu" else "cuda"
    options: dict[str, Any] = {"mesh": init_device_mesh(kind, (on.world,))}
    if on.precision == "bf16":
        options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    if train.get("offload"):
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=kind == "cuda")
    weights = {n: p.detach() for n, p in model.named_parameters()} if on.rank == 0 else {}
    _forget(model)
    for layer in layers(model):
        fully_shard(layer, **options)
    fully_shard(model, **options)
    buffers = [(m, n, b) for m in model.modules() for n, b in m._buffers.items() if b is not None]
    model.to_empty(device="cpu" if train.get("offload") else kind)
    for module, name, buffer in buffers:
        module._buffers[name] = _from_first(buffer, buffer, kind, on)
    for name, parameter in model.named_parameters():
        _fill(parameter, _from_first(parameter, weights.pop(name, None), kind, on))
    require_shards(model)
    # accelerate would wrap it in DDP; its own mark for "leave this one alone".
    model._is_accelerate_prepared = True  # type: ignore[assignment]


def layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers: what transformers keeps in one piece, else the longest ModuleList."""
    from torch import nn

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = set(getattr(base, "_no_split_modules", None) or ())
    found = [m for m in base.modules() if type(m).__name__ in names]
    if found:
        return found
    lists = [m for m in base.modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        log.warning("%s has no list of layers: it is sharded as one piece", type(base).__name__)
        return []
    return max((list(found) for found in lists), key=len)


def require_shards(model: nn.Module) -> None:
    """Raise where a parameter is whole: what was to be sharded must not train unsharded."""
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    whole = [n for n, p in model.named_parameters() if not isinstance(p, DTensor)]
    if whole or not isinstance(model, FSDPModule):
        raise DistillError(
            f"the model is not sharded: {len(whole)} parameters are whole ({', '.join(whole[:3])})",
            "leave train.shard out, and report this with the name of the base",
        )


def settle(model: nn.Module) -> None:
    """Back to shards: what a forward pass without a backward one gathered stays gathered.

    Until then `named_parameters` gives tensors that the optimizer does not know, and what is
    written into them is lost.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def gathered(model: nn.Module) -> dict[str, torch.Tensor]:
    """The whole state dict on the CPU of the first process, empty in the others; all must call.

    One tensor is gathered at a time.
    """
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor

    settle(model)
    found = {}
    for name, value in model.state_dict().items():
        local = value.detach()
        whole = local.full_tensor() if isinstance(local, DTensor) else local
        if dist.get_rank() == 0:
            found[name] = whole.cpu()
    return found


def unsharded(model: nn.Module) -> nn.Module | None:
    """A plain model with the weights of a sharded one (on the first process; else None)."""
    import torch

    weights = gathered(model)
    if not weights:
        return None
    plain_class: Any = type(model).__bases__[1]  # fully_shard put FSDPModule before it
    with torch.device("meta"):
        plain = plain_class(model.config)
    plain.load_state_dict(weights, assign=True)
    plain.tie_weights()
    here = dict(model.named_buffers())
    for name, _ in list(plain.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        plain.get_submodule(owner)._buffers[leaf] = here[name].cpu()
    return plain  # type: ignore[no-any-return]


def _from_first(like: Any, mine: Any, device: str, on: Hardware) -> torch.Tensor:
    """The first process's tensor in every process; `like` has its whole shape and dtype."""
    import torch
    import torch.distributed as dist

    if on.rank == 0:
        whole: torch.Tensor = mine.to(device).contiguous()
    else:
        whole = torch.empty(like.shape, dtype=like.dtype, device=device)
    dist.broadcast(whole, 0)
    return whole


def _fill(parameter: Any, whole: torch.Tensor) -> None:
    """Put this process's part of `whole` into a sharded parameter."""
    import torch
    from torch.distributed.tensor import distribute_tensor

    part = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
    with torch.no_grad():
        parameter.to_local().copy_(part.to_local())


def _forget(model: nn.Module) -> None:
    """Every parameter becomes one without memory; shared ones stay shared."""
    import torch
    from torch import nn

    empty: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if parameter not in empty:
                empty[parameter] = nn.Parameter(
                    torch.empty_like(parameter, device="meta"), parameter.requires_grad
                )
            module._parameters[name] = empty[parameter]
