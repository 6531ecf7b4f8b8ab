"""Which kernels are used, and what is refused."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from distill.errors import MissingExtra, UsageError
from distill.students.kernels import choose


def test_a_cpu_uses_torch() -> None:
    assert choose("auto", gpu=False) == choose("torch", gpu=False) == "torch"
    with pytest.raises(UsageError, match="liger needs a GPU"):
        choose("liger", gpu=False)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def find(name: str, *args: Any) -> Any:
        return None if name == "liger_kernel" else real(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert choose("auto", gpu=True) == "torch"
    with pytest.raises(MissingExtra, match="liger-kernel") as raised:
        choose("liger", gpu=True)
    assert raised.value.hint == "pip install 'distill[liger]'"


def test_a_model_that_liger_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr("distill.students.kernels._known", lambda: {"qwen2"})
    assert choose("auto", True, AutoConfig.for_model("qwen2")) == "liger"
    assert choose("auto", True, AutoConfig.for_model("opt")) == "torch"
    with pytest.raises(UsageError, match="models of type opt"):
        choose("liger", True, AutoConfig.for_model("opt"))
