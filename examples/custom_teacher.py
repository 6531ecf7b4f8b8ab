"""Your own teacher and your own student: objects passed to `run`, nothing to register.

    python examples/custom_teacher.py [runs-folder]

The teacher is a program that knows how to add and sometimes slips, so rejection sampling has
something to reject. It needs `identity`, `capabilities` and `complete`; order, concurrency,
retries, seeds and storage are the sampler's. The student is any object with `train`; here it wraps
the usual one and changes a setting.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill import Recipe, run
from distill.protocols import Capabilities, Completion, OnTokens, Request, Usage
from distill.students.sft import SFT
from distill.thinking import join


class Adder:
    """Adds and subtracts step by step, and miscalculates one step in ten."""

    identity = "adder-1"
    capabilities = Capabilities(deterministic=True)

    async def complete(self, request: Request, on_tokens: OnTokens | None = None) -> Completion:
        """One chain of thought for one chain of sums."""
        chance = random.Random(request.seed)
        question = request.prompt[-1]["content"]  # type: ignore[index, call-overload]
        terms = [
            int(t) for t in re.findall(r"[+-]?\d+", question.partition("=")[0].replace(" ", ""))
        ]
        total, steps = terms[0], []
        for term in terms[1:]:
            right = total + term
            value = right + (1 if chance.random() < 0.1 else 0)
            steps.append(f"{total} {'+' if term >= 0 else '-'} {abs(term)} = {value}.")
            total = value
        thought = "\n".join(["Step by step.", *steps, f"So the result is {total}."])
        text = join(thought, f"The answer is \\boxed{{{total}}}.")
        return Completion(text=text, usage=Usage(completion_tokens=len(text) // 3))


class Gentle:
    """The usual trainer, at half the learning rate."""

    version = "1"

    def train(self, dataset: Path, out: Path, config: Mapping[str, Any]) -> Path:
        """Train on `dataset` and return the model folder in `out`."""
        rate = config["train"]["learning_rate"] / 2
        return SFT().train(
            dataset, out, {**config, "train": {**config["train"], "learning_rate": rate}}
        )


def main(runs: str = "runs") -> None:
    """Distil the adder into the pocket base on a handful of problems."""
    recipe = Recipe.from_dict(
        {
            "name": "adder",
            "problems": {
                "heldout": 0.2,
                "sources": [{"task": "chain_sum", "size": 80, "config": {"max_terms": 3}}],
            },
            "sampling": {"n": 2, "max_tokens": 200},
            "student": "pocket-base",
            "train": {"epochs": 1, "learning_rate": 2e-3, "batch_size": 8, "max_length": 512},
            "evaluate": {"samples": 1, "max_tokens": 100, "base_at_best": False},
        }
    )
    report = run(recipe, teacher=Adder(), student=Gentle(), runs=runs)
    print(report)


if __name__ == "__main__":
    main(*sys.argv[1:])
