"""Which checkpoint to go on from: the last complete one of the same training."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

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
)


def fingerprint(dataset: Path, config: Mapping[str, Any]) -> str:
    """Identity of a training: its data and every setting that can change the result."""
    train = {k: v for k, v in config["train"].items() if k not in RUNTIME}
    plain = json.dumps([config["student"], train, config.get("seed")], sort_keys=True, default=str)
    digest = hashlib.sha256(plain.encode())
    with dataset.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def last_complete(folder: Path) -> Path | None:
    """The newest whole checkpoint of `folder`; half-written ones after it are removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: -_step(p))
    for path in found:
        why = damage(path)
        if why is None:
            return path
        log.warning("checkpoint %s is not complete (%s): removed", path.name, why)
        shutil.rmtree(path, ignore_errors=True)
    return None


def damage(path: Path) -> str | None:
    """Why a checkpoint cannot be resumed from, or None.

    `trainer_state.json` is written last; weights and optimizer are opened all the same, because
    a full disk or a power cut leaves files of the right name and the wrong content.
    """
    try:
        state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        if state.get("global_step") != _step(path):
            return f"its state is of step {state.get('global_step')}"
        sharded = list(path.glob("pytorch_model_fsdp*")) and list(path.glob("optimizer*"))
        if not sharded:
            weights = list(path.glob("*.safetensors"))
            if not weights:
                return "no weights"
            for file in weights:
                _open_safetensors(file)
            for name in ("optimizer.pt", "scheduler.pt"):
                with zipfile.ZipFile(path / name) as archive:
                    archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        return str(error)
    except Exception as error:  # safetensors raises its own type
        return f"{type(error).__name__}: {error}"
    return None


def _open_safetensors(file: Path) -> None:
    from safetensors import safe_open

    with safe_open(str(file), framework="np") as tensors:
        tensors.keys()


def _step(path: Path) -> int:
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1
