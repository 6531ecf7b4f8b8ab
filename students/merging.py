"""Several models of one architecture become one: the plain weighted mean, or what mergekit does.

The mean is computed here, tensor by tensor in fp32 over the files, so that memory holds one file of
the result and nothing else, whatever the number of models. Other methods run mergekit as a program
of its own, perhaps by another interpreter.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distill.errors import DistillError, MissingExtra
from distill.students.catalog import missing
from distill.students.merging_checks import Weights, differences, same_tokens, same_weights

log = logging.getLogger(__name__)

SHARD_BYTES = 4 << 30
"""Bytes of a file of the result, all of which are in memory while it is written."""

LEFT = ("README.md", "model.safetensors.index.json", "training_args.bin")
"""Files of a model folder that are not taken over; nor are weights of any form."""

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
TORCH = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
"""safetensors' words for dtypes -> torch's and mergekit's."""

FIRST_IS_BASE = ("slerp", "arcee_fusion")
WITHOUT_BASE = ("karcher", "multislerp", "nuslerp")
"""Methods of mergekit that start from one of the two models, and that need no base at all."""


@dataclass(frozen=True)
class Source:
    """A model to merge: what the recipe calls it, and its folder."""

    name: str
    folder: Path
    weight: float


def merge(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Merge models into `payload["out"]/student` and return what the summary says of it.

    `models` are `{"name", "path", "weight"}`; `like` is the number of the one whose tokenizer,
    template, config and dtypes the result has. `method`, `base` (`{"name", "path"}` or None),
    `parameters`, `seed` and `python` are those of a MergeSpec; `title` heads the card. Raises
    ModelError where models do not fit each other, MissingExtra and DistillError.
    """
    sources = [Source(m["name"], local(m["path"]), float(m["weight"])) for m in payload["models"]]
    base = payload.get("base")
    checked = [*sources, Source(base["name"], local(base["path"]), 0.0)] if base else sources
    like = sources[int(payload["like"])]
    found = [Weights.read(source.name, source.folder) for source in checked]
    for other, source in zip(found, checked, strict=True):
        same_weights(found[sources.index(like)], other)
        same_tokens(like.name, like.folder, source.name, source.folder)
    notes = [n for s in checked for n in differences(like.name, like.folder, s.name, s.folder)]
    out = Path(payload["out"])
    for stale in out.glob(".student.*.tmp"):  # of a merge that was killed
        shutil.rmtree(stale)
    made = out / f".student.{os.getpid()}.tmp"
    made.mkdir(parents=True)
    if payload["method"] == "linear":
        _mean([(w, s.weight) for w, s in zip(found, sources, strict=False)], like, made)
    else:
        most = Counter(t.dtype for t in found[sources.index(like)].tensors.values())
        told = {**payload, "dtype": TORCH.get(most.most_common(1)[0][0], "float32")}
        _mergekit(told, sources, checked[-1] if base else None, made)
    _take_over(like.folder, made)
    (made / "README.md").write_text(_card(payload, sources), encoding="utf-8")
    student = out / "student"
    shutil.rmtree(student, ignore_errors=True)
    made.rename(student)
    return {
        "method": payload["method"],
        "models": [{"name": s.name, "weight": s.weight} for s in sources],
        "params": found[0].params,
        "notes": notes,
    }


def local(model: str) -> Path:
    """The folder of a model: given as one, or fetched from the hub. Raises ModelError."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except Exception as error:
        raise missing(model, error) from None


def _mean(models: Sequence[tuple[Weights, float]], like: Source, out: Path) -> None:
    """The weighted mean of all tensors, in files of SHARD_BYTES, in the dtypes of `like`."""
    import torch
    from safetensors.torch import save_file

    total = sum(weight for _, weight in models)
    shape = next(w for w, _ in models if w.folder == like.folder)
    parts: list[list[str]] = [[]]
    size = 0
    for name in shape.tensors:
        bytes_ = shape.tensors[name].bytes
        if parts[-1] and size + bytes_ > SHARD_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += bytes_
    index: dict[str, str] = {}
    for number, names in enumerate(parts, 1):
        tensors = {}
        for name in names:
            mean: Any = 0
            for weights, weight in models:
                mean = mean + weights.load(name).to(torch.float32) * (weight / total)
            dtype = getattr(torch, TORCH.get(shape.tensors[name].dtype, "float32"))
            tensors[name] = mean.to(dtype).contiguous()
        file = "model.safetensors"
        if len(parts) > 1:
            file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        save_file(tensors, out / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    if len(parts) > 1:
        told = {"metadata": {"total_size": shape.bytes}, "weight_map": index}
        (out / "model.safetensors.index.json").write_text(json.dumps(told, indent=1))


def _mergekit(
    payload: Mapping[str, Any], sources: Sequence[Source], base: Source | None, out: Path
) -> None:
    """Have mergekit write the weights."""
    python = payload.get("python") or sys.executable
    config = mergekit_config(payload, sources, base)
    told = out.with_name(f"{out.name}.yaml")
    told.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    command = [python, "-m", "mergekit.scripts.run_yaml", str(told), str(out), "--quiet"]
    command += ["--no-copy-tokenizer", "--no-write-model-card", "--out-shard-size", "1B"]
    command += ["--random-seed", str(payload.get("seed", 0))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told.unlink()
    if done.returncode == 0:
        return
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if "No module named mergekit" in done.stderr or "No module named 'mergekit'" in done.stderr:
        raise MissingExtra("mergekit", "merge", f"merge.method: {payload['method']}")
    log.warning("mergekit said:\n%s", "\n".join(lines[-20:]))
    raise DistillError(
        f"mergekit could not merge by {payload['method']}: {lines[-1] if lines else 'no word'}",
        "its parameters stand in merge.parameters; what it said is above",
    )


def mergekit_config(
    payload: Mapping[str, Any], sources: Sequence[Source], base: Source | None
) -> dict[str, Any]:
    """mergekit's YAML for a payload of `merge`."""
    method = payload["method"]
    config: dict[str, Any] = {"merge_method": method}
    if method in FIRST_IS_BASE:
        config["base_model"] = str(sources[0].folder)
    elif base is not None and method not in WITHOUT_BASE:
        config["base_model"] = str(base.folder)
    bare = method in (*FIRST_IS_BASE, "karcher", "model_stock", "sce")
    config["models"] = [
        {"model": str(s.folder), **({} if bare else {"parameters": {"weight": s.weight}})}
        for s in sources
    ]
    if payload.get("parameters"):
        config["parameters"] = dict(payload["parameters"])
    config["dtype"] = "float32"  # of the arithmetic
    config["out_dtype"] = payload.get("dtype", "bfloat16")
    return config


def _take_over(folder: Path, out: Path) -> None:
    """Everything but weights and card from the model that the result is like."""
    for path in folder.iterdir():
        kept = path.name not in LEFT and path.suffix not in WEIGHTS
        if path.is_file() and kept and not path.name.startswith("."):
            shutil.copyfile(path, out / path.name)


def _card(payload: Mapping[str, Any], sources: Sequence[Source]) -> str:
    title = str(payload.get("title") or "student")
    names = [name for s in sources if (name := str(s.name)) not in ("student", "base")]
    bases = [str(payload["base_name"]), *(n for n in names if n.count("/") == 1)]
    front = {
        "base_model": bases if len(bases) > 1 else bases[0],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["distill", "reasoning", "sft", "merge"],
    }
    total = sum(s.weight for s in sources)
    linear = payload["method"] == "linear"
    how = "the weighted mean of their weights" if linear else f"mergekit's `{payload['method']}`"
    rows = [
        f"| {s.name} | {s.weight / total:.4g} |" if linear else f"| {s.name} | {s.weight:.4g} |"
        for s in sources
    ]
    parameters = payload.get("parameters")
    return "\n".join(
        [
            "---",
            yaml.safe_dump(front, sort_keys=False).strip(),
            "---",
            "",
            f"# {title}",
            "",
            f"A student distilled from `{payload['base_name']}` with distill, merged with other",
            f"models of its architecture: {how}.",
            "",
            "| model | weight |",
            "|---|---|",
            *rows,
            "",
            *([f"Parameters: `{json.dumps(parameters)}`.", ""] if parameters else []),
        ]
    )
