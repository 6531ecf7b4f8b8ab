"""Fine-tuning end to end on a base of a few thousand weights."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.errors import DataError, DistillError, ModelError, PreflightError
from distill.students.loading import load_model, prepare
from distill.students.packing import updates
from distill.students.render import IGNORED, render
from distill.students.sft import SFT, Job
from tests import tiny_students


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path, **tolerance: float) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], **({"rtol": 0, "atol": 0} | tolerance))


def alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], start: Path) -> None:
    """Equal but for rounding. Adam turns the sign of a gradient near zero into a whole step, so
    single weights may differ; the way that the training went may not."""
    before = weights(start)
    assert one.keys() == other.keys()
    compared = 0
    for name in one:
        assert one[name].shape[1:] == other[name].shape[1:], name
        if name in before:
            rows = before[name].shape[0]  # those of new tokens come after them
            way = float((other[name][:rows] - before[name]).norm())
            assert float((one[name][:rows] - other[name][:rows]).norm()) <= 0.01 * way, name
            compared += way > 0
    assert compared > len(before) // 2


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_students.base(tmp_path / "base")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny_students.dataset(tmp_path / "dataset.jsonl", 21)


def naive(base: Path, dataset: Path, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The same training in thirty lines: one example at a time, no Trainer, no packing."""
    train, ready = config["train"], prepare(config["student"])
    rows = [json.loads(line) for line in dataset.read_text().splitlines()]
    examples = [render(row["messages"], ready.tokenizer, ready.spec) for row in rows]
    model = load_model(ready, config["student"], dtype=torch.float32)
    plan = updates(len(examples), train["batch_size"], train["epochs"], config["seed"])
    warmup, peak, low = math.ceil(train["warmup_ratio"] * len(plan)), train["learning_rate"], 0.1
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.0)
    for step, update in enumerate(plan):
        rate = (step + 1) / warmup
        if step >= warmup:
            progress = (step - warmup + 1) / (len(plan) - warmup)
            rate = low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2
        optimizer.param_groups[0]["lr"] = peak * rate
        count = sum(1 for i in update for label in examples[i].labels if label != IGNORED)
        for i in update:
            ids, labels = (torch.tensor([x]) for x in (examples[i].input_ids, examples[i].labels))
            logits = model(input_ids=ids).logits[0, :-1]
            nll = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum")
            (nll / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
    return dict(model.state_dict())


@pytest.mark.parametrize(
    "changes",
    [
        {"packing": True, "micro_batch_tokens": 256},
        pytest.param(
            {"packing": False, "micro_batch_tokens": 4096, "gradient_checkpointing": True},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["packed", "padded"],
)
def test_training_is_the_naive_loop(
    tmp_path: Path, base: Path, data: Path, changes: dict[str, Any]
) -> None:
    config = tiny_students.config(base, student__template="plain", **changes)
    student = SFT().train(data, tmp_path / "out", config)
    alike(weights(student), naive(base, data, config), base)
    assert summary(tmp_path / "out")["updates"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_large_logits_in_pieces_give_the_same_weights(
    tmp_path: Path, base: Path, data: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_students.config(base, student__method=method, student__think_tokens="tokens")
    whole = SFT().train(data, tmp_path / "whole", config)
    monkeypatch.setattr("distill.students.head.CPU_LOGITS_BYTES", 0)
    pieces = SFT().train(data, tmp_path / "pieces", config)
    alike(weights(whole), weights(pieces), base)


def test_student_is_a_complete_model_folder(tmp_path: Path, base: Path, data: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "out"
    config = tiny_students.config(base, student__positions=1024, student__rope_theta=50000)
    student = SFT().train(data, out, config)
    assert student == out / "student"
    model = AutoModelForCausalLM.from_pretrained(student)
    tokenizer = AutoTokenizer.from_pretrained(student)
    assert model.config.max_position_embeddings == 1024
    assert model.config.rope_parameters["rope_theta"] == 50000
    assert model.config.use_cache
    generation = model.generation_config
    assert (generation.temperature, generation.top_p, generation.do_sample) == (0.6, 0.95, True)
    assert generation.eos_token_id[0] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert generation.pad_token_id == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+1"}],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert prompt.endswith("<|im_start|>assistant\n<think>\n")
    card = (student / "README.md").read_text()
    assert f"base_model: {base}" in card
    assert "21" in card
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 6
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[0].keys() == {
        "step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second",
        "peak_memory", "seconds",
    }  # fmt: skip
    report = json.loads((out / "preflight.json").read_text())
    assert report["failed"] == 0
    assert [part["trained"] for part in report["example"]] == [False, True]
    told = summary(out)
    assert told["examples"] == 21
    assert told["positions"] == 1024
    assert not (out / "checkpoints").exists()


@pytest.mark.slow
def test_rope_theta_is_applied_in_training(tmp_path: Path, base: Path, data: Path) -> None:
    plain = SFT().train(data, tmp_path / "plain", tiny_students.config(base))
    turned = SFT().train(
        data, tmp_path / "turned", tiny_students.config(base, student__rope_theta=500)
    )
    with pytest.raises(AssertionError):
        same(plain, turned, atol=1e-6)


@pytest.mark.slow
def test_finished_training_is_not_repeated(tmp_path: Path, base: Path, data: Path) -> None:
    config = tiny_students.config(base, max_steps=2)
    student = SFT().train(data, tmp_path / "out", config)
    before = (student / "model.safetensors").stat().st_mtime_ns
    SFT().train(data, tmp_path / "out", config | {"card": {"name": "other"}})
    assert (student / "model.safetensors").stat().st_mtime_ns == before
    SFT().train(data, tmp_path / "out", tiny_students.config(base, max_steps=1))
    assert summary(tmp_path / "out")["updates"] == 1


def test_examples_that_do_not_fit_are_left_out_and_counted(
    tmp_path: Path, base: Path, data: Path
) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows.append(tiny_students.example(1, 2, words=100))
    rows.append({"messages": [{"role": "user", "content": "and then?"}]})
    stray = tiny_students.example(3, 4)
    stray["messages"][1]["content"] += "<|im_end|>"
    rows.append(stray)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    SFT().train(data, tmp_path / "out", tiny_students.config(base, max_steps=1))
    told = summary(tmp_path / "out")
    assert (told["examples"], told["left_out_too_long"], told["left_out_bad"]) == (21, 1, 2)
    assert "control token" in " ".join(told["notes"])
    assert "longer than 256 tokens" in " ".join(told["notes"])


def test_all_too_long_says_the_lengths(tmp_path: Path, base: Path, data: Path) -> None:
    with pytest.raises(DataError, match=r"none of 21 .* 21 are longer than train.max_length = 20"):
        SFT().train(data, tmp_path / "out", tiny_students.config(base, max_length=20))


def test_no_examples(tmp_path: Path, base: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match="holds no examples"):
        SFT().train(empty, tmp_path / "out", tiny_students.config(base))


def test_longer_than_the_positions_is_refused(tmp_path: Path, base: Path, data: Path) -> None:
    with pytest.raises(PreflightError, match="max_length = 1024 is beyond the student's 512"):
        SFT().train(data, tmp_path / "out", tiny_students.config(base, max_length=1024))


def test_template_whose_tokens_are_missing_is_refused(tmp_path: Path, data: Path) -> None:
    base = tiny_students.base(tmp_path / "base", specials=("<s>", "</s>"))
    config = tiny_students.config(base, student__template="chatml-r1")
    with pytest.raises(ModelError, match=r"'chatml-r1' needs <\|im_start\|>"):
        SFT().train(data, tmp_path / "out", config)


def test_nan_stops_and_keeps_the_batch(tmp_path: Path, base: Path, data: Path) -> None:
    config = tiny_students.config(base, learning_rate=1e30, max_grad_norm=1e30)
    with pytest.raises(DistillError, match=r"the loss became (nan|inf) at update"):
        SFT().train(data, tmp_path / "out", config)
    kept = json.loads((tmp_path / "out" / "nan_batch.json").read_text())
    assert kept["examples"] in updates(21, 8, 2, 3)
    assert kept["micro_batches"][0]["input_ids"]


class Interrupted(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_interrupted_training_goes_on(
    tmp_path: Path, base: Path, data: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distill.students.progress import Progress

    config = tiny_students.config(base, save_every=2, student__method=method)
    whole = SFT().train(data, tmp_path / "whole", config)
    counted = Progress.on_update

    def stop(self: Progress, tokens: int, lengths: list[int]) -> None:
        counted(self, tokens, lengths)
        if self.tokens > 3000:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_update", stop)
        with pytest.raises(Interrupted):
            SFT().train(data, tmp_path / "out", config)
    student = SFT().train(data, tmp_path / "out", config)
    assert summary(tmp_path / "out")["resumed_from"] == 4
    same(whole, student)
    rows = [json.loads(r) for r in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    before = [json.loads(r) for r in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [(r["loss"], r["tokens"]) for r in rows] == [(r["loss"], r["tokens"]) for r in before]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_killed_training_goes_on_and_ends_with_the_same_weights(
    tmp_path: Path, base: Path, data: Path, method: str
) -> None:
    config = tiny_students.config(base, epochs=40, save_every=5, student__method=method)
    whole = SFT().train(data, tmp_path / "whole", config)
    out = tmp_path / "killed"
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"dataset": str(data), "out": str(out), "config": config}))
    child = subprocess.Popen(
        [sys.executable, "-m", "distill.students.sft", str(request)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("checkpoints/checkpoint-*/sealed.json")):
        assert child.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (out / "student").exists()
    student = SFT().train(data, out, config)
    assert summary(out)["resumed_from"] >= 5
    same(whole, student)
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == 120


def test_another_training_does_not_go_on_from_this_one(
    tmp_path: Path, base: Path, data: Path
) -> None:
    one = Job(data, tmp_path / "out", tiny_students.config(base))
    other = Job(data, tmp_path / "out", tiny_students.config(base, learning_rate=1e-3))
    faster = Job(data, tmp_path / "out", tiny_students.config(base, micro_batch_tokens=64))
    assert one.fingerprint == faster.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("kind", "tied"),
    [
        ("qwen2", True),
        pytest.param("qwen2", False, marks=pytest.mark.slow),
        pytest.param("llama", True, marks=pytest.mark.slow),
        pytest.param("llama", False, marks=pytest.mark.slow),
    ],
)
def test_lora_is_merged_into_a_plain_model(
    tmp_path: Path, data: Path, kind: str, tied: bool
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = tiny_students.base(tmp_path / "base", kind, tie_word_embeddings=tied)
    out = tmp_path / "out"
    config = tiny_students.config(base, student__method="lora", student__think_tokens="tokens")
    student = SFT().train(data, out, config)
    assert summary(out)["trainable_params"] < 0.5 * summary(out)["params"]
    model = AutoModelForCausalLM.from_pretrained(student)
    ready = prepare(config["student"])
    from distill.students.loading import load_model

    adapted = PeftModel.from_pretrained(load_model(ready, config["student"]), out / "adapter")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        merged, wanted = model(ids).logits, adapted(ids).logits
    torch.testing.assert_close(merged, wanted, rtol=1e-3, atol=1e-4)
    open_tag = ready.tokenizer.convert_tokens_to_ids("<think>")
    close_tag = ready.tokenizer.convert_tokens_to_ids("</think>")
    start = load_model(ready, config["student"]).get_output_embeddings().weight
    moved = (model.get_output_embeddings().weight - start).abs().amax(1)
    assert moved[open_tag] > 0
    assert moved[close_tag] > 0
    assert moved[:200].max() == 0
    assert not list(out.rglob("*.bin"))


@pytest.mark.slow
def test_qlora_trains_on_the_cpu(tmp_path: Path, data: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = tiny_students.base(tmp_path / "base", hidden_size=64, intermediate_size=128)
    config = tiny_students.config(base, student__method="qlora", epochs=4)
    student = SFT().train(data, tmp_path / "out", config)
    rows = (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["loss"] < json.loads(rows[0])["loss"]
    assert weights(student)["model.layers.0.mlp.up_proj.weight"].shape == (128, 64)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_the_same_student(tmp_path: Path, base: Path, data: Path) -> None:
    one = SFT().train(data, tmp_path / "one", tiny_students.config(base))
    two = SFT().train(data, tmp_path / "two", tiny_students.config(base, processes=2))
    assert summary(tmp_path / "two")["processes"] == 2
    assert summary(tmp_path / "two")["tokens_per_second"] > 0
    alike(weights(one), weights(two), base)
    assert summary(tmp_path / "one")["final_loss"] == pytest.approx(
        summary(tmp_path / "two")["final_loss"], rel=1e-4
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_error_of_a_process_arrives_as_itself(tmp_path: Path, base: Path, data: Path) -> None:
    config = tiny_students.config(base, processes=2, learning_rate=1e30, max_grad_norm=1e30)
    with pytest.raises(DistillError, match=r"the loss became (nan|inf) at update"):
        SFT().train(data, tmp_path / "out", config)
    kept = json.loads((tmp_path / "out" / "nan_batch.json").read_text())
    assert kept["examples"], "the batch of one process, whole, whichever came first"
