"""A tiny base for students: a few thousand random weights and a byte-level tokenizer."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA3 = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
)
MISTRAL = ("<s>", "</s>", "[INST]", "[/INST]")
GEMMA = ("<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>")
PHI3 = ("<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")


def tokenizer(specials: tuple[str, ...] = CHATML, **settings: Any) -> Any:
    """One token for a byte, and special tokens; EOS and PAD are the first, as Qwen's base has.

    `adds_bos`: it begins every text with BOS, as Llama 3's does.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: i for i, word in enumerate([*alphabet, *specials])}
    core = Tokenizer(models.BPE(vocab={w: words[w] for w in alphabet}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(specials))
    if settings.pop("adds_bos", False):
        bos = str(settings["bos_token"])
        first = [(bos, core.token_to_id(bos))]
        core.post_processor = processors.TemplateProcessing(f"{bos} $A", None, first)
    settings = {"eos_token": specials[0], "pad_token": specials[0], **settings}
    return PreTrainedTokenizerFast(tokenizer_object=core, **settings)


def base(
    folder: Path,
    kind: str = "llama",
    specials: tuple[str, ...] = CHATML,
    tokens: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A base model folder with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tok = tokenizer(specials, **(tokens or {}))
    settings = {
        "vocab_size": len(tok),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "eos_token_id": tok.eos_token_id,
        "pad_token_id": None,
        "bos_token_id": None,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **{**settings, **changes})
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


def example(a: int, b: int, words: int = 3) -> dict[str, Any]:
    """A sum with a chain of thought."""
    chain = " ".join([f"{a} plus {b}."] * words)
    return {
        "messages": [
            {"role": "user", "content": f"{a}+{b}=?"},
            {"role": "assistant", "content": f"<think>\n{chain}\n</think>\n\n\\boxed{{{a + b}}}"},
        ]
    }


def dataset(path: Path, count: int = 20, seed: int = 0) -> Path:
    """Sums with chains of different lengths."""
    rng = random.Random(seed)
    rows = [
        example(rng.randrange(100), rng.randrange(100), rng.randrange(1, 6)) for _ in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(base: Path, **changes: Any) -> dict[str, Any]:
    """What SFT.train gets, with small values; `student__key` and `lora__key` reach deeper."""
    student = {"base": str(base), "method": "full", "template": "", "think_tokens": "text"}
    lora = {"rank": 4, "alpha": 8, "dropout": 0.0}
    train: dict[str, Any] = {
        "epochs": 2,
        "learning_rate": 1e-2,
        "min_lr_ratio": 0.1,
        "warmup_ratio": 0.1,
        "batch_size": 8,
        "max_length": 256,
        "packing": True,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "adam_beta2": 0.999,
        "max_steps": None,
        "seed": None,
        "lora": lora,
        "micro_batch_tokens": 512,
        "gradient_checkpointing": False,
        "precision": "auto",
        "attention": None,
        "processes": 1,
        "nodes": 1,
        "shard": "none",
        "offload": False,
        "context_parallel": 1,
        "kernels": "auto",
        "keep": "last",
        "early_stop": None,
        "average": 1,
        "save_every": 100,
        "trackers": [],
    }
    for key, value in changes.items():
        section, _, rest = key.partition("__")
        target = {"student": student, "lora": lora}.get(section, train)
        target[rest if target is not train else key] = value
    return {"student": student, "train": train, "seed": 3, "card": {"name": "tiny"}}
