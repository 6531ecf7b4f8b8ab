"""Checkpoints of a training: written whole or not at all, read by any number of processes.

    checkpoint-N/
      state/              weights and optimizer (torch.distributed.checkpoint): every process
                          writes its part, and any number of processes reads them
      scheduler.pt, rng_state*.pth, trainer_state.json        the Trainer's
      sealed.json         written last: step, every file with its size, validation losses

A folder without `sealed.json`, or whose files differ from it, is never resumed from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.errors import DistillError

log = logging.getLogger(__name__)

STATE, SEAL, WEIGHTS = "state", "sealed.json", "weights"
APART = "DISTILL_NODES_APART"
"""Set where the nodes of a training share no folder (students/launch_worker.py)."""
SHARD_BYTES = 4 << 30
"""Weights that `weights_of` holds in memory, and writes into one file."""

# What may change between two starts of the same training without changing its result.
RUNTIME = (
    "micro_batch_tokens",
    "gradient_checkpointing",
    "attention",
    "processes",
    "nodes",
    "launcher",
    "shard",
    "offload",
    "context_parallel",
    "kernels",
    "allow_cpu",
    "save_every",
    "trackers",
    "development",
)


def fingerprint(dataset: Path, config: Mapping[str, Any]) -> str:
    """Identity of a training: its data and every setting that can change the result."""
    asked = config["train"]
    train = {k: v for k, v in asked.items() if k not in RUNTIME}
    if int(asked.get("average") or 1) > 1:  # then checkpoints are part of the result
        train["save_every"] = asked.get("save_every")
    plain = json.dumps([config["student"], train, config.get("seed")], sort_keys=True, default=str)
    digest = hashlib.sha256(plain.encode())
    files = [dataset]
    if chooses(asked) and config.get("validation"):
        files.append(Path(config["validation"]))
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def chooses(train: Mapping[str, Any]) -> bool:
    """Whether the validation loss decides which weights the student gets."""
    return train.get("keep") == "best" or train.get("early_stop") is not None


# -- weights and optimizer -------------------------------------------------------------------------


def write(path: Path, model: Any, optimizer: Any) -> None:
    """Write what is trained, and its optimizer states, to `path/state`; all processes call."""
    from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter, save

    states = {**_weights(model), **_optimizer_states(model, optimizer)}
    # What all hold is written by all, unless they write into folders of their own.
    planner = DefaultSavePlanner(dedup_save_to_lowest_rank=bool(os.environ.get(APART)))
    with _alone_is_fine():
        writer = FileSystemWriter(path / STATE, overwrite=True)
        save(states, storage_writer=writer, planner=planner)


def read(path: Path, model: Any, optimizer: Any) -> None:
    """Put `path/state` into a model and its optimizer, in every process."""
    load_weights(path, model)
    inner = getattr(optimizer, "optimizer", optimizer)
    inner.zero_grad()
    states: dict[str, Any] = {}
    stored = _tensors(path)
    names = {parameter: name for name, parameter in _trained(model)}
    for group in inner.param_groups:
        for parameter in group["params"]:
            prefix = f"optimizer.{names[parameter]}."
            state = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
            inner.state[parameter] = {
                key: _room(parameter, meta, key) for key, meta in state.items()
            }
            states |= {prefix + key: value for key, value in inner.state[parameter].items()}
    _read_into(path, states)


def load_weights(path: Path, model: Any) -> None:
    """Put a checkpoint's weights into `model`; all processes call where it is sharded."""
    _read_into(path, _weights(model))


def weights_of(path: Path) -> Path:
    """A folder of safetensors with the trained weights of a checkpoint, whole; one process calls.

    Names are those of the trained model's `named_parameters`. Made on the first call, a few
    gigabytes at a time.
    """
    import torch
    from safetensors.torch import save_file

    folder = path / WEIGHTS
    if folder.is_dir():
        return folder
    temporary = path / f".{WEIGHTS}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    stored = {k: m for k, m in _tensors(path).items() if k.startswith("weights.")}
    parts: list[dict[str, torch.Tensor]] = []
    size = SHARD_BYTES
    for name, meta in sorted(stored.items()):
        tensor = torch.empty(meta.size, dtype=meta.properties.dtype)
        size += tensor.nbytes
        if size > SHARD_BYTES:
            parts.append({})
            size = tensor.nbytes
        parts[-1][name] = tensor
    index: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        _read_into(path, part)
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        whole = {name.removeprefix("weights."): part[name] for name in part}
        save_file(whole, temporary / file, metadata={"format": "pt"})
        index |= dict.fromkeys(whole, file)
        part.clear()
    told = {"metadata": {}, "weight_map": index}
    (temporary / "model.safetensors.index.json").write_text(json.dumps(told), encoding="utf-8")
    temporary.rename(folder)
    return folder


