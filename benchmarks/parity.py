"""Whether the ways to train give the same training: differences of losses and weights.

    python -m benchmarks.parity [--updates N] [--save]

One small Llama (0.9M random weights, fp32, CPU) is fine-tuned on the same examples in different
ways: packed and padded; by one process and by two (DDP, and torch's `fully_shard`), in full and
with LoRA; undisturbed and interrupted at random. Compared are the loss of every update, the
validation losses, and the final weights: the norm of their difference by the norm of the way that
the training went. An adapter is compared with the weights it was merged into by the logits of both.
`ratio` is the stated tolerance by the worst relative difference of a loss (or logit), at most 1000.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import many_trainings, tiny_students

TOLERANCE = 1e-4
GOAL = 1.0
SEED = 7
RESULTS = Path(__file__).parent / "results" / "parity.txt"


class Interrupted(Exception):
    """Stands for whatever ends a training."""


def examples(path: Path, count: int, seed: int) -> Path:
    """Chains of thought whose lengths have a heavy tail, as R1's have."""
    rng = random.Random(seed)
    rows = [
        tiny_students.example(
            rng.randrange(100), rng.randrange(100), min(28, int(rng.lognormvariate(1.2, 0.8)) + 1)
        )
        for _ in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(root: Path, updates: int, **changes: Any) -> dict[str, Any]:
    found = tiny_students.config(
        root / "base",
        **{
            "learning_rate": 1e-3,
            "max_steps": updates,
            "epochs": 100,
            "max_length": 512,
            "micro_batch_tokens": 1024,
            "save_every": 4,
            **changes,
        },
    )
    found["validation"] = str(root / "held.jsonl")
    return found


def losses(folder: Path, key: str) -> list[float]:
    rows = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [row[key] for row in rows if row.get(key) is not None]


def worst(one: list[float], other: list[float]) -> float:
    """The largest relative difference of two lists of losses."""
    assert len(one) == len(other) > 0
    return max(abs(a - b) / abs(a) for a, b in zip(one, other, strict=True))


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def apart(one: Path, other: Path, start: Path) -> float:
    """The norm of the difference of two students by the norm of the way from their base."""
    a, b, base = weights(one), weights(other), weights(start)
    rows = {name: base[name].shape[0] for name in a}
    difference = sum(float((b[n] - a[n]).double().square().sum()) for n in a)
    way = sum(float((a[n][: rows[n]] - base[n]).double().square().sum()) for n in a)
    return float((difference / way) ** 0.5)


def train(root: Path, name: str, asked: dict[str, Any], stop_after: int = 0) -> None:
    """Train in this process; with `stop_after` it is interrupted there and started again."""
    from distill.students.progress import Progress
    from distill.students.sft import SFT

    if stop_after:
        whole, seen = Progress.on_update, []

        def counted(self: Progress, *args: Any) -> None:
            whole(self, *args)
            seen.append(1)
            if len(seen) > stop_after:
                raise Interrupted

        Progress.on_update = counted  # type: ignore[method-assign]
        try:
            with contextlib.suppress(Interrupted):
                SFT().train(root / "data.jsonl", root / name, asked)
        finally:
            Progress.on_update = whole  # type: ignore[method-assign]
    SFT().train(root / "data.jsonl", root / name, asked)


def merged(folder: Path, asked: dict[str, Any]) -> float:
    """The largest difference of logits between base with adapter and student, by the largest."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from distill.students.loading import load_model, prepare

    base = load_model(prepare(asked["student"]), asked["student"])
    adapted = PeftModel.from_pretrained(base, folder / "adapter").eval()
    student = AutoModelForCausalLM.from_pretrained(folder / "student").eval()
    ids = torch.randint(0, 250, (4, 64), generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        wanted, found = adapted(ids).logits, student(ids).logits
    return float((found - wanted).abs().max() / wanted.abs().max())


def trainings(root: Path, updates: int) -> Iterator[tuple[str, str, str]]:
    """Train everything; yields what is compared: a title and the folders of both."""
    full = settings(root, updates)
    lora = settings(root, updates, student__method="lora", learning_rate=1e-2)
    two = {"processes": 2, "shard": "fsdp"}
    with contextlib.redirect_stderr(io.StringIO()):
        train(root, "full", full)
        train(root, "padded", settings(root, updates, packing=False))
        train(root, "lora", lora)
        stop = random.Random(SEED).randrange(updates // 3, updates - 1)
        train(root, "resumed", full, stop)
        train(root, "lora-resumed", lora, stop)
        requests = [
            many_trainings.write(root / name, root / "data.jsonl", asked)
            for name, asked in {
                "ddp": settings(root, updates, processes=2),
                "fsdp": settings(root, updates, **two),
                "fsdp-lora": settings(
                    root, updates, student__method="lora", learning_rate=1e-2, **two
                ),
            }.items()
        ]
    many_trainings.run(requests)
    yield "packed, padded", "full", "padded"
    yield "one process, two (DDP)", "full", "ddp"
    yield "one process, two (fully_shard)", "full", "fsdp"
    yield "one process, two (fully_shard), LoRA", "lora", "fsdp-lora"
    yield f"undisturbed, stopped after {stop} and resumed", "full", "resumed"
    yield f"undisturbed, stopped after {stop} and resumed, LoRA", "lora", "lora-resumed"


def compare(root: Path, updates: int) -> tuple[list[str], float]:
    """The table and the worst difference."""
    lines = [
        f"{'':<52}{'loss':>10}{'validation':>12}{'weights':>10}",
        f"{'compared':<52}{'(worst)':>10}{'(worst)':>12}{'':>10}",
    ]
    found = []
    for title, one, other in trainings(root, updates):
        loss = worst(losses(root / one, "loss"), losses(root / other, "loss"))
        held = worst(*(losses(root / name, "validation_loss") for name in (one, other)))
        way = apart(root / one / "student", root / other / "student", root / "base")
        lines.append(f"{title:<52}{loss:>10.1e}{held:>12.1e}{way:>10.1e}")
        found += [loss, held]
    logits = merged(root / "lora", settings(root, updates, student__method="lora"))
    lines.append(f"{'logits: LoRA beside the base, merged into it':<52}{logits:>10.1e}")
    return lines, max(*found, logits)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--updates", type=int, default=24)
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}, too")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="parity-") as folder:
        root = Path(folder)
        tiny_students.base(
            root / "base", hidden_size=128, intermediate_size=384, num_hidden_layers=4
        )
        examples(root / "data.jsonl", 64, SEED)
        examples(root / "held.jsonl", 8, SEED + 1)
        table, difference = compare(root, options.updates)
    ratio = TOLERANCE / max(difference, TOLERANCE / 1000)
    said = [
        "python -m benchmarks.parity " + " ".join(sys.argv[1:]),
        f"torch {torch.__version__}, fp32 on a CPU, {options.updates} updates of 8 examples, "
        f"{time.monotonic() - started:.0f} s",
        "",
        *table,
        "",
        f"worst {difference:.1e}, tolerance {TOLERANCE:.0e}",
        f"parity ratio={ratio:.2f} goal={GOAL}",
    ]
    text = "\n".join(said)
    print(text)
    if options.save:
        RESULTS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
