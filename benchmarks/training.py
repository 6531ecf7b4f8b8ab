"""Training speed and memory beside trl's SFTTrainer, tuned and as it stands: one run, one table.

    python -m benchmarks.training [--rounds 3] [--examples 64] [--larger]
    python -m benchmarks.training --gpu [--model 1.5b 7b] [--length 4096 16384 32768]

Everyone trains the same model (random weights, Qwen2's architecture) on the same token ids with the
same optimiser, learning rate, gradient checkpointing and about the same tokens per update, each in
a process of its own. Lengths are heavy-tailed like R1's: a lognormal with sigma 1.05, as the
published R1 and Sky-T1 traces have it (docs/training-speed.md), scaled down for a CPU.

A first round runs every setting of trl that its documentation names (packing by best fit, wrapped
packing, padding-free batches, batches sorted by length; several batch shapes); the fastest is the
*tuned* one. Then ours, tuned and as-it-stands take turns; medians are shown. Speed counts tokens
that are not padding, from the end of the first update to the end of the last. Memory is the peak of
the resident set while training, over what the process held before with the model loaded.
`ratio` is our speed over the tuned one's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

GOAL = 1.0
SIGMA = 1.05

SMALL = {
    "vocab_size": 4096,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}

TUNED: dict[str, dict[str, Any]] = {
    "trl bfd, 1 row": {"packing": True, "rows": 1},
    "trl wrapped, 1 row": {"packing": True, "packing_strategy": "wrapped", "rows": 1},
    "trl wrapped, 4 rows": {"packing": True, "packing_strategy": "wrapped", "rows": 4},
    "trl padding-free, 4": {"padding_free": True, "per_device_train_batch_size": 4},
    "trl sorted, 4": {
        "train_sampling_strategy": "group_by_length",
        "per_device_train_batch_size": 4,
    },
}
"""Settings of trl that its documentation recommends for speed; all keep every token."""

STANDS = "trl as it stands"
OURS = "distill"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16, help="examples per update")
    parser.add_argument("--mean", type=int, default=250, help="mean length in tokens")
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--larger", action="store_true", help="SmolLM2-135M's architecture")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument(
        "--model", nargs="+", default=["1.5b", "7b"], choices=["1.5b", "7b", "tiny"]
    )
    parser.add_argument("--length", nargs="+", type=int, default=[4096, 16384, 32768])
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        told = json.loads(asked.one.read_text())
        print(json.dumps(one(told)))
        return
    if asked.gpu:
        from benchmarks import training_gpu

        training_gpu.main(asked.model, asked.length)
        return
    with tempfile.TemporaryDirectory(prefix="training-") as scratch:
        compare(Path(scratch), asked)


def compare(scratch: Path, asked: argparse.Namespace) -> None:
    """All of trl's settings once, then ours, the fastest of them and the plain one by turns."""
    shape = SMOLLM2 if asked.larger else SMALL
    base = make_base(scratch / "base", shape, asked.max_length)
    texts = make_data(scratch / "data.jsonl", asked.examples, asked.mean, asked.max_length)
    common = {
        "base": str(base),
        "data": str(scratch / "data.jsonl"),
        "max_length": asked.max_length,
        "batch": asked.batch,
    }
    print(
        f"{asked.examples} examples of {min(texts)} to {max(texts)} characters (a token each; mean "
        f"{statistics.mean(texts):.0f}), {asked.batch} per update, {os.cpu_count()} cores, threads "
        f"{os.environ.get('OMP_NUM_THREADS', 'all')}\n"
    )
    first = {name: run(scratch, name, {**common, "trl": how}) for name, how in TUNED.items()}
    tuned = max(first, key=lambda name: first[name]["speed"])
    sides = {OURS: None, tuned: TUNED[tuned], STANDS: {}}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(asked.rounds):
        for name, how in sides.items():
            found[name].append(run(scratch, name, {**common, "trl": how}))
    print(f"{'':30}{'tokens/s':>10}{'per CPU s':>11}{'peak MB':>10}{'tokens':>10}{'updates':>9}")
    for name, told in first.items():
        show(name, [told])
    print()
    for name, tolds in found.items():
        show(f"{name} (tuned)" if name == tuned else name, tolds)
    speed = {name: median(tolds, "speed") for name, tolds in found.items()}
    peak = {name: median(tolds, "peak_mb") for name, tolds in found.items()}
    print(
        f"\nmemory: {peak[OURS] / peak[tuned]:.2f} of the tuned one's, "
        f"{peak[OURS] / peak[STANDS]:.2f} of the plain one's; "
        f"speed {speed[OURS] / speed[STANDS]:.2f} of the plain one's"
    )
    print(f"training ratio={speed[OURS] / speed[tuned]:.2f} goal={GOAL:.1f}")