def _trained(model: Any) -> Iterator[tuple[str, Any]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def _weights(model: Any) -> dict[str, Any]:
    return {f"weights.{name}": parameter.detach() for name, parameter in _trained(model)}


def _optimizer_states(model: Any, optimizer: Any) -> dict[str, Any]:
    inner = getattr(optimizer, "optimizer", optimizer)
    states, known = inner.state, {p for group in inner.param_groups for p in group["params"]}
    unknown = [name for name, parameter in _trained(model) if parameter not in known]
    if unknown:
        raise DistillError(f"the optimizer does not know {len(unknown)} weights, as {unknown[0]}")
    return {
        f"optimizer.{name}.{key}": value
        for name, parameter in _trained(model)
        for key, value in states.get(parameter, {}).items()
    }


def _room(parameter: Any, meta: Any, key: str) -> Any:
    """An empty tensor like the stored one, sharded as its parameter is."""
    import torch

    if tuple(meta.size) == tuple(parameter.shape) and key != "step":
        return torch.zeros_like(parameter, dtype=meta.properties.dtype)
    # Step counters; fused and capturable AdamW want them beside the weights.
    return torch.zeros(meta.size, dtype=meta.properties.dtype, device=parameter.device)


def _tensors(path: Path) -> dict[str, Any]:
    from torch.distributed.checkpoint import FileSystemReader

    return dict(FileSystemReader(path / STATE).read_metadata().state_dict_metadata)


def _read_into(path: Path, states: dict[str, Any]) -> None:
    """Fill tensors; all processes call where they are sharded, else each for itself."""
    from torch.distributed.checkpoint import FileSystemReader, load
    from torch.distributed.tensor import DTensor

    if states:
        alone = not any(isinstance(value, DTensor) for value in states.values())
        with _alone_is_fine():
            load(states, storage_reader=FileSystemReader(path / STATE), no_dist=alone)


@contextlib.contextmanager
def _alone_is_fine() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


# -- folders ---------------------------------------------------------------------------------------


def seal(path: Path, step: int, **more: Any) -> None:
    """Say that a checkpoint is whole, after everything in it is on the disk; one process calls."""
    files = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
        files[str(file.relative_to(path))] = file.stat().st_size
    temporary = path / f".{SEAL}.tmp"
    with temporary.open("w", encoding="utf-8") as out:
        json.dump({"step": step, "files": files, **more}, out)
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, path / SEAL)


def sealed(path: Path) -> dict[str, Any]:
    """What `seal` wrote: step, files, and what was told with them."""
    told = json.loads((path / SEAL).read_text(encoding="utf-8"))
    if not isinstance(told, dict) or not isinstance(told.get("files"), dict) or not told["files"]:
        raise ValueError(f"{SEAL} names no files")
    return told


def damage(path: Path) -> str | None:
    """Why a checkpoint cannot be resumed from, or None."""
    try:
        told = sealed(path)
        if told["step"] != step_of(path):
            return f"it is of update {told['step']}"
        for name, size in told["files"].items():
            if (path / name).stat().st_size != size:
                return f"{name} is cut off"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def all_of(folder: Path) -> list[Path]:
    """The checkpoints of a folder, complete or not, by update."""
    found = (p for p in folder.glob("checkpoint-*") if p.is_dir() and step_of(p) >= 0)
    return sorted(found, key=step_of)


def last_complete(folder: Path) -> Path | None:
    """The newest whole checkpoint of `folder`; half-written ones after it are removed."""
    for path in reversed(all_of(folder)):
        why = damage(path)
        if why is None:
            return path
        log.warning("checkpoint %s is not complete (%s): removed", path.name, why)
        shutil.rmtree(path, ignore_errors=True)
    return None


def prune(folder: Path, last: int, also: Collection[int] = ()) -> None:
    """Remove all checkpoints but the `last` newest ones and those of the updates `also`."""
    found = all_of(folder)
    for path in found[: max(0, len(found) - last)]:
        if step_of(path) not in also:
            shutil.rmtree(path, ignore_errors=True)


def step_of(path: Path) -> int:
    """The update of a checkpoint's folder; -1 where its name tells none."""
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1
