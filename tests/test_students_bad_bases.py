"""Bases that cannot be trained: each is refused with what is wrong, and nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill import models
from distill.errors import DataError, DistillError, ModelError
from distill.students.loading import prepare
from distill.students.sft import SFT
from tests import fake_hub, tiny_students


def change(base: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = base / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})


def torn(base: Path) -> None:
    path = base / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def empty(base: Path) -> None:
    (base / "model.safetensors").write_bytes(b"")


def short(base: Path) -> None:
    change(base, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))


def narrow(base: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    change(base, lambda weights: weights.update({name: weights[name][:10].clone()}))


def nan(base: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    change(base, lambda weights: weights[name].fill_(float("nan")))


def integers(base: Path) -> None:
    change(base, lambda w: w.update({name: t.to(torch.int8) for name, t in w.items()}))


def quantised(base: Path) -> None:
    told = json.loads((base / "config.json").read_text())
    told["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (base / "config.json").write_text(json.dumps(told))


def pickled(base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (torn, "is torn: .*incomplete metadata"),
        (empty, "is torn: .*header too small"),
        (short, r"lacks 1 of its weights, first 'model.layers.1.mlp.up_proj.weight'"),
        (narrow, "other shapes than its config.json says"),
        (nan, "holds NaN"),
        (integers, "stored as I8"),
        (quantised, r"quantised already \(gptq\)"),
        (pickled, "no file named model.safetensors"),
    ],
)
def test_damaged_base(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    base = tiny_students.base(tmp_path / "base")
    data = tiny_students.dataset(tmp_path / "dataset.jsonl", 8)
    damage(base)
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    with pytest.raises(ModelError, match=said):
        SFT().train(data, tmp_path / "out", tiny_students.config(base))
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    assert not (tmp_path / "out" / "student").exists()


@pytest.mark.slow
def test_half_precision_is_no_damage(tmp_path: Path) -> None:
    base = tiny_students.base(tmp_path / "base")
    change(base, lambda w: w.update({name: t.half() for name, t in w.items()}))
    data = tiny_students.dataset(tmp_path / "dataset.jsonl", 8)
    SFT().train(data, tmp_path / "out", tiny_students.config(base, max_steps=1))


@pytest.mark.slow
def test_one_example_is_enough(tmp_path: Path) -> None:
    base = tiny_students.base(tmp_path / "base")
    data = tiny_students.dataset(tmp_path / "dataset.jsonl", 1)
    student = SFT().train(data, tmp_path / "out", tiny_students.config(base))
    told = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (told["examples"], told["updates"]) == (1, 2)
    assert (student / "model.safetensors").is_file()


@pytest.mark.slow
def test_examples_without_an_answer_are_counted(tmp_path: Path) -> None:
    base = tiny_students.base(tmp_path / "base")
    question = {"role": "user", "content": "1+1=?"}
    rows = [
        tiny_students.example(1, 2),
        {"messages": [question]},
        {"messages": [question, {"role": "assistant", "content": ""}]},
    ]
    data = tmp_path / "dataset.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    SFT().train(data, tmp_path / "out", tiny_students.config(base))
    told = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (told["examples"], told["left_out_bad"]) == (1, 2)
    assert "must end with an assistant's message" in told["notes"][0]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    with pytest.raises(DataError):
        SFT().train(data, tmp_path / "none", tiny_students.config(base))


def test_unknown_template_names_the_nearest(tmp_path: Path) -> None:
    base = tiny_students.base(tmp_path / "base")
    config = tiny_students.config(base, student__template="chatml-r2")
    with pytest.raises(ModelError, match="chatml-r2") as told:
        prepare(config["student"])
    assert "did you mean 'chatml-r1'" in told.value.hint


def test_tokenizer_larger_than_the_embedding_grows_it(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = tiny_students.base(tmp_path / "base")
    words = AutoTokenizer.from_pretrained(base)
    rows = len(words)
    words.add_tokens([f"<x{i}>" for i in range(20)])
    words.save_pretrained(base)
    data = tiny_students.dataset(tmp_path / "dataset.jsonl", 8)
    config = tiny_students.config(base, max_steps=1, student__template="plain")
    student = SFT().train(data, tmp_path / "out", config)
    told = json.loads((tmp_path / "out" / "summary.json").read_text())
    size = load_file(student / "model.safetensors")["model.embed_tokens.weight"].shape[0]
    assert size == rows + told["embedding_rows_added"]
    assert told["embedding_rows_added"] >= 20
    assert any("rows were added to the embedding" in note for note in told["notes"])
    assert json.loads((student / "config.json").read_text())["vocab_size"] == size


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[fake_hub.Hub]:
    from huggingface_hub import constants

    with fake_hub.hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


@pytest.mark.parametrize("status", [401, 403, 404])
def test_base_that_the_hub_refuses(hub: fake_hub.Hub, status: int, tmp_path: Path) -> None:
    hub.refuse = {"owner/model": status}
    with pytest.raises(ModelError, match=f"owner/model.*HTTP {status}") as told:
        models.fingerprint("owner/model", None, tmp_path / "hashes.json")
    assert "hf auth login" in told.value.hint
    with pytest.raises(DistillError, match="owner/model"):
        prepare(tiny_students.config(Path("owner/model"))["student"])
