"""A student's weights in another precision, in shards, with all its other files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill.errors import ModelError, UsageError

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
WEIGHTS = (".safetensors", ".safetensors.index.json")


def write_safetensors(
    model: Path, out: Path, dtype: str = "", shard_size: str = "5GB"
) -> dict[str, Any]:
    """Copy the model folder `model` to `out` as safetensors; returns path, bytes, files, dtype.

    `dtype` is bf16, fp16 or fp32 (empty: as it is), `shard_size` what a file may hold at most, in
    transformers' notation. Raises UsageError, and ModelError for weights that fp16 cannot hold.
    """
    import torch
    import transformers

    if dtype and dtype not in DTYPES:
        raise UsageError(f"unknown dtype '{dtype}'", f"known: {', '.join(DTYPES)}")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=getattr(torch, DTYPES[dtype]) if dtype else "auto", use_safetensors=True
    )
    if dtype == "fp16":
        for name, weight in loaded.named_parameters():
            if not torch.isfinite(weight).all():
                raise ModelError(f"'{name}' holds weights beyond fp16's 65504", "export as bf16")
    with complete(out) as temporary:
        loaded.save_pretrained(temporary, max_shard_size=shard_size)
        for path in sorted(model.iterdir()):
            if path.is_file() and not path.name.endswith(WEIGHTS) and path.name != "config.json":
                shutil.copy2(path, temporary / path.name)
    files = sorted(out.glob("*.safetensors"))
    return {
        "path": str(out),
        "bytes": sum(path.stat().st_size for path in files),
        "files": len(files),
        "dtype": str(loaded.dtype).removeprefix("torch."),
    }


def copy_adapter(adapter: Path, out: Path, card: Path) -> dict[str, Any]:
    """Copy a LoRA adapter and the student's card to `out`; returns path, bytes and base."""
    if not (adapter / "adapter_model.safetensors").is_file():
        raise ModelError(
            f"there is no adapter in {adapter}",
            "only student.method: lora or qlora leaves one; --form safetensors is the whole model",
        )
    with complete(out) as temporary:
        for path in sorted(adapter.iterdir()):
            if path.is_file() and path.name != "README.md":
                shutil.copy2(path, temporary / path.name)
        if card.is_file():
            shutil.copy2(card, temporary / "README.md")
    told = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    size = (out / "adapter_model.safetensors").stat().st_size
    return {"path": str(out), "bytes": size, "base": told.get("base_model_name_or_path")}


@contextmanager
def complete(out: Path) -> Iterator[Path]:
    """A folder that gets the name `out` only when its writer is through. Raises UsageError for one
    that holds something else than a model."""
    if out.exists() and not _ours(out):
        raise UsageError(f"{out} exists and is no exported model", "name a new folder with --out")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(out, ignore_errors=True)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _ours(out: Path) -> bool:
    if not out.is_dir():
        return False
    names = {path.name for path in out.iterdir()}
    return not names or bool(names & {"config.json", "adapter_config.json"})
