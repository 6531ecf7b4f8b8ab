"""A student as one GGUF file, for llama.cpp and what is built on it.

Written by llama.cpp's own `convert_hf_to_gguf.py` where there is one (`LLAMA_CPP` names its folder,
or it is on PATH), else tensor by tensor with the `gguf` package: never more than one tensor is in
memory. Either way the file is read again and held against the student before it gets its name.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.errors import MissingExtra, ModelError, UsageError
from distill.students.export_gguf_metadata import ARCHITECTURES, check, metadata, rope_frequencies
from distill.students.export_gguf_tokenizer import Vocabulary, vocabulary

DTYPES = ("f32", "f16", "bf16", "q8_0")
CONVERTER = "convert_hf_to_gguf.py"
BLOCK = 32
"""Weights that share one scale in q8_0 (ggml)."""
F16_MAX = 65504.0


def write_gguf(
    model: Path, out: Path, dtype: str = "f16", converter: str | None = None
) -> dict[str, Any]:
    """Write the model folder `model` to the file `out`; returns path, bytes, tensors, by, notes.

    `dtype` is that of the matrices: f32, f16, bf16 or q8_0 (8 bits, one scale per 32 weights);
    norms and biases stay f32. `converter` is a path to llama.cpp's script, "" for none; left out
    it is looked for. llama.cpp's `llama-quantize` makes 4-bit files of an f16 one. Raises
    UsageError, MissingExtra, and ModelError for a model or tokenizer that cannot be written
    without changing what it says.
    """
    model, out = Path(model), Path(out)
    if dtype not in DTYPES:
        raise UsageError(f"GGUF cannot be written as '{dtype}'", f"known: {', '.join(DTYPES)}")
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise MissingExtra("gguf", "gguf", "export to GGUF") from error
    config = _config(model)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    script = find_converter() if converter is None else converter
    try:
        if script:
            notes = _convert(script, model, temporary, dtype)
        else:
            notes = _write(model, config, temporary, dtype)
        tensors = check(temporary, model, config)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    by = script or f"gguf {_version()}"
    size = out.stat().st_size
    return {"path": str(out), "bytes": size, "tensors": tensors, "by": by, "notes": notes}


def find_converter() -> str:
    """Path of llama.cpp's conversion script, or empty; `LLAMA_CPP` set to nothing is a no."""
    folder = os.environ.get("LLAMA_CPP")
    if folder == "":
        return ""
    if folder:
        path = Path(folder).expanduser() / CONVERTER
        if not path.is_file():
            raise UsageError(
                f"LLAMA_CPP is set to {folder}, which holds no {CONVERTER}",
                "set it to a checkout of llama.cpp, or unset it to write with the gguf package",
            )
        return str(path)
    return shutil.which(CONVERTER) or ""


def _convert(script: str, model: Path, out: Path, dtype: str) -> list[str]:
    command = [sys.executable, script, str(model), "--outfile", str(out), "--outtype", dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not out.is_file():
        said = (done.stderr or done.stdout).strip().splitlines()
        raise ModelError(
            f"{script} failed: {said[-1] if said else f'exit code {done.returncode}'}",
            "LLAMA_CPP= (set to nothing) writes with the gguf package instead",
        )
    return []


def _config(model: Path) -> dict[str, Any]:
    try:
        found = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{model} is no model folder: {error}", "train the student first"
        ) from None
    return dict(found)


