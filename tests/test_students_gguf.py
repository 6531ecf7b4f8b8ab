"""GGUF files are read again, by transformers and by llama.cpp, and say what the student says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.errors import ModelError, UsageError
from distill.students.export_gguf import find_converter, write_gguf
from distill.students.export_gguf_metadata import rope_frequencies
from distill.students.export_gguf_tokenizer import split_rule
from distill.students.sft import SFT
from tests import bpe_students, tiny_students

TEXT = "<|im_start|>user\nWhat's 12 + 345?  Don't add\n\n\nü 1234567<|im_end|>\n"
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def both(model: Path, file: Path) -> tuple[Any, Any, Any, Any]:
    """Model and tokenizer as trained, and as transformers reads them from the GGUF file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    return (
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32),
        AutoTokenizer.from_pretrained(model),
        AutoTokenizer.from_pretrained(**where),
    )


@pytest.mark.parametrize(
    ("kind", "rule", "changes"),
    [
        ("llama", "gpt-2", {"tie_word_embeddings": True, "attention_bias": True}),
        ("llama", "llama-bpe", {"num_key_value_heads": 4, "head_dim": 16}),
        ("qwen2", "qwen2", {}),
        ("qwen3", "qwen2", {"head_dim": 128}),
    ],
)
def test_f32_is_exact(tmp_path: Path, kind: str, rule: str, changes: dict[str, Any]) -> None:
    model = bpe_students.base(tmp_path / "model", kind, rule, **changes)
    found = write_gguf(model, tmp_path / "out" / "a.gguf", "f32", converter="")
    assert found["bytes"] == (tmp_path / "out" / "a.gguf").stat().st_size
    one, other, words, read = both(model, tmp_path / "out" / "a.gguf")
    ids = words(TEXT).input_ids
    assert read(TEXT).input_ids == ids
    assert (read.eos_token_id, read.pad_token_id) == (words.eos_token_id, words.pad_token_id)
    with torch.no_grad():
        asked = torch.tensor([ids])
        torch.testing.assert_close(other(asked).logits, one(asked).logits, rtol=0, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [("f16", 1e-3), ("bf16", 1e-2), ("q8_0", 2e-2)])
def test_fewer_bits_are_close(tmp_path: Path, dtype: str, tolerance: float) -> None:
    model = bpe_students.base(tmp_path / "model")
    write_gguf(model, tmp_path / "a.gguf", dtype, converter="")
    one, other, words, _ = both(model, tmp_path / "a.gguf")
    with torch.no_grad():
        asked = torch.tensor([words(TEXT).input_ids])
        difference = (other(asked).logits - one(asked).logits).abs().max()
    assert 0 < difference < tolerance


def test_what_fits_no_block_is_said(tmp_path: Path) -> None:
    model = bpe_students.base(tmp_path / "model", intermediate_size=48)
    notes = write_gguf(model, tmp_path / "a.gguf", "q8_0", converter="")["notes"]
    assert len(notes) == 2  # the down projections of both layers take 48 features
    assert "is f16: 48 is no multiple of 32" in notes[0]


def test_llama3_frequencies_are_those_of_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=256, num_attention_heads=4, max_position_embeddings=512,
        rope_parameters=LLAMA3_ROPE,
    )  # fmt: skip
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** (-torch.arange(0, 64, 2).double() / 64)
    divisors = torch.from_numpy(rope_frequencies(config.to_dict())).double()
    torch.testing.assert_close(plain / divisors, scaled.double(), rtol=1e-5, atol=0)
    assert divisors.min() == 1 and divisors.max() == 8  # noqa: PT018


def test_weights_beyond_f16_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = bpe_students.base(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="beyond f16"):
        write_gguf(model, tmp_path / "a.gguf", "f16", converter="")
    assert list(tmp_path.glob("*.gguf*")) == []


def test_unknown_dtype_and_architecture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="q4"):
        write_gguf(tmp_path, tmp_path / "a.gguf", "q4")
    model = bpe_students.base(tmp_path / "model", "gemma")
    with pytest.raises(ModelError, match="'gemma'"):
        write_gguf(model, tmp_path / "a.gguf", "f32", converter="")


def test_known_rules_are_named_and_others_refused() -> None:
    for rule in ("gpt-2", "smollm", "qwen2", "llama-bpe"):
        told = json.loads(bpe_students.tokenizer(rule).backend_tokenizer.to_str())
        assert split_rule(told) == rule
    told["model"]["ignore_merges"] = False
    with pytest.raises(ModelError, match="other tokens than were trained"):
        split_rule(told)


def test_pocket_is_refused_because_llama_cpp_would_split_it_otherwise(tmp_path: Path) -> None:
    pocket = Path(__file__).parents[1] / "students" / "pocket"
    with pytest.raises(ModelError, match="no rule that splits text"):
        write_gguf(pocket, tmp_path / "a.gguf", "f32", converter="")


