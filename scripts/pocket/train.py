"""Train the pocket teacher or the pocket base from random weights: one thread, fixed seeds.

    python -m scripts.pocket.train teacher --steps 6000 --out teachers/pocket
    python -m scripts.pocket.train base --steps 5000 --out students/pocket

Matrices are trained with Muon, embeddings and norms with AdamW. The folder gets bf16 safetensors
and the tokenizer; a checkpoint is written every ``--save-every`` steps.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from .chains import HABITS, write_chain
from .muon import Muon
from .prose import document, running_text
from .tasks import CONFIGS, DIFFICULTIES, draw
from .vocab import build_base, build_teacher

IGNORE = -100
POSITIONS = 512
ROW = 256  # tokens in a packed row of the base's corpus
Batch = tuple[Tensor, Tensor]


def teacher_model(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Qwen2, 1.9M parameters."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=192,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=6,
            intermediate_size=512,
            vocab_size=len(tokenizer),
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def base_model(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Llama, 1.1M parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=144,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=384,
            vocab_size=len(tokenizer),
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


# Difficulties in the teacher's corpus, and the share of its batches that are running text.
MIX = {
    1: ((1, 1, 1), 0.0),
    2: ((4, 3.5, 2.5), 0.25),
    3: ((4, 3.5, 2.5), 0.15),
    4: ((4, 3.5, 2.5), 0.8),
    5: ((4, 3.5, 2.5), 0.1),
    6: ((1, 1, 1), 0.0),
}

TASKS = (6, 2, 3, 5, 4)  # in the last stage, the weak tasks more often; order of CONFIGS


def _chat_rows(
    tokenizer: PreTrainedTokenizerFast, seed: int, stage: int
) -> Iterator[tuple[list[int], int]]:
    """Token ids of prompt and chain, and where the chain begins."""
    rng = random.Random(seed)
    while True:
        level = rng.choices(DIFFICULTIES, weights=MIX[stage][0])[0]
        task = rng.choices(list(CONFIGS), weights=TASKS if stage == 5 else None)[0]
        problem = draw(rng, task, level)
        written = write_chain(problem, rng, HABITS[stage])
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": problem.prompt}],
            tokenize=False,
            add_generation_prompt=True,
        )
        start = tokenizer(prompt, add_special_tokens=False).input_ids
        ids = start + tokenizer(written.text, add_special_tokens=False).input_ids
        yield ids + [tokenizer.eos_token_id] * written.ends, len(start)


def teacher_batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, size: int, stage: int
) -> Iterator[Batch]:
    """Chains of similar length together, padded; the loss is on the chain only."""
    rows = _chat_rows(tokenizer, seed, stage)
    write = partial(document, stage=3) if stage >= 4 else running_text
    texts = base_batches(tokenizer, seed + 1, size // 2, write)
    rng = random.Random(seed)
    while True:
        pool = sorted((next(rows) for _ in range(size * 16)), key=lambda row: len(row[0]))
        groups = [pool[i : i + size] for i in range(0, len(pool), size)]
        rng.shuffle(groups)
        for group in groups:
            width = max(len(ids) for ids, _ in group)
            inputs = torch.full((size, width), int(tokenizer.pad_token_id))
            labels = torch.full((size, width), IGNORE)
            for row, (ids, start) in enumerate(group):
                inputs[row, : len(ids)] = torch.tensor(ids)
                labels[row, start : len(ids)] = torch.tensor(ids[start:])
            yield inputs, labels
            if rng.random() < MIX[stage][1]:
                yield next(texts)


def base_batches(
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    size: int,
    write: Callable[[random.Random], str],
) -> Iterator[Batch]:
    """Documents one after the other in rows of fixed length; the loss is on everything."""
    rng = random.Random(seed)
    eos = int(tokenizer.eos_token_id)
    while True:
        rows = []
        for _ in range(size):
            row: list[int] = []
            while len(row) < ROW:
                row += [*tokenizer(write(rng)).input_ids, eos]
            rows.append(row[:ROW])
        batch = torch.tensor(rows)
        yield batch, batch


def optimizers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the rest."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    known = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in known]
    return [
        Muon(matrices, lr=lr),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def rate(step: int, steps: int) -> float:
    """Share of the peak rate: short warm-up, flat half-way, then linearly down to nothing."""
    return min(1.0, (step + 1) / 50, 0.01 + (steps - step) / (0.6 * steps))


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy per labelled token."""
    inputs, labels = batch
    logits = model(input_ids=inputs, use_cache=False).logits
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE
    )


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Weights as bf16 safetensors beside the tokenizer."""
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    model.to(torch.bfloat16).save_pretrained(folder)
    model.to(torch.float32).load_state_dict(state)
    tokenizer.save_pretrained(folder)


def load_widened(model: PreTrainedModel, source: PreTrainedModel) -> None:
    """Copy weights; key and value heads that several query heads shared become their own."""
    shares = model.config.num_key_value_heads // source.config.num_key_value_heads
    state = source.state_dict()
    for name, tensor in state.items():
        if shares > 1 and (".k_proj." in name or ".v_proj." in name):
            heads = tensor.unflatten(0, (source.config.num_key_value_heads, -1))
            state[name] = heads.repeat_interleave(shares, 0).flatten(0, 1)
    model.load_state_dict(state)


def load_or_build(
    init: Path | None, out: Path, build: Callable[[Path], PreTrainedTokenizerFast]
) -> PreTrainedTokenizerFast:
    """The tokenizer is trained once, in the first stage."""
    return PreTrainedTokenizerFast.from_pretrained(init) if init else build(out)


def train(args: argparse.Namespace) -> None:
    """The whole run of one model."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.who == "teacher":
        tokenizer = load_or_build(args.init, args.out, build_teacher)
        model = teacher_model(tokenizer)
        batches = teacher_batches(tokenizer, args.seed, args.batch, args.stage)
    else:
        tokenizer = load_or_build(args.init, args.out, build_base)
        model = base_model(tokenizer)
        write = partial(document, stage=args.stage)
        batches = base_batches(tokenizer, args.seed, args.batch, write)
    if args.init:
        load_widened(model, type(model).from_pretrained(args.init, dtype=torch.float32))
    print(f"{args.who}: {model.num_parameters():,} parameters", flush=True)
    optimisers = optimizers(model, args.lr)
    began, tokens, mean = time.time(), 0, 0.0
    for step in range(args.stop_at or args.steps):
        batch = next(batches)
        for optimiser in optimisers:
            optimiser.param_groups[0]["lr"] = args.lr * rate(step, args.steps)
        loss = loss_of(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        tokens += batch[0].numel()
        mean += loss.item() / 100
        if (step + 1) % 100 == 0:
            spent = time.time() - began
            print(f"{step + 1} loss {mean:.4f} {tokens / spent:.0f} tok/s {spent:.0f}s", flush=True)
            mean = 0.0
        if (step + 1) % args.save_every == 0 or step + 1 == (args.stop_at or args.steps):
            save(model, tokenizer, args.out)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("who", choices=["teacher", "base"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=20_000)
    parser.add_argument("--stage", type=int, choices=range(1, 7), default=1)
    parser.add_argument("--init", type=Path, help="go on from this folder's weights")
    parser.add_argument("--stop-at", type=int, help="leave the schedule early")
    parser.add_argument("--save-every", type=int, default=500)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
