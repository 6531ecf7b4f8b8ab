"""Machines of a plan, and how fast they answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill import models
from distill.errors import UsageError
from distill.plan_machines import from_smi, hardware, machine, machines
from distill.plan_models import Served, served, student, teacher
from distill.plan_serving import serve
from distill.recipe import Recipe


@pytest.mark.parametrize(
    ("word", "nodes", "gpus", "name", "memory"),
    [
        ("1x24", 1, 1, "RTX4090", 24),
        ("80", 1, 1, "H100", 80),
        ("2x8x80", 2, 8, "H100", 80),
        ("8xh200", 1, 8, "H200", 141),
        ("4xA100-40", 1, 4, "A100-40", 40),
        ("1x16", 1, 1, "RTX4090", 16),
        ("1x80GB", 1, 1, "H100", 80),
    ],
)
def test_a_machine_is_counts_and_a_gpu(
    word: str, nodes: int, gpus: int, name: str, memory: float
) -> None:
    found = machine(word)
    assert (found.nodes, found.gpus, found.gpu.name, found.gpu.memory) == (
        nodes,
        gpus,
        name,
        memory,
    )
    assert found.price == nodes * gpus * found.gpu.price


@given(st.text(max_size=12))
def test_any_text_is_a_machine_or_refused_with_an_example(text: str) -> None:
    try:
        found = machines(text)
    except UsageError as error:
        hint = error.hint or ""
        found = [machine(hint.partition("--on ")[2].split(",")[0] or "8x80")] if hint else []
    assert found
    assert all(m.total > 0 and m.gpu.memory >= 4 for m in found)


@pytest.mark.parametrize("word", ["", "8x", "0x80", "8x8x8x80", "8xbanana", "8x80x", "1x2000"])
def test_nonsense_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match="--on"):
        machines(word)


def test_the_machine_at_hand_is_read_from_nvidia_smi() -> None:
    row = "NVIDIA H100 80GB HBM3, 81559\n"
    found = from_smi(row * 8)
    assert found is not None
    assert (found.gpus, found.gpu.name, found.said) == (8, "H100", "8x80 GB")
    # torch says 79.1 to 79.2 GiB of such a GPU.
    assert 77e9 < found.gpu.usable < 85e9
    one = from_smi(row * 8, shown="3")
    assert one is not None
    assert one.gpus == 1
    small = from_smi("NVIDIA GeForce RTX 4090, 24564\nNVIDIA GeForce RTX 3090, 24576\n")
    assert small is not None
    assert (small.gpu.name, small.gpus) == ("RTX4090", 2)
    assert from_smi("no devices were found") is None
    assert from_smi(row, shown="") is None


def test_the_machine_at_hand_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.plan_machines.visible", lambda: machine("8x80"))
    assert machine("here").total == 8
    monkeypatch.setattr("distill.plan_machines.visible", lambda: None)
    with pytest.raises(UsageError, match="shows no GPU"):
        machine("here")


def test_prices_can_be_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("gpus: {H100: {price: 2.2}}\nassumes: {mfu: 0.5}\n")
    monkeypatch.setenv("DISTILL_HARDWARE", str(own))
    hardware.cache_clear()
    try:
        assert machine("8x80").price == pytest.approx(17.6)
        own.write_text("gpu: {H100: {price: 2.2}}\n")
        hardware.cache_clear()
        with pytest.raises(UsageError, match="DISTILL_HARDWARE"):
            machine("8x80")
    finally:
        monkeypatch.undo()
        hardware.cache_clear()


def test_peaks_are_those_that_progress_counts_with() -> None:
    peak = models.of_students("flops:PEAK")
    for name, known in [("H100", "H100"), ("A100", "A100"), ("RTX4090", "RTX 4090")]:
        assert hardware()["gpus"][name]["bf16"] * 1e12 == pytest.approx(peak[known], rel=0.01)


# -- serving -------------------------------------------------------------------------------------


def r1() -> Served:
    found = teacher(Recipe.load("7b"))
    assert isinstance(found, Served)
    return found


def test_r1_needs_more_than_a_node_of_80_gb() -> None:
    model = r1()
    assert model.params == 671e9
    # Latent attention: 576 numbers of bf16 in each of 61 layers.
    assert model.cache == 2 * 61 * 576
    ask = {"prompt": 200, "tokens": 5355, "most": 32768}
    assert serve(model, machine("8x80"), **ask).short
    assert not serve(model, machine("2x8x80"), **ask).short
    assert not serve(model, machine("8xH200"), **ask).short


@pytest.mark.parametrize(("tokens", "said"), [(8000, 23), (6000, 41)])
def test_r1_on_two_nodes_is_near_what_open_r1_reports(tokens: int, said: int) -> None:
    """15 to 25 answers an hour of an H100 at a limit of 16k tokens; docs/planning.md has ours."""
    found = serve(r1(), machine("2x8x80"), prompt=200, tokens=tokens, most=16384)
    assert round(found.tokens_per_second / tokens * 3600 / 16) == said


def test_decoding_is_bound_by_memory() -> None:
    arch = models.student_entry("Qwen/Qwen2.5-Math-7B").arch
    model = served("7b", arch)
    assert model.weights == pytest.approx(15.2e9, rel=0.01)
    assert model.cache == 2 * 2 * 28 * 4 * 128
    ask = {"prompt": 200, "tokens": 5355, "most": 32768}
    one, eight = serve(model, machine("1x80"), **ask), serve(model, machine("8x80"), **ask)
    assert eight.replicas * eight.split == 8
    assert eight.tokens_per_second == pytest.approx(8 * one.tokens_per_second)
    # Reading weights and cache at 60% of 3.35 TB/s alone takes so long.
    step = (one.weights + one.cache) * 2**30 / (0.6 * 3.35e12)
    assert one.tokens_per_second < one.batch / step
    short = serve(model, machine("1x80"), prompt=200, tokens=500, most=4096)
    assert short.tokens_per_second > one.tokens_per_second
    # The cache of all requests and the weights fit what a server takes of the GPU.
    assert one.weights + one.cache < 0.9 * 80


def test_all_teachers_of_the_catalog_are_known_or_say_why() -> None:
    for name in models.of_students("catalog:bases")():
        assert student(Recipe.load("7b", overrides=[f"student.base={name}"])).arch is not None
    known = {"DeepSeek-R1", "QwQ-32B", "DeepSeek-R1-Distill-Llama-70B", "pocket-teacher"}
    for name in known:
        assert isinstance(teacher(Recipe.load("7b", overrides=[f"teacher.model={name}"])), Served)
    api = teacher(Recipe.load("7b", overrides=["teacher.model=deepseek-reasoner"]))
    assert isinstance(api, str)
    assert "its maker" in api


def test_a_quantised_teacher_takes_less() -> None:
    whole = teacher(Recipe.load("7b", overrides=["teacher.model=QwQ-32B"]))
    half = teacher(
        Recipe.load("7b", overrides=["teacher.model=QwQ-32B", "teacher.quantization=fp8"])
    )
    assert isinstance(whole, Served)
    assert isinstance(half, Served)
    assert half.weights * 2 == whole.weights


def test_an_unknown_base_says_what_to_fetch(tmp_path: Path) -> None:
    found = student(Recipe.load("7b", overrides=["student.base=someone/some-model"]))
    assert found.arch is None
    assert "hf download someone/some-model config.json" in found.why
    gone = student(Recipe.load("7b", overrides=[f"student.base={tmp_path / 'none'}"]))
    assert "config.json" in gone.why
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "config.json").write_text('{"model_type": "mamba", "d_model": 64}')
    assert "unknown" in student(Recipe.load("7b", overrides=[f"student.base={odd}"])).why


LLAMA = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
    "head_dim": 64,
}
"""The sizes of Llama 3.2 1B."""


def test_a_config_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    found = student(Recipe.load("7b", overrides=[f"student.base={tmp_path}"]))
    assert found.params == pytest.approx(1.236e9, rel=0.001)
    taught = teacher(Recipe.load("7b", overrides=[f"teacher.model={tmp_path}"]))
    assert isinstance(taught, Served)
    assert taught.cache == 2 * 2 * 16 * 8 * 64


def test_the_hubs_cache_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--someone--cached"
    snapshot = folder / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    (snapshot / "config.json").write_text(json.dumps(LLAMA))
    found = student(Recipe.load("7b", overrides=["student.base=someone/cached"]))
    assert found.params == pytest.approx(1.236e9, rel=0.001)
    assert (found.name, found.why) == ("someone/cached", "")
