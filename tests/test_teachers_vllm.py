"""The vLLM engine: what can be said without vLLM, and a real run where it is installed."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

import pytest

from distill.errors import MissingExtra, RecipeError, TeacherError
from distill.protocols import Completion, Request, SamplingParams, Teacher
from distill.teachers.vllm import VLLMTeacher, _classified
from tests import char_models

INSTALLED = importlib.util.find_spec("vllm") is not None
CHAT = [{"role": "user", "content": "1+2"}]


@pytest.mark.skipif(INSTALLED, reason="vllm is installed here")
def test_without_vllm_it_says_how_to_install_it() -> None:
    with pytest.raises(MissingExtra, match="'vllm', which is not installed") as error:
        VLLMTeacher.from_spec({"engine": "vllm", "model": "QwQ-32B"})
    assert "distill[vllm]" in error.value.hint


def test_exceptions_of_vllm_are_told_apart() -> None:
    for name, retry, fatal in [
        ("EngineDeadError", False, True),
        ("EngineGenerateError", True, False),
        ("VLLMValidationError", False, False),
    ]:
        found = _classified(type(name, (Exception,), {})("why"), "p/0/0")
        assert (found.retry, found.fatal) == (retry, fatal)
        assert found.message == f"p/0/0: {name}: why"


def test_identity_holds_what_changes_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = char_models.save(tmp_path / "m")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    spec = {"model": str(folder), "options": {"tensor_parallel_size": 2}}
    engine = VLLMTeacher.from_spec(spec)
    assert engine.identity.startswith("vllm:m@")
    assert VLLMTeacher.from_spec({**spec, "options": {}}).identity == engine.identity
    assert VLLMTeacher.from_spec({**spec, "quantization": "fp8"}).identity != engine.identity
    float32 = {**spec, "options": {"dtype": "float32"}}
    assert "+dtype:float32" in VLLMTeacher.from_spec(float32).identity
    with pytest.raises(RecipeError, match="revision is no option"):
        VLLMTeacher.from_spec({**spec, "options": {"revision": "x"}})


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not INSTALLED, reason="vllm is not installed")
def test_a_real_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chat, text, prefix, seeds, stop strings and the context on a model of a few weights."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    folder = char_models.save(
        tmp_path / "m", hidden_size=128, head_dim=32, max_position_embeddings=128
    )

    def ask(prompt: object = CHAT, *, seed: int = 1, **params: object) -> Request:
        prefix = params.pop("prefix_ids", None)
        wanted = SamplingParams(**{"max_tokens": 20, **params})  # type: ignore[arg-type]
        return Request(key="p/0/0", prompt=prompt, params=wanted, seed=seed, prefix_ids=prefix)  # type: ignore[arg-type]

    async def main() -> None:
        engine = VLLMTeacher(str(folder), dtype="float32", enforce_eager=True)
        assert isinstance(engine, Teacher)
        told: list[int] = []
        await engine.open()
        try:
            first, again, other = await asyncio.gather(
                engine.complete(ask(), told.append),
                engine.complete(ask()),
                engine.complete(ask(seed=2)),
            )
            assert first.text == again.text != other.text
            assert first.token_ids is not None
            assert sum(told) == first.usage.completion_tokens == len(first.token_ids)
            assert first.prompt == "<user>1+2<bot>"
            whole = await engine.complete(ask(temperature=0, max_tokens=12))
            assert whole.token_ids is not None
            rest = await engine.complete(
                ask(temperature=0, max_tokens=8, prefix_ids=whole.token_ids[:4])
            )
            assert rest.token_ids == whole.token_ids
            text = await engine.complete(ask("<user>1+2<bot>", temperature=0, max_tokens=12))
            assert text.text == whole.text
            letter = whole.text[3]
            cut = await engine.complete(ask(temperature=0, max_tokens=12, stop=(letter,)))
            assert letter not in cut.text
            assert cut.finish_reason == "stop"
            with pytest.raises(TeacherError, match="the context of m 128"):
                await engine.complete(ask("1" * 200))
            full = await engine.complete(ask("1" * 120, max_tokens=50))
            assert isinstance(full, Completion)
            assert full.usage.completion_tokens <= 8
        finally:
            engine.close()
        with pytest.raises(RecipeError, match="'max_model_ln'; did you mean 'max_model_len'"):
            await VLLMTeacher(str(folder), max_model_ln=5).open()

    asyncio.run(main())
