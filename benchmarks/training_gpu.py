"""Training speed on a GPU: the 1.5B and 7B architectures, full and LoRA, at several lengths.

    python -m benchmarks.training --gpu [--model 1.5b 7b] [--length 4096 16384 32768]

Weights are random and made on the device; lengths are lognormal with the longest example as long
as the row. Each line is one process: tokens per second (no padding counted), model FLOPs
utilisation against the bf16 matrix product that the same process measured, and the allocator's
peak. The first line of a group is what a recipe gets; each other line leaves one optimisation out
or is trl's trainer with packing. Not yet run on a GPU; `--model tiny` runs the same code on a CPU.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHAPES = {
    "tiny": (64, 2, 4, 2, 128, 512, True),
    "1.5b": (1536, 28, 12, 2, 8960, 151936, True),
    "7b": (3584, 28, 28, 4, 18944, 152064, False),
}
"""Qwen2.5's: hidden, layers, heads, heads of keys, intermediate, vocabulary, tied head."""

VARIANTS: dict[str, dict[str, Any]] = {
    "distill": {},
    "kernels: torch": {"kernels": "torch"},
    "masks (sdpa)": {"attention": "sdpa"},
    "no packing": {"packing": False},
    "whole logits": {"logits": 1 << 50},
    "no checkpointing": {"gradient_checkpointing": False},
    "trl bfd": {"trl": True},
}
UPDATES = 6
ROWS = 2  # of so many tokens in an update


def main(models: Sequence[str], lengths: Sequence[int]) -> None:
    for model, method, length in itertools.product(models, ("full", "lora"), lengths):
        print(f"\n{model} {method}, rows of {length:,} tokens")
        print(f"{'':20}{'tokens/s':>10}{'MFU':>8}{'matrix':>8}{'peak GB':>9}")
        for name, changes in VARIANTS.items():
            told = {"model": model, "method": method, "length": length, **changes}
            show(name, ask(told))


def show(name: str, found: dict[str, Any]) -> None:
    if "error" in found:
        print(f"{name:20}  {found['error']}", flush=True)
        return
    print(
        f"{name:20}{found['speed']:10,.0f}{found['mfu']:8.1%}{found['matrix']:8.1f}"
        f"{found['peak_gb']:9.1f}",
        flush=True,
    )


def ask(told: dict[str, Any]) -> dict[str, Any]:
    """One line in a process of its own, whose memory ends with it."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training_gpu", json.dumps(told)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        out = "out of memory" if "OutOfMemoryError" in done.stderr else "".join(last)
        return {"error": out or f"ended with exit code {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def one(told: dict[str, Any]) -> dict[str, Any]:
    import torch

    from distill.students import flops
    from distill.students.catalog import Arch

    gpu = torch.cuda.is_available()
    arch = Arch(*SHAPES[told["model"]], qkv_bias=True)
    marks: list[tuple[float, list[int]]] = []

    def on_update(lengths: Sequence[int]) -> None:
        if gpu:
            torch.cuda.synchronize()
        marks.append((time.perf_counter(), list(lengths)))

    with tempfile.TemporaryDirectory(prefix="training-gpu-") as out:
        trainer = (trl_trainer if told.get("trl") else our_trainer)(
            told, arch, Path(out), on_update
        )
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    seconds = marks[-1][0] - marks[0][0]
    seen = [n for _, lengths in marks[1:] for n in lengths]
    rate = matrix_rate(gpu)
    needed = flops.training_flops(arch, seen, told["method"], rank=64)
    return {
        "speed": sum(seen) / seconds,
        "mfu": needed / seconds / rate,
        "matrix": rate / 1e12,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if gpu else 0.0,
    }


def matrix_rate(gpu: bool) -> float:
    """FLOP/s of a large bf16 matrix product (fp32 on a CPU), the median of ten."""
    import torch

    size = 8192 if gpu else 512
    where = {"device": "cuda", "dtype": torch.bfloat16} if gpu else {}
    a, b = (torch.randn(size, size, **where) for _ in range(2))  # type: ignore[arg-type]
    took = []
    for _ in range(13):
        start = time.perf_counter()
        torch.mm(a, b)
        if gpu:
            torch.cuda.synchronize()
        took.append(time.perf_counter() - start)
    return float(2 * size**3 / statistics.median(took[3:]))


class Rows:
    """Examples of random ids with lognormal lengths (sigma 1.05), a tenth of each its prompt."""

    def __init__(self, longest: int, vocab: int) -> None:
        import torch

        rng = random.Random(0)
        wanted, self.ids = longest * ROWS * UPDATES, []
        made = torch.Generator().manual_seed(0)
        while sum(map(len, self.ids)) < wanted:
            length = min(longest, max(64, int(longest / 8 * rng.lognormvariate(0, 1.05))))
            self.ids.append(torch.randint(0, vocab, (length,), generator=made))

    def __getitem__(self, wanted: list[int]) -> dict[str, Any]:
        ids = [self.ids[i] for i in wanted]
        return {"input_ids": ids, "start": [max(1, len(x) // 10) for x in ids]}


def our_trainer(told: dict[str, Any], arch: Any, out: Path, on_update: Any) -> Any:
    import datasets

    from benchmarks.training import make_tokenizer
    from distill.schema_train import Training
    from distill.students import attention, head, kernels
    from distill.students.arguments import arguments
    from distill.students.hardware import attention_cost, hardware, layout_of
    from distill.students.trainer import Updates, UpdateTrainer

    if told.get("logits"):
        head.GPU_LOGITS_BYTES = head.CPU_LOGITS_BYTES = told["logits"]
    keys = ("kernels", "attention", "packing", "gradient_checkpointing")
    changes = {key: told[key] for key in keys if key in told}
    train = Training(
        max_length=told["length"], save_every=10**6, learning_rate=1e-5, **changes
    ).model_dump()
    config = config_of(arch, told["length"])
    on = hardware(train, config)
    attention.register()
    model = random_model(config, on.attention, told["method"], on.device != "cpu")
    if on.kernels == "liger":
        kernels.apply(model)
    rows = Rows(told["length"], arch.vocab)
    plan = [list(part) for part in deal(rows, told["length"])]
    updates = Updates(
        rows,
        plan,
        budget=told["length"],
        layout=layout_of(bool(train["packing"]), on.attention, config),
        pad=0,
        square=attention_cost(config),
    )
    return UpdateTrainer(
        model=model,
        args=arguments(Job(train, out), on, len(plan)),  # type: ignore[arg-type]
        train_dataset=datasets.Dataset.from_list([{"input_ids": [0], "labels": [0]}]),
        processing_class=make_tokenizer(),
        data_collator=list,
        peft_config=lora(told["method"]),
        updates=updates,
        bad_batch=out / "nan.json",
        on_update=lambda tokens, lengths: on_update(lengths),
    )


@dataclasses.dataclass
class Job:
    """What `arguments` reads of a training."""

    train: dict[str, Any]
    out: Path
    seed: int = 0


def deal(rows: Rows, length: int) -> list[list[int]]:
    """Consecutive examples of about `ROWS` rows' tokens for each update."""
    plan: list[list[int]] = [[]]
    for i, ids in enumerate(rows.ids):
        if plan[-1] and sum(len(rows.ids[j]) for j in plan[-1]) + len(ids) > length * ROWS:
            plan.append([])
        plan[-1].append(i)
    return plan[:UPDATES]


