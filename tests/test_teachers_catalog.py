"""The catalog is data that can be read, and every engine it names exists."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from distill.protocols import BatchTeacher, Teacher
from distill.teachers import catalog
from distill.thinking import DEFAULT_TAGS


def test_every_entry_is_whole() -> None:
    entries = catalog.load()
    assert len(entries) > 10
    for name, entry in entries.items():
        assert entry.name == name
        assert entry.known
        assert entry.engine in catalog.engines
        assert entry.licence != "unknown"
        assert entry.allows_training in (True, False, "unknown")
        assert set(entry.sampling) <= {"temperature", "top_p", "top_k"}
        assert entry.prompt_opens in (True, False)
        if entry.engine != "openai" and name != "pocket-teacher":
            assert entry.params
            assert entry.context


def test_a_model_is_found_by_name_and_by_hub_name() -> None:
    entry = catalog.find("DeepSeek-R1-Distill-Qwen-7B")
    assert catalog.find("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B") is entry
    assert (entry.params, entry.prompt_opens) == (7.6, True)
    assert (entry.sampling["temperature"], entry.sampling["top_p"]) == (0.6, 0.95)
    assert not catalog.find("deepseek-reasoner").capabilities["seed"]


def test_the_pocket_teacher_lies_in_the_package() -> None:
    folder = Path(catalog.find("pocket-teacher").model)
    assert folder.is_absolute()
    assert folder.parent == Path(catalog.__file__).parent


def test_an_unknown_model_gets_the_usual() -> None:
    entry = catalog.find("someone/new-model")
    assert (entry.model, entry.engine, entry.known) == ("someone/new-model", "transformers", False)
    assert entry.tags == DEFAULT_TAGS
    assert entry.allows_training == "unknown"


@pytest.mark.parametrize("engine", list(catalog.engines))
def test_every_engine_can_be_built_from_a_recipe(engine: str) -> None:
    module, _, name = catalog.engines[engine].partition(":")
    found = getattr(importlib.import_module(module), name)
    assert callable(found.from_spec)
    method = "complete_batch" if engine == "transformers" else "complete"
    assert callable(getattr(found, method))
    assert Teacher is not BatchTeacher
