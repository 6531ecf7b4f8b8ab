"""The base made ready: rows of new tokens, sizes of the vocabulary, what the folder says."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.errors import ModelError
from distill.students.loading import TAGS, load_model, prepare
from distill.students.sft import SFT
from tests import families, tiny_students


def rows(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The embedding's rows and the head's."""
    return model.get_input_embeddings().weight.data, model.get_output_embeddings().weight.data


@pytest.mark.parametrize("tied", [True, False])
def test_new_tags_start_at_the_mean_of_their_pieces(tmp_path: Path, tied: bool) -> None:
    base = tiny_students.base(tmp_path / "base", tie_word_embeddings=tied)
    plain, student = prepare({"base": str(base)}), {"base": str(base), "think_tokens": "tokens"}
    ready = prepare(student)
    old, new = load_model(plain, {}), load_model(ready, student)
    assert ready.vocab % 64 == 0
    assert new.config.vocab_size == ready.vocab == rows(new)[0].shape[0] > rows(old)[0].shape[0]
    for before, after in zip(rows(old), rows(new), strict=True):
        count = before.shape[0]
        assert torch.equal(before, after[:count])
        for tag in TAGS:
            pieces = plain.tokenizer.encode(tag, add_special_tokens=False)
            assert pieces == list(map(ord, tag)) or len(pieces) == len(tag)
            at = ready.tokenizer.convert_tokens_to_ids(tag)
            torch.testing.assert_close(after[at], before[pieces].mean(0))
        torch.testing.assert_close(after[-1], before.mean(0))
    assert (rows(new)[0] is rows(new)[1]) is False
    assert (rows(new)[0].data_ptr() == rows(new)[1].data_ptr()) is tied


def test_tags_that_are_tokens_already_keep_their_rows(tmp_path: Path) -> None:
    base = tiny_students.base(tmp_path / "base", "qwen3", (*families.CHATML, *TAGS), head_dim=8)
    path = base / "tokenizer.json"
    told = json.loads(path.read_text())
    for token in told["added_tokens"]:
        token["special"] = token["content"] not in TAGS
    path.write_text(json.dumps(told))
    plain, student = prepare({"base": str(base)}), {"base": str(base), "think_tokens": "tokens"}
    ready = prepare(student)
    assert ready.spelled == {}
    assert len(ready.new_tokens) == 2  # trained under LoRA all the same
    assert ready.vocab == plain.vocab
    assert torch.equal(rows(load_model(ready, student))[0], rows(load_model(plain, {}))[0])


def test_spare_rows_are_used_before_the_vocabulary_grows(tmp_path: Path) -> None:
    # As Qwen2.5: more rows than tokens.
    base = tiny_students.base(tmp_path / "base", "qwen2", vocab_size=300)
    ready = prepare({"base": str(base), "think_tokens": "tokens"})
    assert ready.vocab == 300
    assert max(ready.new_tokens) < 300
    assert load_model(ready, {}).config.vocab_size == 300


def test_ordinary_tokens_beyond_the_embedding_are_refused(tmp_path: Path) -> None:
    base = tiny_students.base(tmp_path / "base", vocab_size=200)
    with pytest.raises(
        ModelError, match=r"has 56 tokens beyond its embedding's 200 rows"
    ) as caught:
        prepare({"base": str(base)})
    assert "not of one model" in caught.value.hint


def test_added_tokens_beyond_the_embedding_get_rows_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tiny_students.base(tmp_path / "base", vocab_size=257)
    with caplog.at_level(logging.WARNING, "distill.students.loading"):
        ready = prepare({"base": str(base)})
    assert "2 added tokens beyond its embedding's 257 rows" in caplog.text
    assert load_model(ready, {}).config.vocab_size == ready.vocab == 320


def test_the_folder_says_how_to_sample_where_to_stop_and_how_far_it_reads(tmp_path: Path) -> None:
    specials, names = families.SYNTHETIC["llama3"][1:]
    base = tiny_students.base(tmp_path / "base", "llama", specials, dict(names))
    student = {"base": str(base), "positions": 128, "rope_theta": 300000}
    ready = prepare(student)
    said = load_model(ready, student).generation_config
    names_of = ready.tokenizer.convert_ids_to_tokens
    assert names_of(said.eos_token_id) == ["<|eot_id|>", "<|end_of_text|>"]
    assert (said.do_sample, said.temperature, said.top_p) == (True, 0.6, 0.95)
    assert names_of(said.pad_token_id) == "<|finetune_right_pad_id|>"
    # vLLM serves the lower of both; generate() stops at twenty tokens where nothing is said.
    assert said.max_length == ready.tokenizer.model_max_length == ready.positions == 128
    assert ready.config.rope_parameters["rope_theta"] == 300000


def test_a_model_without_positions_has_no_limit(tmp_path: Path) -> None:
    from transformers import AutoConfig

    tokenizer = tiny_students.tokenizer()
    AutoConfig.for_model("bloom", vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ready = prepare({"base": str(tmp_path)})
    assert ready.positions == ready.tokenizer.model_max_length == 1 << 20
    assert ready.template == "plain"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "tied"), [("lora", True), ("qlora", True), ("qlora", False), ("full", False)]
)
def test_rows_of_new_tags_are_trained_and_saved_by_every_method(
    tmp_path: Path, method: str, tied: bool
) -> None:
    from transformers import AutoModelForCausalLM

    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "tie_word_embeddings": tied}
    base = tiny_students.base(tmp_path / "base", **sizes)
    data = tiny_students.dataset(tmp_path / "dataset.jsonl", 16)
    config = tiny_students.config(
        base, student__method=method, student__think_tokens="tokens", max_steps=3
    )
    student = SFT().train(data, tmp_path / "out", config)
    ready = prepare(config["student"])
    model = AutoModelForCausalLM.from_pretrained(student)
    assert model.config.vocab_size == ready.vocab == rows(model)[0].shape[0]
    started = rows(load_model(ready, config["student"], dtype=torch.float32))
    for start, end in zip(started, rows(model), strict=True):
        moved = (end - start).abs().amax(1)
        tags = [ready.tokenizer.convert_tokens_to_ids(t) for t in TAGS]
        assert all(moved[t] > 0 for t in tags)
        if method != "full":  # nothing else of embedding and head
            assert moved[[i for i in range(len(moved)) if i not in tags]].max() == 0
