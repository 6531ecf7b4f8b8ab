"""Real tokenizers without a hub: folders for tests, from vocabularies that Python packages carry.

    pip install --no-deps dashscope==2.0.2        Qwen2.5, Qwen3 (its qwen.tiktoken)
    pip install --no-deps llama-models==0.3.0     Llama 3.1 to 3.3 (its tokenizer.model)
    python scripts/real_tokenizers.py models/tokenizers

Writes FOLDER/qwen2, qwen3 and llama3, as far as the packages are installed: `tokenizer.json` with
the family's splitting of words and its added tokens under their published ids, and a config.json
of the family's smallest base. No weights. The packages are read, not imported.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from distill.students import catalog

FILES = {
    "qwen": ("dashscope", "resources/qwen.tiktoken", "dashscope==2.0.2"),
    "llama3": ("llama_models", "llama3/tokenizer.model", "llama-models==0.3.0"),
}
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_WORDS = QWEN_WORDS.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")
# From 151643; True: special. Qwen3 has the last four too (tokenizer_config.json of both).
QWEN = [
    *((t, True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>")),
    *((t, True) for t in ("<|object_ref_end|>", "<|box_start|>", "<|box_end|>")),
    *((t, True) for t in ("<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>")),
    *((t, True) for t in ("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")),
    *((t, False) for t in ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>")),
    *((t, False) for t in ("<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")),
]
QWEN3 = [(t, False) for t in ("<tool_response>", "</tool_response>", "<think>", "</think>")]
# From 128000 (tokenizer.py of llama-models).
LLAMA3 = [
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"),
    *("<|reserved_special_token_1|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
    *(f"<|reserved_special_token_{i}|>" for i in range(3, 248)),
]


def vocabulary(family: str) -> Path | None:
    """The file with the merges of a family inside an installed package, without importing it."""
    package, name, _ = FILES[family]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / name
    return path if path.is_file() else None


def build(file: Path, words: str, added: list[tuple[str, bool]], bos: str = "") -> Any:
    """A byte-level BPE tokenizer of the `tokenizers` library from a tiktoken file."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    ranks = {}
    for line in file.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    letters = _letters()
    spelled = {token: "".join(letters[b] for b in token) for token in ranks}
    merges = [
        (spelled[left], spelled[right])
        for token, _ in sorted(ranks.items(), key=lambda item: item[1])
        for left, right in _splits(ranks, token)
    ]
    core = Tokenizer(
        models.BPE(
            vocab={spelled[t]: r for t, r in ranks.items()}, merges=merges, ignore_merges=bool(bos)
        )
    )
    core.normalizer = None if bos else normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    for text, special in added:
        token = AddedToken(text, special=special, normalized=False)
        (core.add_special_tokens if special else core.add_tokens)([token])
    if bos:
        first = [(bos, core.token_to_id(bos))]
        core.post_processor = processors.TemplateProcessing(f"{bos} $A", None, first)
    return core


def _splits(ranks: dict[bytes, int], token: bytes) -> list[tuple[bytes, bytes]]:
    """All pairs of tokens that make up `token`, the most frequent first."""
    pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
    known = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
    return sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def _letters() -> dict[int, str]:
    """GPT-2's alphabet: a printable character for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    odd = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(odd)}


def save(core: Any, folder: Path, base: str, **names: str) -> None:
    """The tokenizer as the base's folder has it, with its config.json."""
    from transformers import AutoConfig, PreTrainedTokenizerFast

    entry = catalog.find(base)
    arch = entry.arch
    assert arch is not None
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder)
    kind = catalog._data()["families"][entry.family]["match"]["model_type"]
    AutoConfig.for_model(
        kind,
        vocab_size=arch.vocab,
        hidden_size=arch.hidden,
        num_hidden_layers=arch.layers,
        num_attention_heads=arch.heads,
        num_key_value_heads=arch.kv_heads,
        intermediate_size=arch.intermediate,
        head_dim=arch.head_dim or arch.hidden // arch.heads,
        tie_word_embeddings=arch.tied,
        max_position_embeddings=entry.positions,
        eos_token_id=core.token_to_id(names["eos_token"]),
    ).save_pretrained(folder)


def write(out: Path) -> dict[str, str]:
    """Build what can be built into `out`: {family: folder, or how to get its vocabulary}."""
    done = {f: f"pip install --no-deps {FILES[f][2]}" for f in ("qwen", "llama3")}
    qwen, llama3 = vocabulary("qwen"), vocabulary("llama3")
    if qwen:
        del done["qwen"]
        for name, added, base in (
            ("qwen2", QWEN, "Qwen/Qwen2.5-Math-1.5B"),
            ("qwen3", [*QWEN, *QWEN3], "Qwen/Qwen3-0.6B-Base"),
        ):
            core = build(qwen, QWEN_WORDS, added)
            save(core, out / name, base, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
            done[name] = str(out / name)
    if llama3:
        core = build(llama3, LLAMA3_WORDS, [(t, True) for t in LLAMA3], LLAMA3[0])
        save(
            core,
            out / "llama3",
            "meta-llama/Llama-3.1-8B",
            bos_token=LLAMA3[0],
            eos_token=LLAMA3[1],
        )
        done["llama3"] = str(out / "llama3")
    return done


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(json.dumps(write(Path(sys.argv[1])), indent=1))