def fake_converter(folder: Path, body: str) -> Path:
    """llama.cpp's script as far as its command line goes; `body` has `model` and `out`."""
    path = folder / "convert_hf_to_gguf.py"
    path.write_text(
        "import sys\nfrom pathlib import Path\n"
        "model, out = Path(sys.argv[1]), Path(sys.argv[3])\n"
        "assert sys.argv[2] == '--outfile' and sys.argv[4] == '--outtype'\n" + body
    )
    return path


def test_converter_is_used_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bpe_students.base(tmp_path / "model")
    write_gguf(model, tmp_path / "good.gguf", "f32", converter="")
    script = fake_converter(tmp_path, f"out.write_bytes(Path('{tmp_path}/good.gguf').read_bytes())")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path))
    assert write_gguf(model, tmp_path / "a.gguf", "f32")["by"] == str(script)
    monkeypatch.setenv("LLAMA_CPP", "")
    assert find_converter() == ""
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="nowhere"):
        find_converter()


def test_converter_that_loses_the_rope_base_is_found_out(tmp_path: Path) -> None:
    # So does the converter of March 2025 with what transformers 5 writes.
    other = bpe_students.base(tmp_path / "other")
    write_gguf(other, tmp_path / "lost.gguf", "f32", converter="")
    script = fake_converter(tmp_path, f"out.write_bytes(Path('{tmp_path}/lost.gguf').read_bytes())")
    rope = {"rope_type": "default", "rope_theta": 300000.0}
    model = bpe_students.base(tmp_path / "model", rope_parameters=rope)
    with pytest.raises(ModelError, match=r"rope.freq_base = 10000.0, the student 300000.0"):
        write_gguf(model, tmp_path / "a.gguf", "f32", converter=str(script))
    assert not (tmp_path / "a.gguf").exists()


def test_converter_that_fails_says_why(tmp_path: Path) -> None:
    script = fake_converter(tmp_path, "sys.exit('BPE pre-tokenizer was not recognized')\n")
    model = bpe_students.base(tmp_path / "model")
    with pytest.raises(ModelError, match="was not recognized") as told:
        write_gguf(model, tmp_path / "a.gguf", "f32", converter=str(script))
    assert "LLAMA_CPP=" in told.value.hint


def ask(file: Path, *requests: tuple[str, dict[str, Any]]) -> list[Any]:
    """What llama.cpp answers; skips where there is none."""
    python = os.environ.get("DISTILL_LLAMA_CPP_PYTHON", sys.executable)
    there = subprocess.run([python, "-c", "import xllamacpp"], capture_output=True, check=False)
    if there.returncode:
        pytest.skip("no llama.cpp: pip install xllamacpp, or DISTILL_LLAMA_CPP_PYTHON=PYTHON")
    ran = subprocess.run(
        [python, str(Path(__file__).with_name("llama_cpp_server.py")), str(file)],
        input="".join(json.dumps(request) + "\n" for request in requests),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "rule", "changes"),
    [
        ("llama", "llama-bpe", {"rope_parameters": LLAMA3_ROPE}),
        ("qwen2", "qwen2", {}),
        ("qwen3", "qwen2", {"head_dim": 32}),
    ],
)
def test_llama_cpp_answers_with_thinking_and_stops(
    tmp_path: Path, kind: str, rule: str, changes: dict[str, Any]
) -> None:
    base = bpe_students.base(tmp_path / "base", kind, rule, **changes)
    row = tiny_students.example(12, 34)
    data = tmp_path / "data.jsonl"
    data.write_text((json.dumps(row) + "\n") * 4)
    config = tiny_students.config(base, batch_size=4, epochs=70, student__template="chatml-r1")
    student = SFT().train(data, tmp_path / "out", config)
    file = tmp_path / "student.gguf"
    write_gguf(student, file, "f32", converter="")
    question = row["messages"][:1]
    tokens, prompt, answer = ask(
        file,
        ("/tokenize", {"content": TEXT, "add_special": True, "parse_special": True}),
        ("/apply-template", {"messages": question}),
        ("/v1/chat/completions", {"messages": question, "temperature": 0, "max_tokens": 200,
                                  "reasoning_format": "none"}),
    )  # fmt: skip
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(student)
    assert tokens["tokens"] == words(TEXT).input_ids
    rendered = words.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    assert prompt["prompt"] == rendered
    assert rendered.endswith("<think>\n")
    choice = answer["choices"][0]
    said = row["messages"][1]["content"].removeprefix("<think>\n")
    assert choice["message"]["content"].removeprefix("<think>\n") == said
    assert choice["finish_reason"] == "stop"
