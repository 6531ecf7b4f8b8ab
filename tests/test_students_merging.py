"""Means of checkpoints and of models: exact, streamed, refused where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.errors import DistillError, MissingExtra, ModelError, UsageError
from distill.students import averaging, checkpoints, merging, merging_checks
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


@pytest.mark.slow
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


def models(tmp_path: Path, *names: str, **changes: Any) -> list[Path]:
    from transformers import AutoModelForCausalLM

    found = []
    for number, name in enumerate(names):
        folder = tiny_students.base(tmp_path / name, **changes)
        model = AutoModelForCausalLM.from_pretrained(folder)
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(folder)
        (folder / "README.md").write_text(name)
        found.append(folder)
    return found


def payload(out: Path, folders: list[Path], **changes: Any) -> dict[str, Any]:
    weights = changes.pop("weights", [1 / len(folders)] * len(folders))
    told = {
        "models": [
            {"name": f.name, "path": str(f), "weight": w}
            for f, w in zip(folders, weights, strict=True)
        ],
        "like": 0,
        "method": "linear",
        "base": None,
        "parameters": {},
        "seed": 0,
        "python": None,
        "title": "merged",
        "base_name": "tiny",
        "out": str(out),
    }
    return {**told, **changes}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    return {k: v for file in files for k, v in load_file(file).items()}


def test_linear_is_the_weighted_mean_in_files_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folders = models(tmp_path, "long", "short", "third")
    monkeypatch.setattr(merging, "SHARD_BYTES", 30_000)
    out = tmp_path / "out"
    told = merging.merge(payload(out, folders, weights=[2.0, 1.0, 1.0]))
    assert len(list((out / "student").glob("*.safetensors"))) > 1
    one, two, three = map(tensors, folders)
    merged = AutoModelForCausalLM.from_pretrained(out / "student").state_dict()
    for name in one:
        mean = one[name] * 0.5 + two[name] * 0.25 + three[name] * 0.25
        torch.testing.assert_close(merged[name], mean, rtol=0, atol=1e-6)
    assert AutoTokenizer.from_pretrained(out / "student").get_vocab()
    assert told["params"] == sum(t.numel() for t in one.values())
    card = (out / "student" / "README.md").read_text()
    assert "| long | 0.5 |" in card
    assert [p.name for p in out.iterdir()] == ["student"]


def test_bf16_stays_bf16_and_is_rounded_once(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folders = models(tmp_path, "a", "b")
    for folder in folders:
        halved = {k: v.bfloat16() for k, v in tensors(folder).items()}
        save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})
    merging.merge(payload(tmp_path / "out", folders))
    one, two = map(tensors, folders)
    for name, merged in tensors(tmp_path / "out" / "student").items():
        mean = (one[name].float() + two[name].float()) / 2
        assert torch.equal(merged, mean.bfloat16())


def test_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    (one,) = models(tmp_path, "one")
    (wide,) = models(tmp_path, "wide", intermediate_size=80)
    (heads,) = models(tmp_path, "heads", num_key_value_heads=4)
    (deep,) = models(tmp_path, "deep", num_hidden_layers=3)
    for other, said in (
        (wide, r"model.layers.0.mlp.down_proj.weight has the shape \[32, 64\] in 'one' and \["),
        (heads, "num_key_value_heads is 2 in 'one' and 4 in 'heads'"),
        (deep, "model.layers.2.input_layernorm.weight of 'deep' is not in 'one'"),
    ):
        with pytest.raises(ModelError, match=said):
            merging.merge(payload(tmp_path / "out", [one, other]))
    merging_checks.foresee({"base": str(one), "deep": str(deep)})  # only names what must differ
    with pytest.raises(ModelError, match="down_proj"):
        merging_checks.foresee({"base": str(one), "wide": str(wide)})
    other = tiny_students.base(tmp_path / "other", specials=tiny_students.CHATML[::-1])
    with pytest.raises(ModelError, match=r"token 256 is '<.endoftext.>' in 'one'"):
        merging.merge(payload(tmp_path / "out", [one, other]))
    torn = tmp_path / "one" / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:20])
    with pytest.raises(ModelError, match="no safetensors file"):
        merging.merge(payload(tmp_path / "out", [one, wide]))
    assert not (tmp_path / "out" / "student").exists()


@pytest.mark.parametrize(
    ("method", "base", "parameters", "weights"),
    [
        ("slerp", None, {"t": 0.5}, [0.5, 0.5]),
        ("ties", "base", {"density": 0.5}, [1.0, 1.0]),
        ("task_arithmetic", "base", {}, [1.0, 1.0]),
    ],
)
@pytest.mark.slow
def test_other_methods_are_mergekits(
    tmp_path: Path, method: str, base: str | None, parameters: Any, weights: list[float]
) -> None:
    pytest.importorskip("mergekit")
    folders = models(tmp_path, "base", "a", "b")
    told = payload(tmp_path / "out", folders[1:], method=method, parameters=parameters)
    told["models"] = [{**m, "weight": w} for m, w in zip(told["models"], weights, strict=True)]
    told["base"] = {"name": "base", "path": str(folders[0])} if base else None
    merging.merge(told)
    student = tmp_path / "out" / "student"
    merged, start, one, two = map(tensors, (student, *folders))
    assert merged.keys() == one.keys()
    assert any(not torch.equal(merged[k], one[k]) for k in one)
    if method == "task_arithmetic":
        for name in one:
            wanted = one[name] + two[name] - start[name]
            torch.testing.assert_close(merged[name], wanted, rtol=0, atol=1e-5)
    assert (student / "tokenizer.json").read_bytes() == (folders[1] / "tokenizer.json").read_bytes()


def test_without_mergekit_it_is_said(tmp_path: Path) -> None:
    folders = models(tmp_path, "a", "b")
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"No module named 'mergekit'\" >&2\nexit 1\n")
    python.chmod(0o755)
    told = payload(tmp_path / "out", folders, method="slerp", python=str(python))
    with pytest.raises(MissingExtra, match=r"merge\.method: slerp"):
        merging.merge(told)
