"""What leaves with a student: merged weights that say what was trained, other precisions, cards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill import child
from distill.cli import main
from distill.errors import MissingExtra, ModelError, UsageError
from distill.students import adapter as lora
from distill.students import export_quant
from distill.students.export_weights import copy_adapter, write_safetensors
from distill.students.loading import prepare
from distill.students.sft import SFT
from tests import bpe_students, tiny_students


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base/` and `out/` of a LoRA training of a few updates."""
    folder = tmp_path_factory.mktemp("trained")
    base = bpe_students.base(folder / "base")
    data = tiny_students.dataset(folder / "dataset.jsonl", 8)
    config = tiny_students.config(base, student__method="lora", epochs=1)
    SFT().train(data, folder / "out", config)
    return folder


def merged(trained: Path, base: Path) -> tuple[Any, float | None]:
    student = tiny_students.config(base)["student"]
    return lora.merge(
        trained / "out" / "adapter", prepare(student), student, torch.float32, [[5, 6, 7]]
    )


def test_merging_is_checked_by_logits(trained: Path) -> None:
    told = json.loads((trained / "out" / "summary.json").read_text())
    assert 0 <= told["merge_logits_max_diff"] < 1e-5


def test_merging_that_changes_logits_is_an_error() -> None:
    before = [torch.zeros(1, 3, 5)]
    assert lora.difference(before, before) == 0
    assert lora.difference([], []) is None
    with pytest.raises(ModelError, match=r"moved a logit by 0\.01"):
        lora.difference(before, [torch.full((1, 3, 5), 0.01)])
    with pytest.raises(ModelError, match="moved a logit by nan"):
        lora.difference(before, [torch.full((1, 3, 5), float("nan"))])


def test_adapter_of_another_base_is_refused(trained: Path, tmp_path: Path) -> None:
    same_shapes = bpe_students.base(tmp_path / "other")
    with pytest.raises(ModelError, match=r"was trained on '.*base', not on '.*other'"):
        merged(trained, same_shapes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 64}, "'model.layers.0.mlp.down_proj' gives 32 features, .* 64"),
        ({"num_hidden_layers": 1}, r"changes 'model.layers.1\..*', which .* does not have"),
        ({"num_hidden_layers": 3}, r"has nothing for 'model.layers.2\..*'"),
    ],
)
def test_adapter_that_does_not_fit_is_refused(
    trained: Path, tmp_path: Path, changes: dict[str, int], said: str
) -> None:
    from transformers import AutoModelForCausalLM

    base = bpe_students.base(tmp_path / "other", **changes)
    model = AutoModelForCausalLM.from_pretrained(base)
    path = str(trained / "base")  # as if that folder now held another model
    with pytest.raises(ModelError, match=said):
        lora.check_adapter(trained / "out" / "adapter", model, path)


