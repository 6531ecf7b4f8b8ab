"""Randomly initialised models of the recipes' architectures, two layers deep, with a tokenizer."""

from __future__ import annotations

from pathlib import Path

TEXT = ["What is 3 + 4 ? Add 3 and 4: that makes 7.", "Please reason step by step", "0123456789"]

QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA_TOKENS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]


def save_tiny_model(family: str, folder: Path, *, tied: bool = False) -> Path:
    """A `qwen2` or `llama` model of about 100k parameters, with the family's special tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    vocabulary = _save_tokenizer(family, folder)
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": tied,
    }
    if family == "qwen2":
        # The positions and RoPE base of Qwen2.5-Math, which its recipes change.
        config = Qwen2Config(
            **shape,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            bos_token_id=0,
            eos_token_id=0,
        )
        Qwen2ForCausalLM(config).save_pretrained(folder)
    else:
        config = LlamaConfig(
            **shape,
            max_position_embeddings=131072,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
            bos_token_id=0,
            eos_token_id=1,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _save_tokenizer(family: str, folder: Path) -> int:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = QWEN_TOKENS if family == "qwen2" else LLAMA_TOKENS
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    names = {"eos_token": special[0]}
    if family == "llama":
        # Llama 3's tokenizer writes the BOS itself, and so does its template: doubling is a trap.
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
        )
        names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.save_pretrained(folder)
    return len(fast)