def median(tolds: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.median(told[key] for told in tolds)


def show(name: str, tolds: Sequence[dict[str, Any]]) -> None:
    last = tolds[-1]
    print(
        f"{name:30}{median(tolds, 'speed'):10,.0f}{median(tolds, 'cpu_speed'):11,.0f}"
        f"{median(tolds, 'peak_mb'):10,.0f}{last['tokens']:10,}{last['updates']:9}"
    )


def run(scratch: Path, name: str, told: dict[str, Any]) -> dict[str, Any]:
    """One contestant in a process of its own."""
    request = scratch / "request.json"
    request.write_text(json.dumps({**told, "out": str(scratch / "out")}))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training", "--one", str(request)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"  {name}: {answer['speed']:,.0f} tokens/s", file=sys.stderr, flush=True)
    return answer


def make_tokenizer() -> Any:
    """One token for a byte, and ChatML's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: i for i, word in enumerate([*letters, *specials])}
    core = Tokenizer(models.BPE(vocab={w: words[w] for w in letters}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=specials[0], pad_token=specials[0]
    )


def make_base(folder: Path, shape: dict[str, int], positions: int) -> Path:
    """A base of random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen2",
        **shape,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
        bos_token_id=None,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_data(path: Path, count: int, mean: float, longest: int) -> list[int]:
    """Examples of random letters whose lengths are lognormal; returns the lengths of the answers.

    A tenth of the mean is the prompt, as with problems of a hundred tokens and traces of thousands.
    """
    rng = random.Random(0)
    # The mean of a lognormal is exp(mu + sigma^2 / 2); the cut tail takes a little of it away.
    scale = mean / 1.735  # exp(1.05^2 / 2)
    lengths = [
        min(longest - 110, max(30, int(scale * rng.lognormvariate(0, SIGMA)))) for _ in range(count)
    ]
    with path.open("w") as file:
        for length in lengths:
            letters = "".join(rng.choices("abcdefghij ", k=length))
            messages = [
                {"role": "user", "content": letters[: max(10, int(mean / 10))]},
                {"role": "assistant", "content": f"<think>\n{letters}\n</think>\n\n{letters[:5]}"},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    return lengths


def one(told: dict[str, Any]) -> dict[str, Any]:
    """Train once in this process and say how fast and with how much memory."""
    import shutil

    meter = Meter()
    out = Path(told["out"])
    shutil.rmtree(out, ignore_errors=True)
    if told["trl"] is None:
        train_ours(told, out, meter)
    else:
        train_trl(told, out, meter)
    return meter.result()


class Meter:
    """Clock and memory, hung into the Trainer's own callbacks: the same for everyone."""

    def __init__(self) -> None:
        import time

        from transformers.trainer_callback import CallbackHandler

        self.tokens = 0
        self.marks: list[tuple[float, float, int]] = []
        self.before = 0.0
        begin, end = CallbackHandler.on_train_begin, CallbackHandler.on_step_end

        def on_train_begin(handler: Any, *args: Any, **kw: Any) -> Any:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            self.before = status("VmRSS")
            return begin(handler, *args, **kw)

        def on_step_end(handler: Any, *args: Any, **kw: Any) -> Any:
            self.marks.append((time.perf_counter(), time.process_time(), self.tokens))
            self.peak = status("VmHWM")
            return end(handler, *args, **kw)

        CallbackHandler.on_train_begin = on_train_begin  # type: ignore[method-assign]
        CallbackHandler.on_step_end = on_step_end  # type: ignore[method-assign]

    def result(self) -> dict[str, Any]:
        (start, spent, before), (end, used, after) = self.marks[0], self.marks[-1]
        return {
            "speed": (after - before) / (end - start),
            "cpu_speed": (after - before) / (used - spent),
            "peak_mb": self.peak - self.before,
            "tokens": self.tokens,
            "updates": len(self.marks),
        }


def status(name: str) -> float:
    """A line of /proc/self/status in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise LookupError(name)


def settings(told: dict[str, Any]) -> dict[str, Any]:
    """Our recipe's `train` section for this comparison."""
    from distill.schema_train import Training

    return Training(
        epochs=1,
        learning_rate=1e-4,
        batch_size=told["batch"],
        max_length=told["max_length"],
        micro_batch_tokens=told.get("micro_batch_tokens") or told["max_length"],
    ).model_dump()


def train_ours(told: dict[str, Any], out: Path, meter: Meter) -> None:
    from distill.students.progress import Progress
    from distill.students.sft import SFT

    counted = Progress.on_update

    def on_update(self: Progress, tokens: int, lengths: Sequence[int]) -> None:
        meter.tokens += tokens
        counted(self, tokens, lengths)

    Progress.on_update = on_update  # type: ignore[method-assign]
    student = {"base": told["base"], "method": "full", "template": "plain"}
    config = {"student": student, "train": settings(told), "seed": 0, "card": {}}
    SFT().train(Path(told["data"]), out, config)


def train_trl(told: dict[str, Any], out: Path, meter: Meter) -> None:
    """trl's own way, on the ids that our renderer makes."""
    import datasets
    import torch
    import transformers
    from trl import SFTConfig, SFTTrainer

    from distill.students.loading import prepare
    from distill.students.render import render

    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    prepared = prepare({"base": told["base"], "template": "plain"})
    rows = []
    for line in Path(told["data"]).read_text().splitlines():
        made = render(json.loads(line)["messages"], prepared.tokenizer, prepared.spec)
        rows.append({"input_ids": list(made.input_ids), "labels": list(made.labels)})
    how = dict(told["trl"])
    mean = sum(len(row["input_ids"]) for row in rows) / len(rows)
    packed_rows = how.pop("rows", None)
    if packed_rows:  # as many tokens per update as ours
        how["per_device_train_batch_size"] = packed_rows
        per_update = told["batch"] * mean / told["max_length"]
        how["gradient_accumulation_steps"] = max(1, round(per_update / packed_rows))
    else:
        size = how.get("per_device_train_batch_size", 8)
        how["gradient_accumulation_steps"] = max(1, told["batch"] // size)
    if not how.get("padding_free"):
        how["max_length"] = told["max_length"]
    else:
        how["max_length"] = None
    base = told["base"]
    trainer = SFTTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        args=SFTConfig(
            output_dir=str(out),
            num_train_epochs=1,
            learning_rate=1e-4,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **how,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=prepared.tokenizer,
    )
    step = trainer.training_step

    def training_step(model: Any, inputs: dict[str, Any], *args: Any, **kw: Any) -> Any:
        mask = inputs.get("attention_mask")
        meter.tokens += int(inputs["input_ids"].numel() if mask is None else mask.sum())
        return step(model, inputs, *args, **kw)

    trainer.training_step = training_step
    trainer.train()


if __name__ == "__main__":
    main()
