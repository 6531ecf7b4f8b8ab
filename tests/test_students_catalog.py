"""The catalog: known bases, families by files, templates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.errors import ModelError
from distill.students import catalog
from tests import tiny_students

# Parameter counts as the hub shows them for the safetensors of these models.
PUBLISHED = {
    "Qwen/Qwen2.5-Math-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-Math-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B-Base": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-3-1b-it": 999_885_952,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
}


@pytest.mark.parametrize(("base", "params"), PUBLISHED.items())
def test_architecture_gives_the_published_parameter_count(base: str, params: int) -> None:
    arch = catalog.find(base).arch
    assert arch is not None
    assert arch.params == params


def test_math_bases_have_4096_positions() -> None:
    assert catalog.find("Qwen/Qwen2.5-Math-7B").positions == 4096
    assert catalog.find("Qwen/Qwen2.5-Math-7B").rope_theta == 10000


@pytest.mark.parametrize("name", catalog._data()["templates"])
def test_declared_prefill_is_what_the_template_renders(name: str) -> None:
    text = (catalog.TEMPLATES / f"{name}.jinja").read_text()
    declared = catalog._data()["templates"][name]["prefill"]
    assert catalog.shape_of(text)[0] == declared


def test_lead_is_the_white_space_the_student_says_itself() -> None:
    plain = (catalog.TEMPLATES / "plain.jinja").read_text()
    opened = (catalog.TEMPLATES / "plain-r1.jinja").read_text()
    assert catalog.shape_of(plain) == ("", " ")
    assert catalog.shape_of(opened) == ("<think>\n", "")


def test_every_entry_names_a_template_and_a_licence() -> None:
    for base in catalog.bases():
        if base == "pocket-base":
            continue
        entry = catalog.find(base)
        assert (catalog.TEMPLATES / f"{entry.template}.jinja").is_file()
        assert entry.licence
        assert entry.eos != entry.pad


def test_unknown_model_is_found_by_its_family_and_tokens(tmp_path: Path) -> None:
    tiny_students.base(tmp_path / "smol", "llama", tiny_students.CHATML)
    tiny_students.base(tmp_path / "llama", "llama", tiny_students.LLAMA3)
    tiny_students.base(tmp_path / "other", "llama", ("<s>", "</s>"))
    smol, llama, other = (catalog.find(str(tmp_path / n)) for n in ("smol", "llama", "other"))
    assert (smol.template, smol.eos, smol.pad) == ("chatml-r1", "<|im_end|>", "<|endoftext|>")
    assert (llama.template, llama.eos) == ("llama3-r1", "<|eot_id|>")
    assert (other.template, other.eos, other.family) == ("plain", "", "")
    assert other.arch is not None
    assert other.arch.layers == 2


def llama_folder(folder: Path, **changes: object) -> Path:
    """Config and tokenizer of Llama-3.1-8B as the hub has them, without weights."""
    known = catalog.find("meta-llama/Llama-3.1-8B")
    assert known.arch is not None
    config = {
        "model_type": "llama",
        "hidden_size": known.arch.hidden,
        "num_hidden_layers": known.arch.layers,
        "num_attention_heads": known.arch.heads,
        "num_key_value_heads": known.arch.kv_heads,
        "intermediate_size": known.arch.intermediate,
        "vocab_size": known.arch.vocab,
        "tie_word_embeddings": False,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "eos_token_id": 128001,
        **changes,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    added = [{"id": 128000 + i, "content": t} for i, t in enumerate(tiny_students.LLAMA3)]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    return folder


@pytest.mark.parametrize("changes", [{}, {"head_dim": 128}])
def test_a_local_copy_of_a_base_keeps_its_untrained_tokens(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    entry = catalog.find(str(llama_folder(tmp_path / "copy", **changes)))
    named = catalog.find("meta-llama/Llama-3.1-8B")
    assert entry.copy_of == "meta-llama/Llama-3.1-8B"
    assert entry.untrained == named.untrained != ()
    assert (entry.arch, entry.template, entry.eos) == (named.arch, named.template, named.eos)


@pytest.mark.parametrize(
    "changes",
    [
        {"eos_token_id": [128001, 128008, 128009]},  # Llama-3.1-8B-Instruct
        {"eos_token_id": 128009, "_name_or_path": "meta-llama/Llama-3.1-8B"},
        {"num_hidden_layers": 16},
        {"rope_theta": 10000.0},
    ],
)
def test_what_only_looks_like_the_base_has_its_rows_trained(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    entry = catalog.find(str(llama_folder(tmp_path / "other", **changes)))
    assert (entry.copy_of, entry.untrained) == ("", ())


def test_arch_of_a_folder_counts_the_real_weights(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    for kind in ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "smollm3"):
        folder = tiny_students.base(tmp_path / kind, kind, head_dim=8)
        arch = catalog.find(str(folder)).arch
        assert arch is not None
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert arch.params == model.num_parameters(), kind


def test_missing_models_say_what_to_do() -> None:
    with pytest.raises(ModelError, match="no model at"):
        catalog.find("./nowhere")
    with pytest.raises(ModelError, match=r"did you mean 'chatml-r1'\?"):
        catalog.chat_template("Qwen/Qwen2.5-7B", "chatml")


def test_hub_model_that_cannot_be_reached_names_the_download(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="hf download nobody/nothing-7b"):
        catalog.find("nobody/nothing-7b")


def test_tokenizer_that_adds_bos_gets_it_in_the_prompt(tmp_path: Path) -> None:
    folder = tiny_students.base(tmp_path / "base", "llama", ("<s>", "</s>"))
    before = catalog.chat_template(str(folder))
    assert "bos_token" not in before
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_bos_token": True}))
    assert catalog.chat_template(str(folder)) == "{{- bos_token -}}\n" + before


def test_bos_that_a_template_spells_out_is_not_put_before_it(tmp_path: Path) -> None:
    folder = tiny_students.base(
        tmp_path / "base", "llama", tiny_students.LLAMA3, {"bos_token": "<|begin_of_text|>"}
    )
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_bos_token": True}))
    own = tmp_path / "mine.jinja"
    own.write_text("<|begin_of_text|>{{ messages[0]['content'] }}")
    assert catalog.chat_template(str(folder), str(own)) == own.read_text()


def test_own_template_file(tmp_path: Path) -> None:
    own = tmp_path / "mine.jinja"
    own.write_text("Q: {{ messages[0]['content'] }} A: <think>")
    assert catalog.chat_template("Qwen/Qwen2.5-7B", str(own)) == own.read_text()
