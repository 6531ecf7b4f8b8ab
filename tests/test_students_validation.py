"""The loss on the validation split: right, the same for any layout, and without any effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.students.loading import load_model, prepare
from distill.students.render import IGNORED, render
from distill.students.sft import SFT
from tests import tiny_students


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_students.base(tmp_path_factory.mktemp("models") / "base")


def train(base: Path, folder: Path, held: int, **changes: Any) -> tuple[Path, dict[str, Any]]:
    """Train on 21 examples, with a validation split of `held` further ones."""
    folder.mkdir(exist_ok=True)
    data = tiny_students.dataset(folder / "dataset.jsonl", 21)
    config = tiny_students.config(base, **changes)
    if held:
        rows = tiny_students.dataset(folder / "both.jsonl", 21 + held).read_text().splitlines()
        (folder / "validation.jsonl").write_text("\n".join(rows[21:]) + "\n")
        config["validation"] = str(folder / "validation.jsonl")
    student = SFT().train(data, folder / "out", config)
    return student, config


def losses(folder: Path) -> dict[int, float]:
    rows = map(json.loads, (folder / "out" / "log.jsonl").read_text().splitlines())
    return {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}


def naive(model_folder: Path | None, file: Path, config: dict[str, Any]) -> float:
    """One example at a time; without a folder by the base as it is loaded."""
    from transformers import AutoModelForCausalLM

    ready = prepare(config["student"])
    if model_folder is None:
        # The rows of tokens that the base never trained are set anew when it is loaded.
        model = load_model(ready, config["student"], dtype=torch.float32).eval()
    else:
        model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    total, count = 0.0, 0
    for line in file.read_text().splitlines():
        example = render(json.loads(line)["messages"], ready.tokenizer, ready.spec)
        ids, labels = (torch.tensor([x]) for x in (example.input_ids, example.labels))
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum"))
        count += sum(label != IGNORED for label in example.labels)
    return total / count


@pytest.mark.slow
def test_it_is_the_mean_over_trained_tokens_and_moves_no_weight(base: Path, tmp_path: Path) -> None:
    student, config = train(base, tmp_path / "with", 5, student__template="plain")
    without, _ = train(base, tmp_path / "without", 0, student__template="plain")
    assert (student / "model.safetensors").read_bytes() == (
        without / "model.safetensors"
    ).read_bytes()
    found = losses(tmp_path / "with")
    summary = json.loads((tmp_path / "with" / "out" / "summary.json").read_text())
    assert min(found) == 0
    assert max(found) == summary["updates"]
    assert summary["validation_examples"] == 5
    file = tmp_path / "with" / "validation.jsonl"
    assert found[0] == pytest.approx(naive(None, file, config), rel=1e-4)
    assert found[summary["updates"]] == pytest.approx(naive(student, file, config), rel=1e-4)
    assert summary["validation_loss"] == pytest.approx(found[summary["updates"]], abs=1e-5)
    assert not losses(tmp_path / "without")
    assert not (tmp_path / "with" / "out" / "validation").exists()


@pytest.mark.slow
def test_a_split_that_cannot_be_measured_is_a_note(base: Path, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    data = tiny_students.dataset(tmp_path / "x" / "dataset.jsonl", 9)
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"messages": [{"role": "user", "content": "no answer"}]}) + "\n")
    config = tiny_students.config(base) | {"validation": str(bad)}
    SFT().train(data, tmp_path / "out", config)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["validation_loss"] is None
    assert any(note.startswith("no validation loss") for note in summary["notes"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_measure_the_same(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "one", 5)
    train(base, tmp_path / "two", 5, processes=2)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one.keys() == two.keys()
    for step, loss in one.items():
        assert two[step] == pytest.approx(loss, rel=1e-4)
