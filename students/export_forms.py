"""`distill export`'s forms that need nothing but the student: safetensors, GGUF, the adapter."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.students.export_gguf import write_gguf
from distill.students.export_weights import copy_adapter, write_safetensors


def run(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Write `payload["model"]` to `payload["out"]` as `payload["form"]`; what a child calls."""
    model, out, form = Path(payload["model"]), Path(payload["out"]), payload["form"]
    if form == "adapter":
        return copy_adapter(model.parent / "adapter", out, model / "README.md")
    if form == "safetensors":
        return write_safetensors(model, out, payload["dtype"], payload["shard_size"])
    found = write_gguf(model, out, payload["dtype"])
    card = out.with_name("README.md")
    if not card.exists() and (model / "README.md").is_file():
        shutil.copy2(model / "README.md", card)
    return found
