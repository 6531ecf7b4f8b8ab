"""Whether models can be merged: same architecture, same tensors, same tokens. Reads no weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import ModelError

MUST_AGREE = (
    "model_type",
    "hidden_act",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
)
"""Keys of config.json that shapes do not tell and that change what a weight means."""

SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
HEADER_LIMIT = 100 << 20
"""safetensors' own bound on its header."""


@dataclass(frozen=True)
class Tensor:
    """What the header of a safetensors file says of a tensor."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.count * SIZES.get(self.dtype, 1)


@dataclass(frozen=True)
class Weights:
    """The tensors of a model folder by name, none of them in memory."""

    name: str
    folder: Path
    tensors: Mapping[str, Tensor]

    @classmethod
    def read(cls, name: str, folder: Path) -> Weights:
        """Read the headers of a folder's safetensors files. Raises ModelError."""
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelError(
                f"model '{name}' has no *.safetensors in {folder}",
                "merging reads safetensors only: save the model with save_pretrained",
            )
        return cls(name, folder, dict(sorted(t for f in files for t in _header(f))))

    @property
    def params(self) -> int:
        return sum(tensor.count for tensor in self.tensors.values())

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors.values())

    def load(self, name: str) -> Any:
        """One tensor, read from its file."""
        from safetensors import safe_open

        with safe_open(str(self.tensors[name].file), framework="pt") as file:
            return file.get_tensor(name)


def _header(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 0 < length <= HEADER_LIMIT:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(opened.read(length))
        for name, told in header.items():
            if name != "__metadata__":
                yield name, Tensor(file, told["dtype"], tuple(told["shape"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{file} is no safetensors file: {error}", "fetch or save the model again"
        ) from None


def same_weights(one: Weights, other: Weights) -> None:
    """Raise ModelError naming the first tensor that differs in name or shape."""
    _same_config(one.name, one.folder, other.name, other.folder)
    for name in sorted(one.tensors.keys() | other.tensors.keys()):
        mine, theirs = one.tensors.get(name), other.tensors.get(name)
        if mine is None or theirs is None:
            has, lacks = (one, other) if theirs is None else (other, one)
            raise ModelError(
                f"'{has.name}' and '{lacks.name}' cannot be merged: the tensor {name} of "
                f"'{has.name}' is not in '{lacks.name}'",
                "merge models that were trained from the same base",
            )
        same_shape(name, one.name, mine, other.name, theirs)


def same_shape(name: str, of: str, mine: Tensor, other: str, theirs: Tensor) -> None:
    """Raise ModelError where a tensor has another shape in the `other` model."""
    if mine.shape == theirs.shape:
        return
    embedding = "embed" in name or "lm_head" in name
    raise ModelError(
        f"'{of}' and '{other}' cannot be merged: the tensor {name} has the shape "
        f"{list(mine.shape)} in '{of}' and {list(theirs.shape)} in '{other}'",
        "their vocabularies differ: train both with the same student.think_tokens"
        if embedding
        else "merge models that were trained from the same base",
    )


def foresee(models: Mapping[str, str]) -> None:
    """Raise ModelError where folders (name -> path) differ in architecture, before any training.

    Vocabularies are compared later: training may add tokens.
    """
    folders = [(n, Path(p)) for n, p in models.items() if (Path(p) / "config.json").is_file()]
    for name, folder in folders[1:]:
        _same_config(folders[0][0], folders[0][1], name, folder)
        one, other = (Weights.read(n, f).tensors for n, f in (folders[0], (name, folder)))
        for tensor in sorted(one.keys() & other.keys()):
            if "embed" not in tensor and "lm_head" not in tensor:
                same_shape(tensor, folders[0][0], one[tensor], name, other[tensor])


def _same_config(name: str, folder: Path, other_name: str, other: Path) -> None:
    mine, theirs = _config(folder), _config(other)
    for key in MUST_AGREE:
        if None not in (mine.get(key), theirs.get(key)) and mine[key] != theirs[key]:
            raise ModelError(
                f"'{name}' and '{other_name}' cannot be merged: {key} is {mine[key]} in "
                f"'{name}' and {theirs[key]} in '{other_name}'",
                "merge models that were trained from the same base",
            )


def same_tokens(name: str, folder: Path, other_name: str, other: Path) -> None:
    """Raise ModelError naming the first id that stands for different tokens in two models."""
    mine, theirs = _tokens(folder), _tokens(other)
    for number in sorted(mine.keys() & theirs.keys()):
        if mine[number] != theirs[number]:
            raise ModelError(
                f"'{name}' and '{other_name}' cannot be merged: token {number} is "
                f"{mine[number]!r} in '{name}' and {theirs[number]!r} in '{other_name}'",
                "models to merge need the same vocabulary",
            )


def differences(name: str, folder: Path, other_name: str, other: Path) -> list[str]:
    """What differs and is merged all the same, for the notes."""
    mine, theirs = _theta(_config(folder)), _theta(_config(other))
    if None in (mine, theirs) or mine == theirs:
        return []
    return [
        f"the RoPE base is {mine:g} in '{name}' and {theirs:g} in '{other_name}': "
        f"the merged model has that of '{name}'"
    ]


def _theta(config: Mapping[str, Any]) -> float | None:
    rope = config.get("rope_parameters") or {}
    return rope.get("rope_theta", config.get("rope_theta"))


def _config(folder: Path) -> dict[str, Any]:
    found = _json(folder / "config.json")
    text = found.get("text_config") or found
    return dict(text)


def _tokens(folder: Path) -> dict[int, str]:
    """Id -> token, as far as tokenizer.json tells; empty where there is none."""
    found = _json(folder / "tokenizer.json")
    vocabulary = (found.get("model") or {}).get("vocab") or {}
    if not isinstance(vocabulary, dict):  # unigram models list their pieces
        vocabulary = {row[0]: number for number, row in enumerate(vocabulary)}
    tokens = {number: token for token, number in vocabulary.items()}
    return tokens | {t["id"]: t["content"] for t in found.get("added_tokens") or []}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}", "fetch the model again") from None
    return found if isinstance(found, dict) else {}