def test_torn_adapter_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        lora.check_adapter(tmp_path, None, "base")


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_safetensors_in_shards(trained: Path, tmp_path: Path, dtype: str) -> None:
    student = trained / "out" / "student"
    found = write_safetensors(student, tmp_path / "out", dtype, "50KB")
    assert found["files"] > 1
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    whole = load_file(student / "model.safetensors")
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    for name, file in index["weight_map"].items():
        part = load_file(tmp_path / "out" / file)[name]
        assert part.dtype == kinds[dtype]
        torch.testing.assert_close(part, whole[name].to(part.dtype), rtol=0, atol=0)
    for name in ("README.md", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (student / name).read_bytes()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == str(kinds[dtype]).removeprefix("torch.")


def test_fp16_that_overflows_is_refused(trained: Path, tmp_path: Path) -> None:
    import shutil

    student = tmp_path / "student"
    shutil.copytree(trained / "out" / "student", student)
    weights = load_file(student / "model.safetensors")
    weights["model.norm.weight"][0] = 1e5
    save_file(weights, student / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"'model.norm.weight' .* beyond fp16"):
        write_safetensors(student, tmp_path / "out", "fp16")
    assert not (tmp_path / "out").exists()


def test_what_is_no_model_is_not_overwritten(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match="no exported model"):
        write_safetensors(trained / "out" / "student", tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_adapter_with_card(trained: Path, tmp_path: Path) -> None:
    found = copy_adapter(
        trained / "out" / "adapter", tmp_path / "a", trained / "out" / "student" / "README.md"
    )
    assert found["base"] == str(trained / "base")
    assert "distill" in (tmp_path / "a" / "README.md").read_text()
    with pytest.raises(ModelError, match="no adapter"):
        copy_adapter(tmp_path / "nowhere", tmp_path / "b", tmp_path)


def make_run(trained: Path, runs: Path) -> Path:
    """A run's folder whose train step is `trained`."""
    run = runs / "tiny-0123456789ab"
    run.mkdir(parents=True)
    (runs / "steps").mkdir()
    (runs / "steps" / "train-1").symlink_to(trained / "out")
    (runs / "steps" / "select-1").symlink_to(trained)
    steps = {name: {"folder": f"steps/{name}-1"} for name in ("select", "train")}
    (run / "run.json").write_text(json.dumps({"recipe": {"name": "tiny"}, "steps": steps}))
    return run


@pytest.mark.slow
def test_the_command_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(trained, tmp_path / "runs")
    assert main(["export", str(run), "--form", "gguf", "--out", str(tmp_path / "gguf")]) == 0
    assert (tmp_path / "gguf" / "tiny-0123456789ab-f16.gguf").is_file()
    assert (tmp_path / "gguf" / "README.md").is_file()
    out = str(tmp_path / "shards")
    asked = ["export", str(run), "shard_size=50KB", "--form", "safetensors", "--dtype", "bf16"]
    assert main([*asked, "--out", out, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["files"] > 1
    assert told["dtype"] == "bfloat16"
    assert main(["export", str(run), "--form", "adapter", "--dtype", "bf16"]) == 2
    assert main(["export", str(run), "shards=2", "--form", "safetensors"]) == 2


def test_quantising_says_what_it_needs(trained: Path, tmp_path: Path) -> None:
    student = trained / "out" / "student"
    with pytest.raises(UsageError, match="needs examples to calibrate on"):
        export_quant.quantise(student, tmp_path / "out", "gptq")
    with pytest.raises(UsageError, match="q3"):
        export_quant.quantise(student, tmp_path / "out", "q3")
    try:
        import llmcompressor  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtra, match="llmcompressor"):
            export_quant.quantise(student, tmp_path / "out", "fp8")


def test_calibration_sees_what_was_trained(trained: Path) -> None:
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(trained / "out" / "student")
    rows = export_quant.calibration(trained / "dataset.jsonl", words, 3)
    assert len(rows) == 3
    said = words.decode(rows[0]["input_ids"])
    first = json.loads((trained / "dataset.jsonl").read_text().splitlines()[0])
    assert first["messages"][1]["content"].removeprefix("<think>\n") in said
    assert rows[0]["input_ids"][-1] == words.eos_token_id


@pytest.mark.slow
@pytest.mark.parametrize("form", ["fp8", "gptq"])
def test_fewer_bits_by_llm_compressor(tmp_path: Path, form: str) -> None:
    import os

    python = os.environ.get("DISTILL_LLMCOMPRESSOR_PYTHON")
    if not python:
        pytest.skip("no llm-compressor: DISTILL_LLMCOMPRESSOR_PYTHON=PYTHON with distill in it")
    base = bpe_students.base(tmp_path / "base", hidden_size=128, intermediate_size=256)
    data = tiny_students.dataset(tmp_path / "dataset.jsonl", 8)
    student = SFT().train(data, tmp_path / "out", tiny_students.config(base, max_steps=1))
    payload = {"model": str(student), "out": str(tmp_path / form), "form": form}
    found = child.call(
        "distill.students.export_quant:run", {**payload, "dataset": str(data)}, python=python
    )
    assert found["examples"] == (8 if form == "gptq" else 0)
    told = json.loads((tmp_path / form / "config.json").read_text())
    assert told["quantization_config"]["quant_method"] == "compressed-tensors"
    assert found["bytes"] < 0.7 * (student / "model.safetensors").stat().st_size