def _write(model: Path, config: Mapping[str, Any], out: Path, dtype: str) -> list[str]:
    from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map

    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise ModelError(
            f"the gguf writer of distill does not know the architecture '{kind}'",
            f"it knows {', '.join(ARCHITECTURES)}; for others set LLAMA_CPP to a checkout of "
            f"llama.cpp, whose {CONVERTER} is used then",
        )
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == ARCHITECTURES[kind])
    names = get_tensor_name_map(arch, int(config["num_hidden_layers"]))
    words = vocabulary(model, int(config["vocab_size"]))
    writer = GGUFWriter(str(out), ARCHITECTURES[kind])
    for key, value in metadata(model, config).items():
        _add(writer, key, value)
    writer.add_file_type(_file_type(dtype))
    writer.add_quantization_version(2)
    _add_vocabulary(writer, words)
    layout, notes = [], []
    for name, shape in _shapes(model):
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        if found is None:
            raise ModelError(f"{model} holds the tensor '{name}', which GGUF has no name for")
        stored = _stored(found, shape, dtype)
        if stored != dtype and len(shape) > 1 and dtype == "q8_0":
            notes.append(f"{found} is {stored}: {shape[-1]} is no multiple of {BLOCK}")
        raw = GGMLQuantizationType[stored.upper()]
        size = _bytes(shape, stored)
        writer.add_tensor_info(found, shape, _numpy_type(stored), size, raw_dtype=raw)
        layout.append((name, stored))
    frequencies = rope_frequencies(config)
    if frequencies is not None:
        size = frequencies.nbytes
        writer.add_tensor_info("rope_freqs.weight", frequencies.shape, frequencies.dtype, size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for (name, stored), tensor in zip(layout, _tensors(model, {n for n, _ in layout}), strict=True):
        writer.write_tensor_data(_as(stored, _permuted(name, tensor, config), name))
    if frequencies is not None:
        writer.write_tensor_data(frequencies)
    writer.close()
    return notes


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_string(key, value)


def _add_vocabulary(writer: Any, words: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.types)
    writer.add_token_merges(words.merges)
    for kind, token in words.special.items():
        getattr(writer, f"add_{kind}_token_id")(token)
    writer.add_add_bos_token(words.add_bos)
    writer.add_add_eos_token(words.add_eos)
    if words.template:
        writer.add_chat_template(words.template)


def _shapes(model: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    from safetensors import safe_open

    for path in weight_files(model):
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                yield name, tuple(opened.get_slice(name).get_shape())


def _tensors(model: Path, wanted: set[str]) -> Iterator[Any]:
    """Weights in fp32, in the order of `_shapes`."""
    import torch
    from safetensors import safe_open

    for path in weight_files(model):
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                if name in wanted:
                    yield opened.get_tensor(name).to(torch.float32).numpy()


def weight_files(model: Path) -> list[Path]:
    """The safetensors files of a model folder, in order. Raises ModelError where there are none."""
    files = sorted(model.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{model} holds no *.safetensors", "train the student first")
    return files


def _permuted(name: str, tensor: Any, config: Mapping[str, Any]) -> Any:
    """llama.cpp rotates neighbouring pairs of a Llama's head, transformers its two halves."""
    if config["model_type"] != "llama" or ".self_attn." not in name:
        return tensor
    part = name.split(".self_attn.")[1].split(".")[0]
    heads = int(config["num_attention_heads"])
    if part == "k_proj":
        heads = int(config.get("num_key_value_heads") or heads)
    elif part != "q_proj":
        return tensor
    split = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return split.swapaxes(1, 2).reshape(tensor.shape)


def _stored(name: str, shape: tuple[int, ...], dtype: str) -> str:
    if len(shape) < 2 or name.endswith("_norm.weight"):
        return "f32"
    return "f16" if dtype == "q8_0" and shape[-1] % BLOCK else dtype


def _bytes(shape: tuple[int, ...], stored: str) -> int:
    count = math.prod(shape)
    return (
        count // BLOCK * (BLOCK + 2) if stored == "q8_0" else count * (4 if stored == "f32" else 2)
    )


def _numpy_type(stored: str) -> Any:
    import numpy as np

    return np.dtype(np.float16 if stored == "f16" else np.float32)


def _as(stored: str, tensor: Any, name: str) -> Any:
    import numpy as np
    from gguf import GGMLQuantizationType, quants

    if stored == "f16" and np.abs(tensor).max(initial=0.0) > F16_MAX:
        raise ModelError(f"'{name}' holds weights beyond f16's 65504", "export as bf16 or f32")
    return quants.quantize(np.ascontiguousarray(tensor), GGMLQuantizationType[stored.upper()])


def _file_type(dtype: str) -> int:
    from gguf import LlamaFileType

    return int(LlamaFileType["ALL_F32" if dtype == "f32" else f"MOSTLY_{dtype.upper()}"])


def _version() -> str:
    from importlib.metadata import version

    return version("gguf")
