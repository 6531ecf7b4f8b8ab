"""Tiny bases whose tokenizers have merges and split text by the rules of real families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.students.export_gguf_tokenizer import LLAMA3, QWEN2
from tests import tiny_students

TEXT = [
    "What is 12 + 345? The answer is 357, isn't it. They're 7 legs and 40 apples.\n\nSo we add.",
    "plus the sum is then the answer; I'll think about it: 2024 and 1234567 (what?) \\boxed{57}",
]


def tokenizer(rule: str = "gpt-2", specials: tuple[str, ...] = tiny_students.CHATML) -> Any:
    """A byte-level BPE learned from TEXT, splitting as `rule` (llama.cpp's name) does."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = {
        "gpt-2": whole,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole]),
        "qwen2": pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(QWEN2), "isolated"), bytes_only]
        ),
        "llama-bpe": pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), bytes_only]
        ),
    }[rule]
    core = Tokenizer(models.BPE(ignore_merges=rule == "llama-bpe"))
    core.pre_tokenizer = split
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(specials),
        show_progress=False,
    )
    core.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=specials[0], pad_token=specials[0]
    )


def base(folder: Path, kind: str = "llama", rule: str = "gpt-2", **changes: Any) -> Path:
    """As `tiny_students.base`, with such a tokenizer."""
    words = tokenizer(rule)
    tiny_students.base(folder, kind, vocab_size=len(words) + 3, **changes)
    words.save_pretrained(folder)
    return folder
