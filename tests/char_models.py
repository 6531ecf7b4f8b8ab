"""Models of a few thousand random weights and a tokenizer of characters, made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ALPHABET = "0123456789+-=*().,:?! abcdefghijklmnopqrstuvwxyz\n"
SPECIALS = ["<pad>", "<bos>", "<eos>", "<user>", "<bot>"]
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'user' %}<user>{{ m.content }}{% else %}<bot>{{ m.content }}<eos>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)
OPENING = TEMPLATE.replace("<bot>{% endif %}", "<bot><think>\n{% endif %}")


def tokenizer(template: str | None = TEMPLATE, *, special_tags: bool = False) -> Any:
    """One token for a character, five control tokens, and the think tags."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate([*SPECIALS, "<think>", "</think>", *ALPHABET])}
    core = Tokenizer(models.WordLevel(words, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens(SPECIALS)
    core.add_tokens([AddedToken(t, special=special_tags) for t in ("<think>", "</think>")])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    fast.chat_template = template
    return fast


def config(kind: str = "qwen2", **changes: Any) -> Any:
    """A configuration of one of transformers' families, small enough for a test."""
    from transformers import AutoConfig

    settings = {
        "vocab_size": len(SPECIALS) + 2 + len(ALPHABET),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
        "initializer_range": 0.5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return AutoConfig.for_model(kind, **{**settings, **changes})


def model(kind: str = "qwen2", *, seed: int = 0, **changes: Any) -> Any:
    """A causal model with random weights, wide enough spread that greedy has no ties."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config(kind, **changes)).eval()


def save(
    folder: Path,
    kind: str = "llama",
    *,
    template: str | None = TEMPLATE,
    special_tags: bool = False,
    **changes: Any,
) -> Path:
    """Model and tokenizer as a model folder.

    Not Qwen2 by default: transformers 5 gives every folder of that family Qwen's own
    splitting, whatever its tokenizer.json says.
    """
    model(kind, **changes).save_pretrained(folder)
    tokenizer(template, special_tags=special_tags).save_pretrained(folder)
    return folder
