"""What a GGUF file says about a model besides its weights, and whether it says it rightly."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import ModelError

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""transformers' model_type -> GGUF's architecture, for those our own writer knows."""


def metadata(model: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF's keys about the model itself, as llama.cpp's readers expect them."""
    arch = ARCHITECTURES[str(config["model_type"])]
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    if config.get("use_sliding_window"):
        raise ModelError(
            f"the student attends in a sliding window, which llama.cpp does not do for '{arch}'",
            "train it without (student.positions switches Qwen's window off)",
        )
    said = {
        "general.type": "model",
        "general.name": _name(model),
        "context_length": int(config["max_position_embeddings"]),
        "embedding_length": int(config["hidden_size"]),
        "block_count": int(config["num_hidden_layers"]),
        "feed_forward_length": int(config["intermediate_size"]),
        "attention.head_count": heads,
        "attention.head_count_kv": int(config.get("num_key_value_heads") or heads),
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": head_dim,
        "rope.freq_base": _theta(config),
        "vocab_size": int(config["vocab_size"]),
    }
    if arch == "qwen3" or head_dim * heads != int(config["hidden_size"]):
        said |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    said |= _scaling(config)
    said |= _sampling(model)
    return {k if k.startswith("general.") else f"{arch}.{k}": v for k, v in said.items()}


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(config.get("rope_parameters") or config.get("rope_scaling") or {})


def _theta(config: Mapping[str, Any]) -> float:
    return float(_rope(config).get("rope_theta") or config.get("rope_theta") or 10000.0)


def _scaling(config: Mapping[str, Any]) -> dict[str, Any]:
    rope = _rope(config)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind in ("default", "llama3"):
        return {}  # llama3's factors are a tensor
    if kind not in ("linear", "yarn"):
        raise ModelError(f"RoPE of type '{kind}' cannot be written to GGUF by distill")
    said = {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        original = rope.get("original_max_position_embeddings")
        said["rope.scaling.original_context_length"] = int(
            original or int(config["max_position_embeddings"]) / float(rope["factor"])
        )
    return said


def rope_frequencies(config: Mapping[str, Any]) -> Any:
    """Llama 3.1's divisors of the rotary frequencies (fp32, [head_dim / 2]), or None.

    After Meta's reference code (llama-models, `apply_scaling`): short wavelengths stay, long ones
    are divided by `factor`, those between are blended.
    """
    import numpy as np

    rope = _rope(config)
    if rope.get("rope_type", rope.get("type")) != "llama3":
        return None
    heads = int(config["num_attention_heads"])
    size = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    factor, low = float(rope["factor"]), float(rope["low_freq_factor"])
    high, length = float(rope["high_freq_factor"]), rope["original_max_position_embeddings"]
    wavelength = 2 * math.pi * _theta(config) ** (np.arange(0, size, 2, dtype=np.float64) / size)
    blend = np.clip((length / wavelength - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - blend) / factor + blend)).astype(np.float32)


def _sampling(model: Path) -> dict[str, Any]:
    try:
        said = json.loads((model / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    keys = {"temperature": "temp", "top_p": "top_p"}
    return {f"general.sampling.{keys[k]}": float(said[k]) for k in keys if said.get(k) is not None}


def _name(model: Path) -> str:
    try:
        card = (model / "README.md").read_text(encoding="utf-8")
    except OSError:
        card = ""
    title = next((line[2:].strip() for line in card.splitlines() if line.startswith("# ")), "")
    return title or model.resolve().name


def check(path: Path, model: Path, config: Mapping[str, Any]) -> int:
    """Hold what a reader will find against the student; returns the number of tensors.

    A converter that is older than the student's config.json silently writes defaults (RoPE base
    10,000 where the student has another), which shows only in what the model says.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(path))
    except ValueError as error:
        raise ModelError(f"the GGUF file cannot be read again: {error}") from error
    wanted = _facts(model, config)
    for key, value in wanted.items():
        found = _field(reader, key)
        if found is None and key.endswith("rope.freq_base") and value == 10000.0:
            continue
        same = math.isclose(found, value, rel_tol=1e-6) if _number(found) else found == value
        if not same:
            raise ModelError(
                f"the GGUF file says {key} = {found}, the student {value}",
                "a converter of llama.cpp that is older than transformers 5 does this: update it, "
                "or set LLAMA_CPP to nothing to write with the gguf package",
            )
    return len(reader.tensors)


def _facts(model: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    text = config.get("text_config") or config
    arch = ARCHITECTURES.get(str(text["model_type"]))
    facts = {"tokenizer.ggml.eos_token_id": tokenizer.eos_token_id}
    if tokenizer.chat_template:
        facts["tokenizer.chat_template"] = tokenizer.chat_template
    if arch:
        facts[f"{arch}.rope.freq_base"] = _theta(text)
        facts[f"{arch}.context_length"] = int(text["max_position_embeddings"])
        facts[f"{arch}.block_count"] = int(text["num_hidden_layers"])
    return facts


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _field(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()
