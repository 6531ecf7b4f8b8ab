"""A byte-level BPE tokenizer in GGUF's terms: tokens, types, merges, and which rule splits text.

llama.cpp knows the rules that split text before merging by name. A tokenizer whose rule it does not
know would be read with another one and give other ids, so it is refused here.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from distill.errors import ModelError

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
QWEN2 = rf"{_HEAD}|\p{{N}}|{_TAIL}"
LLAMA3 = rf"{_HEAD}|\p{{N}}{{1,3}}|{_TAIL}"

RULES = {
    ((GPT2,), False): "gpt-2",
    (("digits", GPT2), False): "smollm",
    ((QWEN2,), False): "qwen2",
    ((LLAMA3,), True): "llama-bpe",
}
"""(expressions that split text, whether a whole word in the vocabulary needs no merges) ->
llama.cpp's name (`llama-vocab.cpp`)."""

NORMAL, CONTROL, USER, UNUSED = 1, 3, 4, 5


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What GGUF stores of a tokenizer. `special` maps bos, eos, pad, unk to ids."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    special: dict[str, int]
    add_bos: bool
    add_eos: bool
    template: str


def vocabulary(model: Path, rows: int) -> Vocabulary:
    """The tokenizer of a model folder, with as many tokens as the embedding has rows.

    Raises ModelError for what GGUF's byte-level BPE cannot say.
    """
    from transformers import AutoTokenizer

    try:
        told = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"no readable tokenizer.json in {model}: {error}") from None
    core = told["model"]
    if core["type"] != "BPE" or core.get("byte_fallback"):
        raise ModelError(
            f"the tokenizer is a {core['type']}"
            f"{' with byte fallback' if core.get('byte_fallback') else ''}; distill writes "
            "byte-level BPE to GGUF",
            "set LLAMA_CPP to a checkout of llama.cpp: its converter knows more tokenizers",
        )
    if not core["merges"]:
        raise ModelError("the tokenizer has no merges, and GGUF cannot say a BPE without any")
    tokens, types = _tokens(told, rows)
    tokenizer = AutoTokenizer.from_pretrained(model)
    plain = tokenizer("a").input_ids
    special = {
        kind: int(getattr(tokenizer, f"{kind}_token_id"))
        for kind in ("bos", "eos", "pad", "unk")
        if getattr(tokenizer, f"{kind}_token_id") is not None
    }
    return Vocabulary(
        tokens=tokens,
        types=types,
        merges=[_merge(pair) for pair in core["merges"]],
        pre=split_rule(told),
        special=special,
        add_bos=len(plain) > 1 and plain[0] == special.get("bos"),
        add_eos=len(plain) > 1 and plain[-1] == special.get("eos"),
        template=str(tokenizer.chat_template or ""),
    )


def _tokens(told: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    words = {int(index): str(word) for word, index in told["model"]["vocab"].items()}
    types = dict.fromkeys(words, NORMAL)
    for token in told.get("added_tokens") or []:
        words[int(token["id"])] = str(token["content"])
        types[int(token["id"])] = CONTROL if token["special"] else USER
    if max(words) >= rows:
        raise ModelError(
            f"the tokenizer has ids up to {max(words)}, the embedding {rows} rows",
            "the student's folder is damaged: train it again",
        )
    order = range(rows)
    return [words.get(i, f"[PAD{i}]") for i in order], [types.get(i, UNUSED) for i in order]


def _merge(pair: str | list[str]) -> str:
    if isinstance(pair, str):
        return pair
    # A byte-level vocabulary has no space of its own, so one space separates the two.
    return " ".join(pair)


def split_rule(told: dict[str, Any]) -> str:
    """llama.cpp's name of the rule by which a tokenizer.json splits text. Raises ModelError."""
    found, whole = (
        tuple(_expressions(told.get("pre_tokenizer"))),
        bool(told["model"].get("ignore_merges")),
    )
    if (found, whole) in RULES:
        return RULES[found, whole]
    raise ModelError(
        "llama.cpp has no rule that splits text as this tokenizer does "
        f"({' then '.join(found) or 'none'}): it would read other tokens than were trained",
        f"known are those of {', '.join(RULES.values())}",
    )


def _expressions(node: dict[str, Any] | None) -> list[str]:
    if node is None:
        return []
    kind = node.get("type")
    if kind == "Sequence":
        return [found for part in node["pretokenizers"] for found in _expressions(part)]
    if kind == "Split" and node.get("behavior") == "Isolated" and not node.get("invert"):
        return [str((node.get("pattern") or {}).get("Regex"))]
    if kind == "Digits" and node.get("individual_digits"):
        return ["digits"]
    if kind == "ByteLevel" and not node.get("add_prefix_space"):
        return [GPT2] if node.get("use_regex", True) else []
    return [f"{kind} {json.dumps({k: v for k, v in node.items() if k != 'type'})}"]
