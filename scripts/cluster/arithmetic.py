"""What sampling R1's data takes: samples, tokens, hours, money, disk; every assumption named.

    python scripts/cluster/arithmetic.py
    python scripts/cluster/arithmetic.py --gpus 64 --traces-per-gpu-hour 60 --price 2.0

Prints the table of docs/many-gpus.md. The defaults are those of DeepSeek-R1 on 512 H100s as open-r1
ran it; put in what your own first hour shows (`metrics.jsonl` has traces_per_s and tokens_per_s).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

from distill.records import Trace, dumps, to_row

REASONING, GENERAL = 600_000, 200_000
"""Kept traces of DeepSeek-R1: about 600k checked by an answer, 200k not (arXiv 2501.12948v1)."""
MEAN_TOKENS = 5355
"""Mean tokens of a kept trace (arXiv 2501.12948v2, Table 5)."""
OPEN_R1_PER_DAY, OPEN_R1_GPUS = 180_000, 512
"""R1 traces a day on 512 H100s (open-r1, Update 2, February 2025)."""
PROMPT_TOKENS = 200
BYTES_PER_TOKEN = 3.2
"""Of English mathematics in UTF-8 under R1's tokenizer; assumed."""


@dataclass(frozen=True)
class Job:
    """One row: the share of samples that is accepted, and what follows from it."""

    accepted: float
    gpus: int
    per_gpu_hour: float
    price: float
    disk: float

    @property
    def samples(self) -> float:
        return REASONING / self.accepted + GENERAL

    @property
    def tokens(self) -> float:
        return self.samples * MEAN_TOKENS

    @property
    def gpu_hours(self) -> float:
        return self.samples / self.per_gpu_hour

    @property
    def days(self) -> float:
        return self.gpu_hours / self.gpus / 24

    def row(self) -> str:
        return (
            f"| {self.accepted:.0%} | {self.samples / 1e6:.1f}M | {self.tokens / 1e9:.1f}B "
            f"| {self.gpu_hours:,.0f} | {self.days:.1f} | {self.gpu_hours * self.price:,.0f} "
            f"| {self.samples * self.disk / 1e9:,.0f} GB |"
        )


def bytes_of_a_trace(token_ids: bool) -> int:
    """Size of a mean trace's line in the pool, as the pool writes it."""
    ids = tuple(60_000 + i % 40_000 for i in range(MEAN_TOKENS)) if token_ids else None
    chars = round(MEAN_TOKENS * BYTES_PER_TOKEN)
    trace = Trace(
        problem_id="0" * 16,
        index=0,
        seed=2**30,
        text="x" * chars,
        # The pool keeps the text and its two parts, so that files can be read as they are.
        reasoning="x" * round(0.9 * chars),
        answer="x" * round(0.1 * chars),
        token_ids=ids,
        prompt_ids=tuple(range(60_000, 60_000 + PROMPT_TOKENS)) if token_ids else None,
        teacher="openai:deepseek-ai/DeepSeek-R1@undeclared",
    )
    return len(dumps(to_row(trace)).encode())


def table(gpus: int, per_gpu_hour: float, price: float, token_ids: bool) -> str:
    """Rows for shares of accepted samples of 75%, 50% and 25%, and the ideal of 100%."""
    head = "| accepted | samples | tokens | GPU hours | days | money | pool |\n" + "|---" * 7 + "|"
    size = bytes_of_a_trace(token_ids)
    rows = [Job(share, gpus, per_gpu_hour, price, size).row() for share in (1.0, 0.75, 0.5, 0.25)]
    return "\n".join([head, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    measured = OPEN_R1_PER_DAY / OPEN_R1_GPUS / 24
    parser.add_argument("--gpus", type=int, default=OPEN_R1_GPUS)
    parser.add_argument("--traces-per-gpu-hour", type=float, default=measured)
    parser.add_argument("--price", type=float, default=2.5, help="money for one GPU hour")
    parser.add_argument("--without-token-ids", action="store_true")
    args = parser.parse_args()
    ids = not args.without_token_ids
    facts = {
        "gpus": args.gpus,
        "traces_per_gpu_hour": round(args.traces_per_gpu_hour, 2),
        "tokens_per_s": round(args.traces_per_gpu_hour * args.gpus * MEAN_TOKENS / 3600),
        "tokens_per_s_and_gpu": round(args.traces_per_gpu_hour * MEAN_TOKENS / 3600, 1),
        "price": args.price,
        "bytes_of_a_trace": bytes_of_a_trace(ids),
        "bytes_of_a_trace_without_ids": bytes_of_a_trace(False),
    }
    print(table(args.gpus, args.traces_per_gpu_hour, args.price, ids))
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
