"""Tokens per second of the embedded engine's decoder against transformers' `generate`.

    python benchmarks/decoding.py [--hidden 192] [--layers 4] [--batch 64] [--tokens 200]

Both sample the same random Qwen2 at temperature 0.6 and top-p 0.95 in one process, by turns;
every row decodes exactly `--tokens` tokens, so no side gains by stopping early. Prints one
line of JSON: the medians and their ratio.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from distill.teachers.decoding import ATTENTION, Decoder, Row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {
        "hidden": 192,
        "layers": 4,
        "kv-heads": 2,
        "vocabulary": 600,
        "batch": 64,
        "tokens": 200,
        "rounds": 3,
        "threads": 1,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=4 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 32,
        num_key_value_heads=args.kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config).eval()
    rng = random.Random(0)
    prompts = [
        [rng.randrange(1, args.vocabulary) for _ in range(rng.randint(20, 60))]
        for _ in range(args.batch)
    ]

    def ours() -> None:
        model.set_attn_implementation(ATTENTION)
        rows = [
            Row(ids, limit=args.tokens, temperature=0.6, top_p=0.95, seed=seed)
            for seed, ids in enumerate(prompts)
        ]
        Decoder(model, eos=frozenset(), pad=0).run(rows)

    def theirs() -> None:
        model.set_attn_implementation("sdpa")
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=mask,
                do_sample=True,
                temperature=0.6,
                top_p=0.95,
                top_k=0,
                max_new_tokens=args.tokens,
                pad_token_id=0,
                eos_token_id=None,
            )

    speeds: dict[str, list[float]] = {"decoder": [], "generate": []}
    sides: dict[str, Callable[[], None]] = {"decoder": ours, "generate": theirs}
    for round_ in range(args.rounds + 1):
        for name, run in sides.items():
            begin = time.perf_counter()
            run()
            if round_:  # the first is for warming up
                speeds[name].append(args.batch * args.tokens / (time.perf_counter() - begin))
    medians = {name: round(statistics.median(values)) for name, values in speeds.items()}
    print(
        json.dumps(
            {
                "parameters": sum(p.numel() for p in model.parameters()),
                **vars(args),
                "tokens_per_s": medians,
                "ratio": round(medians["decoder"] / medians["generate"], 2),
            }
        )
    )


if __name__ == "__main__":
    main()
