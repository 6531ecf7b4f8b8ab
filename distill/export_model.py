"""A run's student in the form that somebody else's program reads: safetensors, GGUF, fewer bits.

The work is done in `students/`, in a process of its own; here is what of a run goes into it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill import child
from distill.errors import UsageError

FORMS = ("safetensors", "gguf", "adapter", "fp8", "int8", "gptq", "awq")
QUANTISED = ("fp8", "int8", "gptq", "awq")
GGUF_DTYPES = {"fp32": "f32", "fp16": "f16"}
"""What ggml calls the same thing."""


def export_model(
    run: Path,
    out: Path,
    form: str,
    *,
    dtype: str = "",
    shard_size: str = "5GB",
    python: str | None = None,
) -> dict[str, Any]:
    """Write the student of a run to `out` (a folder; for gguf a file or a folder).

    `dtype` is bf16, fp16 or fp32, for gguf also q8_0; empty keeps that of the student (gguf: f16).
    `python` is another interpreter for the forms of llm-compressor, which pins its own
    transformers. Returns what was written: path, bytes and what the form has to say. Raises
    UsageError, MissingExtra, ModelError.
    """
    if form not in FORMS:
        raise UsageError(f"unknown form '{form}'", f"known: {', '.join(FORMS)}")
    if dtype and form not in ("safetensors", "gguf"):
        raise UsageError(f"--dtype says nothing to {form}", "it is for safetensors and gguf")
    student = student_of(run)
    payload: dict[str, Any] = {"model": str(student), "out": str(out), "form": form}
    if form in QUANTISED:
        payload["dataset"] = _dataset(run)
        found = child.call("distill.students.export_quant:run", payload, python=python)
    else:
        if form == "gguf":
            dtype = GGUF_DTYPES.get(dtype, dtype) or "f16"
            if out.suffix != ".gguf":
                payload["out"] = str(out / f"{run.name}-{dtype}.gguf")
        payload |= {"dtype": dtype, "shard_size": shard_size}
        found = child.call("distill.students.export_forms:run", payload)
    return dict(found)


def student_of(run: Path) -> Path:
    """The folder of a run's last student. Raises UsageError where nothing was trained."""
    root = run.parent
    for entry in reversed(_steps(run).values()):
        folder = root / str(entry.get("folder", "")) / "student"
        if (folder / "config.json").is_file():
            return folder
    raise UsageError(f"{run.name} has no student yet", "distill train RECIPE makes it")


def _steps(run: Path) -> dict[str, Mapping[str, Any]]:
    told = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return dict(told.get("steps") or {})


def _dataset(run: Path) -> str | None:
    """The training set of the last selection, to calibrate on."""
    for name, entry in reversed(_steps(run).items()):
        rows = run.parent / str(entry.get("folder", "")) / "dataset.jsonl"
        if name.startswith("select") and rows.is_file():
            return str(rows)
    return None
