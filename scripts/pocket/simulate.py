"""A whole distillation in one short script: the yardstick the pair was tuned by.

    python -m scripts.pocket.simulate --teacher teachers/pocket --base students/pocket

Samples the teacher, keeps the correct chains, fine-tunes the base, and compares student and base
on held-out problems; ``--unfiltered`` trains on as many chains drawn from all of them instead.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from .sampling import Draw, sample, student_prompt
from .tasks import CONFIGS, DIFFICULTIES, Problem, items
from .train import IGNORE, loss_of

TRAIN_SEED, HELD_OUT_SEED = 0, 900


def problems(seed: int, each: int) -> list[Problem]:
    """``each`` problems of every task and difficulty."""
    return [p for task in CONFIGS for level in DIFFICULTIES for p in items(task, level, seed, each)]


def summary(name: str, draws: list[Draw]) -> dict[str, float]:
    """pass@1, parsed share, and a table by task and difficulty."""
    cells: dict[str, list[bool]] = defaultdict(list)
    for d in draws:
        cells[f"{d.problem.task} {d.problem.difficulty[0]}"].append(d.correct)
    correct = sum(d.correct for d in draws) / len(draws)
    parsed = sum(d.answer is not None for d in draws) / len(draws)
    out = {
        "pass@1": round(correct, 4),
        "parsed": round(parsed, 4),
        "among parsed": round(correct / max(parsed, 1e-9), 4),
        "truncated": round(sum(not d.stopped for d in draws) / len(draws), 4),
        "tokens": round(sum(d.tokens for d in draws) / len(draws), 1),
    }
    table = " ".join(f"{k} {sum(v) / len(v):.2f}" for k, v in cells.items())
    print(f"{name}: {json.dumps(out)}\n   {table}", flush=True)
    return out


def load(folder: Path) -> tuple[PreTrainedModel, AutoTokenizer]:
    """fp32: bf16 is ten times slower on most CPUs."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def fine_tune(
    model: PreTrainedModel, tokenizer: AutoTokenizer, chains: list[Draw], args: argparse.Namespace
) -> None:
    """Full fine-tuning on completions, cosine-free: linear decay, AdamW, batches by length."""
    rows = []
    for d in chains:
        start = tokenizer(student_prompt(d.problem)).input_ids
        ids = start + tokenizer(" " + d.text).input_ids
        rows.append((ids + [tokenizer.eos_token_id] * d.stopped, len(start)))
    rng = random.Random(args.seed)
    steps = args.epochs * (len(rows) // args.batch)
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0, fused=True)
    step = tokens = 0
    began = time.time()
    for _ in range(args.epochs):
        rng.shuffle(rows)
        for at in range(0, len(rows) - args.batch + 1, args.batch):
            group = rows[at : at + args.batch]
            width = max(len(ids) for ids, _ in group)
            inputs = torch.full((len(group), width), tokenizer.pad_token_id)
            labels = torch.full((len(group), width), IGNORE)
            for row, (ids, start) in enumerate(group):
                inputs[row, : len(ids)] = torch.tensor(ids)
                labels[row, start : len(ids)] = torch.tensor(ids[start:])
            optimiser.param_groups[0]["lr"] = args.lr * min(
                1.0, (step + 1) / 20, 0.05 + (steps - step) / steps
            )
            loss = loss_of(model, (inputs, labels))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            step += 1
            tokens += sum(len(ids) for ids, _ in group)
            if step % 50 == 0:
                print(f"   step {step}/{steps} loss {loss.item():.3f}", flush=True)
    spent = time.time() - began
    print(f"   trained {tokens:,} tokens in {spent:.0f}s, {tokens / spent:.0f} tok/s", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--teacher", type=Path, default=Path("teachers/pocket"))
    parser.add_argument("--base", type=Path, default=Path("students/pocket"))
    parser.add_argument("--each", type=int, default=67, help="problems per task and difficulty")
    parser.add_argument("--n", type=int, default=4, help="chains per problem")
    parser.add_argument("--keep", type=int, default=4, help="correct chains kept per problem")
    parser.add_argument("--held-out", type=int, default=14, help="per task and difficulty")
    parser.add_argument("--k", type=int, default=4, help="samples per held-out problem")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--unfiltered", action="store_true")
    parser.add_argument("--only", choices=["teacher", "base", "student"], default="student")
    run(parser.parse_args())


def run(args: argparse.Namespace) -> None:
    """Sample, select, train, evaluate."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    held_out = [p for p in problems(HELD_OUT_SEED, args.held_out) for _ in range(args.k)]
    base, base_tokenizer = load(args.base)
    if args.only != "teacher":
        summary("base", sample(base, base_tokenizer, held_out, chat=False))
    if args.only == "base":
        return
    teacher, tokenizer = load(args.teacher)
    began = time.time()
    pool = [p for p in problems(TRAIN_SEED, args.each) for _ in range(args.n)]
    draws = sample(teacher, tokenizer, pool, chat=True)
    spent = time.time() - began
    rate = sum(d.tokens for d in draws) / spent
    print(f"sampled {len(draws)} in {spent:.0f}s, {rate:.0f} tok/s", flush=True)
    summary("teacher", draws)
    if args.only == "teacher":
        return
    chains = [d for d in draws if d.correct]
    if args.unfiltered:
        chains = random.Random(args.seed).sample(draws, len(chains))
    print(f"training on {len(chains)} chains", flush=True)
    base.train()
    fine_tune(base, base_tokenizer, chains, args)
    base.eval()
    summary("student", sample(base, base_tokenizer, held_out, chat=False))


if __name__ == "__main__":
    main()
