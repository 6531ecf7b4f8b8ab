"""A trained student's folder in transformers and in real vLLM: it thinks, answers and stops.

The students learn 16 sums in 250 quick updates. One writes its tags as text over a tokenizer that
begins every text with BOS (Llama 3's), the other has them as tokens and is served with a reasoning
parser. Needs, for vLLM, what tests/test_vllm_real.py needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from distill.students.loading import Prepared, prepare
from distill.students.render import IGNORED, render
from distill.students.sft import SFT
from distill.teachers.served import ServedVLLM
from distill.teachers.vllm import VLLMTeacher
from tests import families, tiny_students
from tests.test_vllm_real import _cpu, python  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
POSITIONS = 192
SUMS = [(a, b) for a in range(4) for b in range(4)]
ASKED = [SUMS[i] for i in (0, 6, 11, 13)]


@dataclass(frozen=True)
class Student:
    folder: Path
    ready: Prepared

    def example(self, a: int, b: int) -> tuple[list[int], list[int]]:
        """The ids of a sum's prompt and of its answer, as they were trained."""
        messages = tiny_students.example(a, b, 1)["messages"]
        rendered = render(messages, self.ready.tokenizer, self.ready.spec)
        start = rendered.labels.count(IGNORED)
        return rendered.input_ids[:start], rendered.input_ids[start:]


def trained(folder: Path, name: str, think_tokens: str) -> Student:
    kind, specials, names = families.SYNTHETIC[name]
    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
    base = tiny_students.base(folder / "base", kind, specials, dict(names), **sizes)
    rows = [tiny_students.example(a, b, 1) for a, b in SUMS]
    data = folder / "dataset.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tiny_students.config(
        base,
        student__think_tokens=think_tokens,
        student__positions=POSITIONS,
        max_length=POSITIONS,
        epochs=125,
        learning_rate=3e-3,
        micro_batch_tokens=1024,
        save_every=1000,
    )
    student = SFT().train(data, folder / "out", config)
    return Student(student, prepare(config["student"]))


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Student]:
    where = tmp_path_factory.mktemp("students")
    return {
        "text": trained(where / "text", "llama3", "text"),
        "tokens": trained(where / "tokens", "qwen2", "tokens"),
    }


@pytest.fixture(scope="module")
def urls(
    python: str,  # noqa: F811
    students: dict[str, Student],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, str]]:
    """A server for each student, started with the options that say nothing about the student."""
    plain = {"dtype": "float32", "enforce_eager": True, "python": python}
    more = {"text": {}, "tokens": {"reasoning_parser": "deepseek_r1"}}
    engines: dict[str, ServedVLLM] = {}
    for name, student in students.items():
        logs = {"logs": str(tmp_path_factory.mktemp(f"logs-{name}"))}
        options = {**plain, **logs, **more[name]}
        spec = {"model": str(student.folder), "replicas": 1, "options": options}
        built = VLLMTeacher.from_spec(spec)
        assert isinstance(built, ServedVLLM)
        engines[name] = built

    async def started() -> None:
        await asyncio.gather(*(engine.open() for engine in engines.values()))

    with contextlib.ExitStack() as stack:
        for engine in engines.values():
            stack.enter_context(engine.kept())
        asyncio.run(started())
        yield {name: f"{engine._replicas.urls[0]}/v1" for name, engine in engines.items()}


