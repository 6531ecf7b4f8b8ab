"""Sharded training in two processes on a CPU: the same student, resumed by any number of them."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.errors import DistillError, UsageError
from distill.students import checkpoints, fit, sharding
from distill.students.hardware import Hardware
from distill.students.sft import SFT
from tests import many_trainings, tiny_students

CASES: dict[str, dict[str, Any]] = {
    "full": {"gradient_checkpointing": True},
    "offload": {"offload": True, "packing": False},
    "lora": {"student__method": "lora", "student__think_tokens": "tokens"},
    "average": {"student__method": "lora", "average": 2, "save_every": 2},
    "bf16": {"precision": "bf16"},
    "best": {"learning_rate": 0.03, "epochs": 4, "keep": "best"},
}
LONG = {"epochs": 20, "save_every": 5}


def weights(student: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(student / "model.safetensors")


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def alike(
    one: dict[str, torch.Tensor],
    other: dict[str, torch.Tensor],
    start: dict[str, torch.Tensor],
    share: float = 0.01,
) -> None:
    """Apart by a small share of the way from `start`: Adam turns rounding of a gradient near zero
    into whole steps."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        rows = start[name].shape[0]  # those of new tokens come after them
        way = float((value[:rows].float() - start[name]).norm())
        assert float((other[name].float() - value.float()).norm()) <= share * way + 1e-6, name


def config(root: Path, name: str, **more: Any) -> dict[str, Any]:
    changes = {k: v for k, v in CASES.get(name, LONG).items() if k != "offload"}
    made = tiny_students.config(root / "base", **{**changes, **more})
    if made["train"]["keep"] == "best":
        made["validation"] = str(root / "held.jsonl")
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case trained with FSDP by two processes, and "long" to compare resumed ones with."""
    root = tmp_path_factory.mktemp("sharded")
    tiny_students.base(root / "base", tie_word_embeddings=True)
    tiny_students.dataset(root / "data.jsonl", 21)
    row = tiny_students.example(7, 8)
    row["messages"][1]["content"] = "<think>\nquick brown fox\n</think>\n\njumps over"
    (root / "held.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    sharded = {"shard": "fsdp", "processes": 2}
    requests = []
    for name in [*CASES, "long"]:
        more = {**sharded, "offload": True} if name == "offload" else sharded
        requests.append(
            many_trainings.write(root / name, root / "data.jsonl", config(root, name, **more))
        )
    many_trainings.run(requests)
    return root


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_what_one_trains(root: Path, tmp_path: Path, name: str) -> None:
    alone = SFT().train(root / "data.jsonl", tmp_path / "out", config(root, name))
    one, two = read(tmp_path / "out" / "summary.json"), read(root / name / "fit.json")
    assert (two["shard"], two["processes"], one["shard"]) == ("fsdp", 2, "none")
    # One process computes in bf16 by autocast, shards are gathered in bf16: other roundings.
    loss, way = (1e-3, 0.2) if name == "bf16" else (1e-4, 0.01)
    assert two["final_loss"] == pytest.approx(one["final_loss"], rel=loss)
    assert two["kept_why"] == one["kept_why"]
    assert two["kept_update"] == one["kept_update"]
    alike(weights(alone), weights(root / name / "student"), weights(root / "base"), way)
    assert read(root / name / "student" / "config.json")["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_zero3_trains_what_one_process_trains(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="pip install 'distill[deepspeed]'")
    base = tiny_students.base(tmp_path / "base")
    data = tiny_students.dataset(tmp_path / "data.jsonl", 21)
    asked = tiny_students.config(base, shard="zero3", processes=2, offload=True, save_every=2)
    many_trainings.run([many_trainings.write(tmp_path / "two", data, asked)])
    alone = SFT().train(data, tmp_path / "one", tiny_students.config(base))
    alike(weights(alone), weights(tmp_path / "two" / "student"), weights(base))
    left = checkpoints.all_of(tmp_path / "two" / "checkpoints")
    assert [checkpoints.step_of(path) for path in left] == [4, 6]
    assert checkpoints.sealed(left[-1])["zero3"]
    with pytest.raises(UsageError, match="fit only the same setting"):
        fit._resume(tmp_path / "two" / "checkpoints", {}, Hardware("cpu", "fp32", "sdpa", 0, 1))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_killed_process_ends_all_and_training_goes_on(root: Path, tmp_path: Path) -> None:
    out, asked = tmp_path / "out", config(root, "long", shard="fsdp", processes=2)
    request = tmp_path / "request.json"
    told = {"dataset": str(root / "data.jsonl"), "out": str(out), "config": asked}
    request.write_text(json.dumps(told))
    command = [sys.executable, "-m", "distill.students.sft", str(request)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, env=settings, stderr=subprocess.PIPE, text=True)
    wanted = 5 * random.randrange(1, 8)
    print(f"killed after update {wanted}")  # shown where the test fails
    deadline = time.monotonic() + 200
    while not (out / "checkpoints" / f"checkpoint-{wanted}" / checkpoints.SEAL).exists():
        assert child.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(random.choice(workers(child.pid)), signal.SIGKILL)
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 1
    assert "start again" in said or "goes on from the last checkpoint" in said
    shutil.copytree(out, tmp_path / "alone")
    wanted_weights = weights(root / "long" / "student")
    again = SFT().train(root / "data.jsonl", out, asked)
    assert read(out / "summary.json")["resumed_from"] >= wanted
    for key, value in weights(again).items():
        assert torch.equal(value, wanted_weights[key]), key
    # The shards of two, read by one.
    alone = SFT().train(root / "data.jsonl", tmp_path / "alone", config(root, "long"))
    assert read(tmp_path / "alone" / "summary.json")["resumed_from"] >= wanted
    for key, value in weights(alone).items():
        torch.testing.assert_close(value, wanted_weights[key], rtol=1e-3, atol=1e-4)


def workers(parent: int) -> list[int]:
    """The training processes below `parent` (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"launch_worker" in path.read_bytes() and parent in ancestors(int(path.parts[2])):
                found.append(int(path.parts[2]))
        except OSError:  # it ended meanwhile
            continue
    # torchrun's own command line names the worker, too: it is the parent of the others.
    return [pid for pid in found if not any(pid in ancestors(other) for other in found)]


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def test_what_cannot_be_sharded_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot shard weights of 4 bits"):
        sharding.check({"method": "qlora"}, {"shard": "fsdp"})
    with pytest.raises(UsageError, match="shard is none"):
        sharding.check({}, {"offload": True})
    sharding.check({"method": "lora"}, {"shard": "fsdp", "offload": True})


def test_a_whole_parameter_is_never_called_sharded() -> None:
    with pytest.raises(DistillError, match="2 parameters are whole"):
        sharding.require_shards(torch.nn.Linear(2, 2))
    assert not sharding.sharded({"shard": "fsdp"}, Hardware("cpu", "fp32", "sdpa", 0, 1))


def test_layers_of_a_model_that_says_nothing_are_its_longest_list() -> None:
    model = torch.nn.Module()
    model.few = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(2))
    model.many = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(3))
    assert sharding.layers(model) == list(model.many)
    assert sharding.layers(torch.nn.Linear(1, 1)) == []
