"""Every method trains SmolLM2-135M for real: losses before and after, and an answer of each.

    python scripts/smollm2.py models/SmolLM2-135M-Instruct
    python scripts/nightly_students.py [--examples 120] [--methods full lora qlora] [--out DIR]

Trains on step-by-step sums (generated from a seed), measures the loss on sums that were not
trained before and after, asks one of them, and writes the student as GGUF. With one thread of a
small CPU a method takes about ten minutes at 120 examples. The last line of each method is
`NAME ratio=X goal=Y`: loss after over loss before. Fails where a loss did not fall below half, an
answer did not end, or one came without thinking.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from distill.students.export_gguf import write_gguf
from distill.students.loading import prepare
from distill.students.render import IGNORED, render
from distill.students.sft import SFT
from distill.thinking import split

MODEL = Path(__file__).parents[1] / "models" / "SmolLM2-135M-Instruct"
METHODS = ("full", "lora", "qlora")
RATES = {"full": 2e-4, "lora": 1e-3, "qlora": 1e-3}
GOAL = 0.5


def example(rng: random.Random) -> dict[str, Any]:
    """A sum of two numbers of two digits, done by tens and ones."""
    a, b = rng.randrange(10, 100), rng.randrange(10, 100)
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    thinking = (
        f"The tens: {a // 10 * 10} + {b // 10 * 10} = {tens}. The ones: {a % 10} + {b % 10} = "
        f"{ones}. Together: {tens} + {ones} = {a + b}."
    )
    answer = f"<think>\n{thinking}\n</think>\n\nThe answer is \\boxed{{{a + b}}}."
    return {
        "messages": [
            {"role": "user", "content": f"What is {a} + {b}?"},
            {"role": "assistant", "content": answer},
        ]
    }


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [example(rng) for _ in range(count)]


def config(method: str) -> dict[str, Any]:
    """What SFT.train takes: small batches, and everything else as recipes have it."""
    train = {
        "epochs": 2,
        "learning_rate": RATES[method],
        "min_lr_ratio": 0.1,
        "warmup_ratio": 0.1,
        "batch_size": 4,
        "max_length": 256,
        "packing": True,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "adam_beta2": 0.999,
        "lora": {"rank": 16, "alpha": 32, "dropout": 0.0},
        "micro_batch_tokens": 512,
        "gradient_checkpointing": False,
        "precision": "auto",
        "attention": None,
        "save_every": 100,
        "trackers": [],
    }
    student = {"base": str(MODEL), "method": method, "template": "", "think_tokens": "text"}
    return {"student": student, "train": train, "seed": 0, "card": {"name": f"sums-{method}"}}


def loss(model: Any, tokenizer: Any, spec: Any, examples: list[dict[str, Any]]) -> float:
    """Mean cross-entropy per trained token."""
    import torch

    total, count = 0.0, 0
    for row in examples:
        one = render(row["messages"], tokenizer, spec)
        labels = torch.tensor([one.labels])
        trained = int((labels != IGNORED).sum())
        with torch.no_grad():
            found = model(input_ids=torch.tensor([one.input_ids]), labels=labels).loss
        total, count = total + float(found) * trained, count + trained
    return total / count


def asked(model: Any, tokenizer: Any, question: list[dict[str, str]]) -> tuple[str, bool]:
    """The greedy answer to a question, and whether it ended by itself."""
    ids = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**ids, do_sample=False, temperature=None, top_p=None, max_new_tokens=160)
    new = out[0, ids["input_ids"].shape[1] :].tolist()
    ended = bool(new) and new[-1] == tokenizer.eos_token_id
    return tokenizer.decode(new, skip_special_tokens=True), ended


def one(method: str, examples: int, out: Path) -> bool:
    """Train by one method and say what came of it; True if all is well."""
    from transformers import AutoModelForCausalLM

    out.mkdir(parents=True, exist_ok=True)
    data, held = out / "dataset.jsonl", rows(12, seed=1)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(examples, seed=0)))
    ready = prepare(config(method)["student"])
    base = AutoModelForCausalLM.from_pretrained(MODEL)
    before = loss(base, ready.tokenizer, ready.spec, held)
    del base
    folder = SFT().train(data, out, config(method))
    student = AutoModelForCausalLM.from_pretrained(folder)
    after = loss(student, ready.tokenizer, ready.spec, held)
    question = held[0]["messages"][:1]
    said, ended = asked(student, ready.tokenizer, question)
    thought = split(f"<think>\n{said}").reasoning
    file = write_gguf(folder, out / f"sums-{method}.gguf", "q8_0", converter="")
    told = json.loads((out / "summary.json").read_text())
    print(f"{method}: {told['updates']} updates, {told['train_seconds']:.0f} s, ", end="")
    print(f"{told['tokens_per_second']} tokens/s; GGUF {file['bytes'] / 1e6:.0f} MB")
    print(f"{question[0]['content']}\n{said}\n[{'ended' if ended else 'did not end'}]")
    ratio = after / before
    print(f"loss on unseen sums: {before:.3f} before, {after:.3f} after")
    print(f"nightly_students_{method} ratio={ratio:.3f} goal={GOAL}", flush=True)
    return ratio < GOAL and ended and bool(thought)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=120)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not (MODEL / "config.json").is_file():
        sys.exit(f"no {MODEL}: python scripts/smollm2.py {MODEL}")
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or Path(scratch)
        fine = [one(method, options.examples, out / method) for method in options.methods]
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
