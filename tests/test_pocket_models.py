"""The shipped pocket pair: what its folders promise, and that both models run."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
reasoning_gym = pytest.importorskip("reasoning_gym")

ROOT = Path(__file__).resolve().parent.parent
TEACHER = ROOT / "teachers" / "pocket"
BASE = ROOT / "students" / "pocket"
TAGS = ("<think>", "</think>")


def tokenizer_of(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def model_of(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def header(folder: Path) -> dict[str, Any]:
    """The tensors that a folder's safetensors file declares."""
    with (folder / "model.safetensors").open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        declared: dict[str, Any] = json.loads(file.read(size))
    return {name: tensor for name, tensor in declared.items() if name != "__metadata__"}


@pytest.mark.parametrize(
    ("folder", "architecture", "low", "high"),
    [
        (TEACHER, "Qwen2ForCausalLM", 1_500_000, 4_000_000),
        (BASE, "LlamaForCausalLM", 1_000_000, 2_000_000),
    ],
)
def test_architecture_and_size(folder: Path, architecture: str, low: int, high: int) -> None:
    model = model_of(folder)
    assert type(model).__name__ == architecture
    assert low <= model.num_parameters() <= high


@pytest.mark.parametrize("folder", [TEACHER, BASE])
def test_weights_are_bf16_safetensors(folder: Path) -> None:
    assert {tensor["dtype"] for tensor in header(folder).values()} == {"BF16"}
    assert not [*folder.glob("*.bin"), *folder.glob("*.pt")]


def test_together_under_fifteen_megabytes() -> None:
    files = [*TEACHER.rglob("*"), *BASE.rglob("*")]
    assert sum(file.stat().st_size for file in files if file.is_file()) < 15_000_000


def test_tokenizers_differ() -> None:
    teacher, base = tokenizer_of(TEACHER), tokenizer_of(BASE)
    assert len(teacher) != len(base)
    assert set(teacher.get_vocab()) != set(base.get_vocab())


def test_teacher_tags_are_single_tokens_that_survive_decoding() -> None:
    tokenizer = tokenizer_of(TEACHER)
    for tag in TAGS:
        ids = tokenizer(tag, add_special_tokens=False).input_ids
        assert len(ids) == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == tag


@pytest.mark.parametrize("folder", [TEACHER, BASE])
def test_pad_is_not_eos(folder: Path) -> None:
    tokenizer = tokenizer_of(folder)
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_teacher_template_opens_thinking_and_cuts_earlier_thinking() -> None:
    rendered = tokenizer_of(TEACHER).apply_chat_template(
        [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "<think>\nsecret\n</think>\n\nanswer"},
            {"role": "user", "content": "two"},
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert rendered.endswith("<think>\n")
    assert "secret" not in rendered
    assert "answer" in rendered


def test_base_has_no_chat_template() -> None:
    assert tokenizer_of(BASE).chat_template is None
    assert not (BASE / "chat_template.jinja").exists()


@pytest.mark.parametrize("folder", [TEACHER, BASE])
def test_prompts_survive_a_round_trip(folder: Path) -> None:
    tokenizer = tokenizer_of(folder)
    for task in ("chain_sum", "letter_counting", "spell_backward", "number_filtering"):
        for entry in reasoning_gym.create_dataset(task, size=5, seed=0):
            ids = tokenizer(entry["question"], add_special_tokens=False).input_ids
            assert tokenizer.decode(ids) == entry["question"]


def test_teacher_reasons_and_is_mostly_right_on_easy_problems() -> None:
    tokenizer, model = tokenizer_of(TEACHER), model_of(TEACHER)
    tokenizer.padding_side = "left"
    problems = reasoning_gym.create_dataset(
        "letter_counting", size=12, seed=900, min_words=3, max_words=4
    )
    instruction = "Please reason step by step, and put your final answer within \\boxed{}."
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": f"{problem['question']}\n{instruction}"}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for problem in problems
    ]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    out = model.generate(**inputs, max_new_tokens=128, do_sample=False)
    texts = tokenizer.batch_decode(out[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    right = [
        f"</think>\n\nThe answer is \\boxed{{{problem['answer']}}}." in text
        for problem, text in zip(problems, texts, strict=True)
    ]
    assert sum(right) >= 6