def config_of(arch: Any, positions: int) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(
        "qwen2",
        hidden_size=arch.hidden,
        num_hidden_layers=arch.layers,
        num_attention_heads=arch.heads,
        num_key_value_heads=arch.kv_heads,
        intermediate_size=arch.intermediate,
        vocab_size=arch.vocab,
        tie_word_embeddings=arch.tied,
        max_position_embeddings=positions,
    )


def random_model(config: Any, attention: str, method: str, gpu: bool) -> Any:
    """fp32 weights for full training, bf16 for a frozen base (fp32 on a CPU)."""
    import torch
    from transformers import AutoModelForCausalLM

    kind = torch.bfloat16 if gpu and method == "lora" else torch.float32
    with torch.device("cuda" if gpu else "cpu"):
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=kind)


def lora(method: str) -> Any:
    from peft import LoraConfig

    if method == "full":
        return None
    return LoraConfig(task_type="CAUSAL_LM", r=64, lora_alpha=32, target_modules="all-linear")


def trl_trainer(told: dict[str, Any], arch: Any, out: Path, on_update: Any) -> Any:
    """SFTTrainer with best-fit packing and, where it is installed, flash attention."""
    import importlib.util

    import datasets
    import torch
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from benchmarks.training import make_tokenizer

    gpu = torch.cuda.is_available()
    flash = gpu and importlib.util.find_spec("flash_attn")
    config = config_of(arch, told["length"])
    attention = "flash_attention_2" if flash else "sdpa"
    rows = Rows(told["length"], arch.vocab)
    made = rows[list(range(len(rows.ids)))]
    examples = [
        {"input_ids": ids.tolist(), "labels": [-100] * start + ids[start:].tolist()}
        for ids, start in zip(made["input_ids"], made["start"], strict=True)
    ]
    seen: list[int] = []

    class Marks(TrainerCallback):
        def on_step_end(self, *args: Any, **kw: Any) -> None:
            on_update(seen)
            seen.clear()

    class Counted(SFTTrainer):
        def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kw: Any) -> Any:
            seen.extend(inputs["cu_seq_lens_q"].diff().tolist())
            return super().training_step(model, inputs, *args, **kw)

    return Counted(
        model=random_model(config, attention, told["method"], gpu),
        args=SFTConfig(
            output_dir=str(out),
            max_length=told["length"],
            packing=True,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=ROWS,
            max_steps=UPDATES,
            learning_rate=1e-5,
            use_cpu=not gpu,
            bf16=gpu,
            gradient_checkpointing=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_list(examples),
        processing_class=make_tokenizer(),
        peft_config=lora(told["method"]),
        callbacks=[Marks()],
    )


if __name__ == "__main__":
    print(json.dumps(one(json.loads(sys.argv[1]))))
