"""Base folders of every family of the students' catalog: tokenizer and config, no weights.

The synthetic tokenizers spell bytes and have the family's special tokens. The real ones
(`REAL`) come from `models/tokenizers` (scripts/real_tokenizers.py) and from SmolLM2's weights.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest

from distill.students.loading import Prepared, prepare
from tests import tiny_students

ROOT = Path(__file__).resolve().parents[1]
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SMOL = (*CHATML, "<repo_name>", "<filename>")
SMOL3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>")
# Name: model_type, special tokens, names of tokens as the base's tokenizer has them.
SYNTHETIC: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "qwen2": ("qwen2", CHATML, {}),
    "qwen3": ("qwen3", CHATML, {"plain": ("<think>", "</think>")}),
    "llama3": (
        "llama",
        tiny_students.LLAMA3,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "adds_bos": True},
    ),
    "smollm2": ("llama", SMOL, {"bos_token": "<|im_start|>"}),
    "smollm3": (
        "smollm3",
        (*SMOL3, "<|finetune_right_pad_id|>"),
        {"eos_token": "<|end_of_text|>", "plain": ("<think>", "</think>")},
    ),
    "mistral": (
        "mistral",
        tiny_students.MISTRAL,
        {"bos_token": "<s>", "eos_token": "</s>", "adds_bos": True},
    ),
    "gemma2": (
        "gemma2",
        tiny_students.GEMMA,
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "adds_bos": True},
    ),
    "gemma3": (
        "gemma3_text",
        tiny_students.GEMMA,
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "adds_bos": True},
    ),
    "phi3": ("phi3", tiny_students.PHI3, {"eos_token": "<|endoftext|>"}),
    "other": ("llama", ("<s>", "</s>"), {"bos_token": "<s>", "eos_token": "</s>"}),
}
REAL = {
    "qwen2": "pip install --no-deps dashscope==2.0.2",
    "qwen3": "pip install --no-deps dashscope==2.0.2",
    "llama3": "pip install --no-deps llama-models==0.3.0",
    "smollm2": "see scripts/smollm2.py",
}


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="families-")


def base(name: str) -> Path:
    """The folder of a base with a synthetic tokenizer."""
    from transformers import AutoConfig

    kind, specials, names = SYNTHETIC[name]
    names = dict(names)
    folder = Path(_scratch().name) / name
    if folder.exists():
        return folder
    plain = names.pop("plain", ())
    tokenizer = tiny_students.tokenizer(specials, **names)
    tokenizer.add_tokens(list(plain))
    ends = tokenizer.eos_token_id
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), eos_token_id=ends, pad_token_id=0
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def real(name: str) -> Path:
    """The folder of a real tokenizer; skips where it is not on this machine."""
    smollm2 = ROOT / "models" / "SmolLM2-135M-Instruct"
    folder = smollm2 if name == "smollm2" else ROOT / "models" / "tokenizers" / name
    if not (folder / "tokenizer.json").is_file():
        build = (
            "" if name == "smollm2" else " && python scripts/real_tokenizers.py models/tokenizers"
        )
        pytest.skip(f"no tokenizer at {folder}: {REAL[name]}{build}")
    return folder


@functools.cache
def prepared(name: str, think_tokens: str = "text", *, true: bool = False) -> Prepared:
    """A family's base made ready, as training does it."""
    folder = real(name) if true else base(name)
    return prepare({"base": str(folder), "think_tokens": think_tokens})


@functools.cache
def reloaded(name: str, think_tokens: str = "text", *, true: bool = False) -> Any:
    """The tokenizer of the student's folder, as transformers and vLLM load it."""
    from transformers import AutoTokenizer

    ready = prepared(name, think_tokens, true=true)
    folder = Path(_scratch().name) / f"student-{name}-{think_tokens}-{true}"
    ready.tokenizer.save_pretrained(folder)
    ready.config.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)