def chat(url: str, messages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    model = httpx.get(f"{url}/models").json()["data"][0]["id"]
    body = {"model": model, "messages": messages, "return_token_ids": True, **more}
    answer = httpx.post(f"{url}/chat/completions", json=body, timeout=60).json()
    assert "choices" in answer, answer
    return dict(answer)


def question(a: int, b: int) -> dict[str, str]:
    return {"role": "user", "content": f"{a}+{b}=?"}


@pytest.mark.parametrize("name", ["text", "tokens"])
def test_transformers_says_what_was_trained(students: dict[str, Student], name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, pipeline

    student = students[name]
    model = AutoModelForCausalLM.from_pretrained(student.folder)
    assert model.config.vocab_size == student.ready.vocab
    assert model.get_input_embeddings().weight.shape[0] == student.ready.vocab
    for a, b in ASKED:
        prompt, answer = student.example(a, b)
        said = model.generate(torch.tensor([prompt]), do_sample=False)[0, len(prompt) :]
        assert said.tolist() == answer
    # Nothing is said about lengths, sampling or ends: the folder says it.
    torch.manual_seed(0)
    talks = pipeline("text-generation", model=str(student.folder))
    (told,) = talks([question(2, 3)])
    assert told["generated_text"][-1]["content"] == "2 plus 3.\n</think>\n\n\\boxed{5}"


@pytest.mark.parametrize("name", ["text", "tokens"])
def test_vllm_answers_with_thinking_and_stops(
    students: dict[str, Student], urls: dict[str, str], name: str
) -> None:
    student, url = students[name], urls[name]
    for a, b in ASKED:
        prompt, answer = student.example(a, b)
        told = chat(url, [question(a, b)], temperature=0)
        (choice,) = told["choices"]
        assert told["prompt_token_ids"] == prompt
        assert choice["token_ids"] == answer
        assert choice["finish_reason"] == "stop"
        text, message = f"{a} plus {b}.\n", choice["message"]
        if name == "tokens":
            assert message["reasoning"] == text
            assert message["content"].strip() == f"\\boxed{{{a + b}}}"
        else:
            assert message["content"] == f"{text}</think>\n\n\\boxed{{{a + b}}}"


@pytest.mark.parametrize("name", ["text", "tokens"])
def test_vllm_samples_and_counts_as_the_folder_says(urls: dict[str, str], name: str) -> None:
    (card,) = httpx.get(f"{urls[name]}/models").json()["data"]
    assert card["max_model_len"] == POSITIONS
    seen = {
        chat(urls[name], [question(3, 3)], seed=i)["choices"][0]["finish_reason"] for i in (1, 2)
    }
    assert seen == {"stop"}


@pytest.mark.parametrize("name", ["text", "tokens"])
def test_the_next_turn_goes_on_from_the_same_tokens(
    students: dict[str, Student], urls: dict[str, str], name: str
) -> None:
    prompt, answer = students[name].example(1, 2)
    message = chat(urls[name], [question(1, 2)], temperature=0)["choices"][0]["message"]
    back = {key: message[key] for key in ("role", "content", "reasoning") if message.get(key)}
    told = chat(urls[name], [question(1, 2), back, question(3, 3)], temperature=0, max_tokens=1)
    assert told["prompt_token_ids"][: len(prompt) + len(answer)] == prompt + answer


def test_positions_and_rope_of_the_r1_recipes_are_what_vllm_reads(
    python: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    """The 1.5B and 7B recipes stretch Qwen2.5-Math; its tokenizer says 4,096 where it is older."""
    from transformers import AutoConfig

    bases = {
        "math": ("qwen2", 4096, {"rope_theta": 10000.0, "rope_type": "default"}, 32768, 300000.0),
        "llama": (
            "llama3",
            131072,
            {
                "rope_theta": 500000.0,
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            None,
            None,
        ),
    }
    wanted = {}
    for name, (family, positions, rope, longer, theta) in bases.items():
        folder = tmp_path / name
        ready = families.prepared(family)
        config = AutoConfig.for_model(
            ready.config.model_type,
            vocab_size=ready.vocab,
            max_position_embeddings=positions,
            rope_parameters=rope,
            architectures=[{"qwen2": "Qwen2ForCausalLM"}.get(family, "LlamaForCausalLM")],
        )
        config.save_pretrained(folder)
        ready.tokenizer.model_max_length = positions
        ready.tokenizer.save_pretrained(folder)
        done = prepare({"base": str(folder), "positions": longer, "rope_theta": theta})
        done.config.save_pretrained(folder / "student")
        done.tokenizer.save_pretrained(folder / "student")
        wanted[str(folder / "student")] = [longer or positions, theta or rope["rope_theta"]]
    families.prepared.cache_clear()
    code = (
        "import json, sys\nfrom vllm.config import ModelConfig\n"
        "found = {f: ModelConfig(model=f) for f in sys.argv[1:]}\n"
        "print(json.dumps({f: [c.max_model_len, c.hf_config.rope_parameters['rope_theta']]"
        " for f, c in found.items()}))"
    )
    command = [python, "-c", code, *wanted]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert json.loads(ran.stdout.splitlines()[-1]) == wanted
