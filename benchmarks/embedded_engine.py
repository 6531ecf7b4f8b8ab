"""Useful tokens per second of the embedded engine against a plain batched `generate` loop.

    python -m benchmarks.embedded_engine [--model FOLDER] [--batch 64] [--requests 128]
                                         [--limit 384] [--rounds 3] [--threads 1]

Both sides sample the same chats on the same weights, in the same batches of the same size, at
temperature 0.6 and top-p 0.95, until the end-of-sequence token or the limit, and decode the text.
Lengths are those that the model itself chooses: with the pocket teacher most answers take some 80
tokens and one in a hundred runs into the limit, so that nearly every batch has such a row. Useful
are the tokens up to and with a row's end; what `generate` computes behind it is not counted.

The sides take turns batch by batch; a round's ratio is that of its tokens per second, and the
result is the median over the rounds. The first batch of both is for warming up.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import distill.teachers
from distill.problems import make_problems
from distill.protocols import Completion, Request, SamplingParams
from distill.recipe import Recipe
from distill.records import Problem, read_records
from distill.teachers.transformers import TransformersTeacher
from distill.wanted import request_seed

GOAL = 1.5
TEMPERATURE, TOP_P = 0.6, 0.95
POCKET = Path(distill.teachers.__file__).parent / "pocket"

Batch = Sequence[Problem]


class Ours:
    """The embedded engine, as a recipe would build it."""

    def __init__(self, model: str, batch: int, limit: int, threads: int) -> None:
        self.teacher = TransformersTeacher(model, batch_size=batch, threads=threads, device="cpu")
        self.teacher.open()
        self.params = SamplingParams(temperature=TEMPERATURE, top_p=TOP_P, max_tokens=limit)

    def __call__(self, batch: Batch, seed: int) -> list[int]:
        requests = [
            Request(
                key=p.id, prompt=p.messages, params=self.params, seed=request_seed(seed, p.id, 0)
            )
            for p in batch
        ]
        done = self.teacher.complete_batch(requests)
        return [item.usage.completion_tokens for item in done if isinstance(item, Completion)]


class Generate:
    """What one writes without an engine: pad on the left, generate, cut at the end token."""

    def __init__(self, ours: Ours, model: str, limit: int) -> None:
        where = ours.teacher._where
        self.tokenizer = AutoTokenizer.from_pretrained(where.source, revision=where.commit)
        self.tokenizer.padding_side = "left"
        self.model = AutoModelForCausalLM.from_pretrained(
            where.source, revision=where.commit, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        self.eos = sorted(ours.teacher._decoder.eos)
        self.limit = limit

    def __call__(self, batch: Batch, seed: int) -> list[int]:
        torch.manual_seed(seed)
        inputs = self.tokenizer.apply_chat_template(
            [list(p.messages) for p in batch],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        )
        with torch.inference_mode():
            out = self.model.generate(
                **inputs,
                do_sample=True,
                temperature=TEMPERATURE,
                top_p=TOP_P,
                top_k=0,
                max_new_tokens=self.limit,
                eos_token_id=self.eos,
                pad_token_id=self.tokenizer.pad_token_id or 0,
            )
        new = out[:, inputs["input_ids"].shape[1] :]
        self.tokenizer.batch_decode(new)
        ends = torch.isin(new, torch.tensor(self.eos))
        first = torch.where(ends.any(1), ends.int().argmax(1) + 1, new.shape[1])
        return [int(length) for length in first]


def pocket_problems(count: int) -> list[Problem]:
    """Problems of the pocket recipe, mixed."""
    recipe = Recipe.load("pocket")
    with tempfile.TemporaryDirectory() as folder:
        make_problems(recipe.problems, folder=recipe.folder, out=Path(folder))
        problems = list(read_records(Problem, Path(folder) / "problems.jsonl"))
    random.Random(0).shuffle(problems)
    return (problems * (count // len(problems) + 1))[:count]


def measure(
    sides: dict[str, Callable[[Batch, int], list[int]]], batches: Sequence[Batch], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    """Tokens per second of each side and round, and the lengths it produced."""
    for run in sides.values():
        run(batches[0], 0)
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    lengths: dict[str, list[int]] = {name: [] for name in sides}
    for round_ in range(1, rounds + 1):
        seconds = dict.fromkeys(sides, 0.0)
        tokens = dict.fromkeys(sides, 0)
        for batch in batches:
            for name, run in sides.items():
                begin = time.perf_counter()
                made = run(batch, round_)
                seconds[name] += time.perf_counter() - begin
                tokens[name] += sum(made)
                lengths[name] += made
        for name in sides:
            speeds[name].append(tokens[name] / seconds[name])
    return speeds, lengths


def spread(values: list[int]) -> list[Any]:
    """Median, 90th and 99th percentile and maximum."""
    ordered = sorted(values)
    return [ordered[int(q * (len(ordered) - 1))] for q in (0.5, 0.9, 0.99, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(POCKET), help="a folder; default: pocket teacher")
    for name, default in {
        "batch": 64,
        "requests": 128,
        "limit": 384,
        "rounds": 3,
        "threads": 1,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    problems = pocket_problems(args.requests)
    batches = [problems[i : i + args.batch] for i in range(0, len(problems), args.batch)]
    ours = Ours(args.model, args.batch, args.limit, args.threads)
    sides = {"distill": ours, "generate": Generate(ours, args.model, args.limit)}
    speeds, lengths = measure(sides, batches, args.rounds)
    print(
        f"{Path(args.model).name}: {args.requests} requests in batches of {args.batch}, at most"
        f" {args.limit} new tokens, {args.rounds} rounds, {args.threads} thread(s)"
    )
    print(f"{'':10}  useful tokens/s  tokens: median   90%   99%   most")
    for name, values in speeds.items():
        median, p90, p99, most = spread(lengths[name])
        speed = statistics.median(values)
        print(f"{name:10}  {speed:15,.0f}  {median:14} {p90:5} {p99:5} {most:6}")
    ratios = [a / b for a, b in zip(speeds["distill"], speeds["generate"], strict=True)]
    print(f"embedded_engine ratio={statistics.median(ratios):.2f} goal={GOAL}")


if __name__ == "__main__":
    main()
