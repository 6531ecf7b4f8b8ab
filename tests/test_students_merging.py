"""Means of checkpoints and of models: exact, streamed, refused where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.errors import DistillError, UsageError
from distill.students import averaging, checkpoints
from distill.students.sft import SFT
from tests import tiny_students


def checkpoint(folder: Path, model: Any, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    checkpoints.write(path, model, torch.optim.AdamW(model.parameters()))
    checkpoints.seal(path, step)
    return path


def small() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))


def test_the_mean_of_checkpoints_is_the_naive_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(averaging, "GROUP_BYTES", 120)  # several groups
    models = [small() for _ in range(3)]
    found = [checkpoint(tmp_path, m, 10 * i) for i, m in enumerate(models)]
    model = small()
    averaging.average(found, model)
    for name, parameter in model.named_parameters():
        parts = [dict(m.named_parameters())[name].detach() for m in models]
        assert torch.equal(parameter, (parts[0] + parts[1] + parts[2]) / 3)


def adapted() -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = torch.nn.Sequential(torch.nn.Linear(5, 7, bias=False), torch.nn.Linear(7, 3, bias=False))
    return get_peft_model(base, LoraConfig(r=2, lora_alpha=6, target_modules=["0", "1"]))


def test_the_mean_of_adapters_is_that_of_the_merged_weights(tmp_path: Path) -> None:
    found, merged = [], []
    for number in range(3):
        model = adapted()
        with torch.no_grad():
            for parameter in (p for p in model.parameters() if p.requires_grad):
                parameter.normal_()
        found.append(checkpoint(tmp_path, model, number))
        merged.append(model.merge_and_unload())
    model = adapted()
    averaging.average(found, model)
    assert model.peft_config["default"].r == 6
    model.save_pretrained(tmp_path / "adapter")
    from peft import PeftModel

    base = adapted().unload()
    again = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).merge_and_unload()
    for mine in (model.merge_and_unload(), again):
        for layer in range(2):
            mean = sum(m[layer].weight for m in merged) / 3
            torch.testing.assert_close(mine[layer].weight, mean)


def test_what_cannot_be_averaged_is_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, small(), 5)
    (path / "state" / ".metadata").write_bytes(b"")
    with pytest.raises(DistillError, match="cut off"):
        averaging.average([path], small())
    with pytest.raises(UsageError, match="DeepSpeed"):
        averaging.average([tmp_path], small())


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_student_is_the_mean_of_its_last_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    from safetensors.torch import load_file

    base, data = tiny_students.base(tmp_path / "base"), tiny_students.dataset(tmp_path / "d.jsonl")
    told = tiny_students.config(base, student__method=method, average=2, save_every=2, max_steps=6)
    seen: list[dict[str, torch.Tensor]] = []
    real = averaging.average

    def watched(found: Any, model: Any) -> None:
        for path in found:
            parts = checkpoints.weights_of(path).glob("*.safetensors")
            seen.append({k: v for part in parts for k, v in load_file(part).items()})
        real(found, model)

    monkeypatch.setattr(averaging, "average", watched)
    SFT().train(data, tmp_path / "out", told)
    student = load_file(tmp_path / "out" / "student" / "model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    if method == "full":
        expected = (seen[0][f"{name}.weight"] + seen[1][f"{name}.weight"]) / 2
    else:
        keys = [f"base_model.model.{name}.lora_{part}.default.weight" for part in "BA"]
        deltas = [one[keys[0]] @ one[keys[1]] * 8 / 4 for one in seen]
        expected = load_file(base / "model.safetensors")[f"{name}.weight"] + sum(deltas) / 2
    torch.testing.assert_close(student[f"{name}.weight"], expected)
    assert len(seen) == 2
    assert any(not torch.equal(seen[0][k], seen[1][k]) for k in seen[0])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "mean of the checkpoints of updates 4, 6" in summary["kept_why"]
