"""The pair's two tokenizers: byte-level BPE, single digits, different texts and sizes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .chains import write_chain
from .prose import document
from .tasks import CONFIGS, DIFFICULTIES, draw

TEACHER_VOCAB = 600
BASE_VOCAB = 512
SAMPLE = 6000  # documents a tokenizer is trained on
THINK = ("<think>", "</think>")
# Words and their leading space, single digits, punctuation, line breaks on their own.
SPLIT = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s*\n|\s+(?!\S)|\s+"

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"
USER, ASSISTANT = "<|User|>", "<|Assistant|>"
BASE_EOS, BASE_PAD = "<|endoftext|>", "<|padding|>"

# Like R1's: the system text comes first, reasoning of earlier turns is cut, and the
# generation prompt opens the reasoning.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ message['content'] }}"
    "{%- elif message['role'] == 'user' -%}{{ '<|User|>' + message['content'] }}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{%- set content = message['content'] -%}"
    "{%- if '</think>' in content -%}{%- set content = content.split('</think>')[-1] -%}"
    "{%- endif -%}"
    "{{ '<|Assistant|>' + content + eos_token }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|Assistant|><think>\\n' }}{%- endif -%}"
)


def _train(texts: Iterator[str], size: int, special: list[str], plain: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(plain),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in plain])
    return tokenizer


def _problem_texts(seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(SAMPLE):
        problem = draw(rng, rng.choice(list(CONFIGS)), rng.choice(DIFFICULTIES))
        yield problem.prompt
        yield write_chain(problem, rng).text.replace("</think>", "")


def _prose_texts(seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(SAMPLE):
        yield document(rng)


def build_teacher(folder: Path) -> PreTrainedTokenizerFast:
    """Train and save the teacher's tokenizer, chat template included."""
    special = [PAD, BOS, EOS, USER, ASSISTANT]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=_train(_problem_texts(11), TEACHER_VOCAB, special, list(THINK)),
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return fast


def build_base(folder: Path) -> PreTrainedTokenizerFast:
    """Train and save the base's tokenizer: no chat template, and tags reserved but unused."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=_train(_prose_texts(12), BASE_VOCAB, [BASE_EOS, BASE_PAD], list(THINK)),
        pad_token=BASE_PAD,
        eos_token=BASE_EOS,
        bos_token=BASE_EOS,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    fast.save_pretrained(folder)
    return fast
