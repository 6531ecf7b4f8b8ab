"""The manifest: complete, and without secrets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.manifest import hide_argument, hide_secrets, make_manifest
from tests.make_run import STEPS, make_run


def test_it_names_versions_machine_seeds_and_hashes(tmp_path: Path) -> None:
    run = make_run(tmp_path, problems=8)
    content = json.loads((run / "run.json").read_text(encoding="utf-8"))
    content["recipe"]["seed"] = 7
    found = make_manifest(content["recipe"], tmp_path, content["steps"], content["command"])
    assert json.loads(json.dumps(found)) == found
    assert found["seeds"] == {"run": 7, "train": 7, "problems": {"chain_sum": 0}}
    assert found["command"] == ["distill", "run", "pocket", "variant=lora"]
    assert {"transformers", "numpy", "datasets"} <= found["packages"].keys()
    assert found["machine"]["cores"] >= 1
    assert list(found["steps"]) == list(STEPS)
    assert found["steps"]["train"]["tokens"] == {"tokens": 81234, "trained_tokens": 60321}
    assert found["steps"]["sample"]["files"]["summary.json"]["sha256"] == "ab" * 32


def test_a_step_without_its_folder_is_still_named(tmp_path: Path) -> None:
    found = make_manifest({}, tmp_path, {"grade": {"folder": "steps/gone", "id": "x"}}, ["a"])
    assert found["steps"]["grade"]["identity"] == "x"
    assert found["steps"]["grade"]["files"] == {}


def test_environment_values_do_not_enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "correct-horse-battery")
    recipe = {"teacher": {"api_key_env": "OPENAI_API_KEY"}}
    found = make_manifest(recipe, tmp_path, {}, ["distill"])
    assert found["recipe"]["teacher"]["api_key_env"] == "OPENAI_API_KEY"
    assert "correct-horse" not in json.dumps(found)


@pytest.mark.parametrize(
    ("word", "hidden"),
    [
        ("teacher.options.api_key=abc", "teacher.options.api_key=***"),
        ("--token=abc", "--token=***"),
        ("options.hf_token=abc", "options.hf_token=***"),
        ("train.password=x", "train.password=***"),
        ("sampling.max_tokens=3", "sampling.max_tokens=3"),
        ("student.think_tokens=text", "student.think_tokens=text"),
        ("teacher.api_key_env=MY_KEY", "teacher.api_key_env=MY_KEY"),
        ("teacher.base_urls=[https://me:pw@host/v1]", "teacher.base_urls=[https://***@host/v1]"),
        ("sk-proj-abcdefghijklmnopqrstuv", "***"),
        ("note=hf_abcdefghijklmnopqrstuv", "note=***"),
        ("pocket", "pocket"),
        ("train.eos_token=<eos>", "train.eos_token=<eos>"),
        ("train.micro_batch_tokens=4096", "train.micro_batch_tokens=4096"),
    ],
)
def test_arguments(word: str, hidden: str) -> None:
    assert hide_argument(word) == hidden


def test_secrets_are_hidden_at_any_depth_and_numbers_stay() -> None:
    found = hide_secrets(
        {"a": [{"token": "t", "max_tokens": 5}], "headers": {"Authorization": "B"}}
    )
    assert found == {"a": [{"token": "***", "max_tokens": 5}], "headers": {"Authorization": "***"}}
