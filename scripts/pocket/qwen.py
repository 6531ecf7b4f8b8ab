"""Give the teacher's folder a tokenizer that `AutoTokenizer` reads as it was trained.

    python -m scripts.pocket.qwen FOLDER

transformers 5 reads every folder of model type qwen2 with Qwen2's own splitting, whatever its
tokenizer.json says, and Qwen2 splits a digit from the space before it. The teacher was trained
with ` 1` as one token. As added tokens those ten are found before any splitting; they keep their
embeddings, so the model computes exactly what it did.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

DIGITS = [f"Ġ{digit}" for digit in range(10)]
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


def new_order(tokenizer: dict[str, Any]) -> list[str]:
    """All tokens by their new id: the vocabulary without the digits, then everything added."""
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    kept = [token for token, _ in vocabulary if token not in DIGITS]
    added = [a["content"] for a in tokenizer["added_tokens"] if a["content"] not in kept]
    return [*kept, *added, *DIGITS]


def convert(folder: Path) -> None:
    """Rewrite tokenizer and embeddings in place; a folder already converted is left alone."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    if DIGITS[0] not in tokenizer["model"]["vocab"]:
        return
    old_ids = {a["content"]: a["id"] for a in tokenizer["added_tokens"]}
    old_ids |= tokenizer["model"]["vocab"]
    order = new_order(tokenizer)
    ids = {token: number for number, token in enumerate(order)}
    _rewrite_tokenizer(tokenizer, ids)
    path.write_text(json.dumps(tokenizer, ensure_ascii=False, indent=1), encoding="utf-8")
    _permute(folder / "model.safetensors", [old_ids[token] for token in order])
    for name in ("config.json", "generation_config.json"):
        _rename_ids(folder / name, {old_ids[token]: ids[token] for token in order})
    settings_path = folder / "tokenizer_config.json"
    settings = json.loads(settings_path.read_text(encoding="utf-8"))
    # Without one, Qwen2's class would add its own unknown token to the vocabulary.
    settings |= {"tokenizer_class": "Qwen2Tokenizer", "unk_token": settings["eos_token"]}
    settings_path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _rewrite_tokenizer(tokenizer: dict[str, Any], ids: dict[str, int]) -> None:
    model = tokenizer["model"]
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) not in DIGITS]
    model["vocab"] = {t: ids[t] for t in sorted(ids, key=ids.__getitem__) if t in model["vocab"]}
    for digit in DIGITS:
        model["vocab"].pop(digit)
    plain = next(a for a in tokenizer["added_tokens"] if not a["special"])
    for digit in DIGITS:
        content = digit.replace("Ġ", " ")
        tokenizer["added_tokens"].append({**plain, "id": ids[digit], "content": content})
    for added in tokenizer["added_tokens"]:
        added["id"] = ids.get(added["content"], added["id"])


def _permute(path: Path, rows: list[int]) -> None:
    weights = load_file(path)
    index = torch.tensor(rows)
    for name in EMBEDDINGS:
        if name in weights:
            weights[name] = weights[name][index].contiguous()
    save_file(weights, path, metadata={"format": "pt"})


def _rename_ids(path: Path, new: dict[int, int]) -> None:
    settings = json.loads(path.read_text(encoding="utf-8"))
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = settings.get(key)
        if value is not None:
            settings[key] = [new[v] for v in value] if isinstance(value, list) else new[value]
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    convert(Path(sys.argv[1]))
