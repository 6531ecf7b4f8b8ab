"""What the planner stands on, measured: memory by students/memory.py, FLOPs by students/flops.py.

    python -m benchmarks.planner [--more] [--gpu] [--only parameters flops training fake gpu]

Every memory row is a run: a real training of a small model through `distill.students` with all its
tensors counted, a pass of a real architecture on tensors without data ("fake tensors"), or with
--gpu a training step of a real architecture, read from the allocator. The last line is the
greatest factor between a predicted and a measured peak.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

GOAL, FLOPS_GOAL = 1.10, 1.02
PARTS = ("parameters", "flops", "training", "fake")


def sizes(hidden: int, inner: int, layers: int, **more: Any) -> dict[str, Any]:
    """Words of a transformers config."""
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        **more,
    }


def cases(more: bool) -> Iterator[Any]:
    """Trainings: every architecture and method, layouts, precisions, processes."""
    from benchmarks.planner_train import Case

    small, tied = sizes(64, 192, 4), sizes(64, 192, 4, tie_word_embeddings=True)
    wide, heads = sizes(256, 512, 2, num_key_value_heads=4), sizes(64, 128, 3, head_dim=32)
    saved = {"gradient_checkpointing": True}
    padded, masked = {"packing": False}, {"attention": "sdpa"}
    bf16, lora = {"precision": "bf16"}, {"student__method": "lora"}
    qlora, new = {"student__method": "qlora"}, {"student__think_tokens": "tokens"}
    yield Case("llama full", "llama", small, {})
    yield Case("llama full, tied, checkpointed", "llama", tied, saved)
    yield Case("llama full bf16, checkpointed", "llama", small, {**saved, **bf16})
    yield Case("qwen2 full, padded", "qwen2", small, padded)
    yield Case("qwen2 full, wide, checkpointed", "qwen2", wide, saved)
    yield Case("qwen3 full, masked rows", "qwen3", heads, masked)
    yield Case("qwen3 full, tied, padded", "qwen3", {**heads, **tied}, {**padded, **saved})
    yield Case("qwen2 lora", "qwen2", small, lora)
    yield Case("qwen3 lora bf16, checkpointed", "qwen3", heads, {**lora, **saved, **bf16})
    yield Case("llama lora, new tokens", "llama", small, {**lora, **new})
    yield Case("llama lora, new tokens, tied", "llama", tied, {**lora, **new, **saved})
    yield Case("qwen2 lora, dropout", "qwen2", small, {**lora, "lora__dropout": 0.1})
    yield Case("qwen2 qlora", "qwen2", small, qlora)
    yield Case("llama qlora bf16, checkpointed", "llama", small, {**qlora, **saved, **bf16})
    few = {"processes": 2, **saved}
    yield Case("qwen2 full, two processes", "qwen2", wide, few, (4, 12), world=2)
    yield Case("llama full, two shards", "llama", wide, {**few, "shard": "fsdp"}, (4, 12), world=2)
    if not more:
        return
    long = (60, 120)
    yield Case("llama full, long", "llama", small, {"micro_batch_tokens": 4096}, long)
    yield Case("llama full bf16, padded", "llama", small, {**padded, **bf16})
    yield Case("qwen2 full bf16, masked rows", "qwen2", small, {**masked, **bf16})
    yield Case("qwen2 full, new tokens", "qwen2", tied, {**new, **saved})
    yield Case("qwen3 lora, padded", "qwen3", heads, {**lora, **padded})
    yield Case("qwen2 lora bf16", "qwen2", wide, {**lora, **bf16})
    yield Case("qwen2 lora bf16, new tokens", "qwen2", tied, {**lora, **bf16, **new, **saved})
    yield Case("llama qlora, wide, rank 32", "llama", wide, {**qlora, "lora__rank": 32})
    yield Case("llama lora, two processes", "llama", wide, {**few, **lora}, (30, 60), world=2)
    sharded = {**few, **bf16, "shard": "fsdp"}
    yield Case("llama full bf16, two shards", "llama", wide, sharded, (4, 12), world=2)
    yield Case("llama lora bf16, two shards", "llama", wide, {**sharded, **lora}, (4, 12), world=2)


def factor(ratio: float) -> float:
    """How far off, whichever way."""
    return max(ratio, 1 / ratio)


def show(name: str, predicted: int, measured: int, unit: float, note: str = "") -> float:
    ratio = predicted / measured
    print(f"{name:58} {predicted / unit:12,.3f} {measured / unit:12,.3f} {ratio:7.3f}  {note}")
    return factor(ratio)


def counted(only: set[str]) -> None:
    """Parameters and FLOPs."""
    from benchmarks.planner_flops import counted_flops, parameters

    if "parameters" in only:
        found = list(parameters())
        wrong = [c.name for c in found if c.predicted != c.counted]
        print(f"parameters: {len(found)} bases of the catalog, {len(wrong)} wrong {wrong or ''}")
    if "flops" in only:
        print(f"\n{'FLOPs of one pass, MFLOP':58} {'predicted':>12} {'counted':>12} {'ratio':>7}")
        rows = [show(c.name, c.predicted, c.counted, 1e6) for c in counted_flops()]
        print(f"flops ratio={max(rows):.4f} goal={FLOPS_GOAL}")


def memory(only: set[str], more: bool) -> Iterator[float]:
    """Peaks: a row for each run, and how far off it is."""
    print(f"\n{'peak memory, MB':58} {'predicted':>12} {'measured':>12} {'ratio':>7}")
    if "training" in only:
        from benchmarks.planner_train import run

        for case in cases(more):
            started = time.monotonic()
            row = run(case)
            note = f"{row.tokens:,} tokens, {time.monotonic() - started:.0f} s"
            yield show(case.name, row.predicted.peak, row.measured, 1e6, note)
    if "fake" in only:
        from benchmarks.planner_fake import rows

        for name, parts, peak in rows(more):
            yield show(name, parts.peak, peak, 1e6, "fake tensors")
    if "gpu" in only:
        from benchmarks.planner_gpu import rows as on_gpu

        for name, parts, peak in on_gpu(more):
            yield show(name, parts.peak, peak, 1e6, f"total predicted {parts.total / 1e6:,.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--more", action="store_true", help="more configurations: ten minutes")
    parser.add_argument("--gpu", action="store_true", help="real architectures on a GPU, too")
    parser.add_argument("--only", nargs="*", choices=[*PARTS, "gpu"], help="some parts only")
    told = parser.parse_args()
    only = set(told.only or PARTS) | ({"gpu"} if told.gpu else set())
    warnings.filterwarnings("ignore")
    counted(only)
    worst = max(memory(only, told.more), default=1.0)
    print(f"planner ratio={worst:.3f} goal={GOAL:.2f}")


if __name__ == "__main__":
    main()
