"""The renderer: what is trained is token for token what a served student is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import DataError
from distill.students import catalog
from distill.students.render import IGNORED, RenderSpec, completion_text, render
from distill.thinking import join
from tests import tiny_students

TOKENIZERS = {
    "chatml-r1": tiny_students.tokenizer(eos_token="<|im_end|>"),
    "llama3-r1": tiny_students.tokenizer(
        tiny_students.LLAMA3, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    ),
    "plain": tiny_students.tokenizer(),
    "plain-r1": tiny_students.tokenizer(),
}
words = st.text(st.characters(codec="utf-8", exclude_characters="<>"), max_size=40)
answers = words.filter(str.strip)


def spec_of(name: str) -> RenderSpec:
    return RenderSpec.of((catalog.TEMPLATES / f"{name}.jinja").read_text())


def served_prompt(tokenizer: Any, messages: list[dict[str, str]], spec: RenderSpec) -> list[int]:
    """What a server makes of a chat."""
    ids = tokenizer.apply_chat_template(
        messages,
        chat_template=spec.template,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )["input_ids"]
    return list(ids)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=30, deadline=None)
@given(question=words, reasoning=words, answer=answers)
def test_prompt_is_the_served_one_and_the_rest_is_the_answer(
    name: str, question: str, reasoning: str, answer: str
) -> None:
    tokenizer, spec = TOKENIZERS[name], spec_of(name)
    text = join(reasoning, answer)
    user = [{"role": "user", "content": question}]
    got = render([*user, {"role": "assistant", "content": text}], tokenizer, spec)
    start = got.labels.count(IGNORED)
    assert got.input_ids[:start] == served_prompt(tokenizer, user, spec)
    assert got.labels[start:] == got.input_ids[start:]
    assert got.input_ids[-1] == tokenizer.eos_token_id
    said = tokenizer.decode(got.input_ids[start:-1])
    assert spec.lead + text == spec.prefill + said


def test_answer_is_what_the_template_itself_would_write() -> None:
    for name in TOKENIZERS:
        tokenizer, spec = TOKENIZERS[name], spec_of(name)
        messages = tiny_students.example(1, 2)["messages"]
        ids = render(messages, tokenizer, spec).input_ids
        whole = tokenizer.apply_chat_template(messages, chat_template=spec.template, tokenize=False)
        assert whole.startswith(tokenizer.decode(ids[:-1])), name


def test_thinking_of_earlier_turns_is_kept() -> None:
    tokenizer, spec = TOKENIZERS["chatml-r1"], spec_of("chatml-r1")
    first = tiny_students.example(1, 2)["messages"]
    got = render([*first, *tiny_students.example(3, 4)["messages"]], tokenizer, spec)
    prompt = tokenizer.decode(got.input_ids[: got.labels.count(IGNORED)])
    assert "1 plus 2." in prompt
    assert "3 plus 4." not in prompt


def test_no_bos_twice() -> None:
    tokenizer = TOKENIZERS["llama3-r1"]
    got = render(tiny_students.example(1, 2)["messages"], tokenizer, spec_of("llama3-r1"))
    assert got.input_ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>\nhm\n</think>\n\n4", "hm\n</think>\n\n4"),
        ("<think>hm</think>4", "hm</think>4"),
        ("hm\n</think>\n\n4", "hm\n</think>\n\n4"),
        ("4", "\n</think>\n\n4"),
    ],
)
def test_the_opening_tag_belongs_to_a_prompt_that_opens(text: str, said: str) -> None:
    assert completion_text(text, spec_of("chatml-r1")) == said


def test_messages_without_an_answer_are_refused() -> None:
    with pytest.raises(DataError, match="must end with an assistant's message"):
        render([{"role": "user", "content": "1+1"}], TOKENIZERS["plain"], spec_of("plain"))


def test_a_bos_that_opens_every_turn_is_not_doubled(tmp_path: Path) -> None:
    from distill.students.loading import prepare
    from distill.students.preflight import check

    # SmolLM2's: the BOS is ChatML's <|im_start|>.
    folder = tiny_students.base(tmp_path / "b", tokens={"bos_token": "<|im_start|>"})
    prepared = prepare(tiny_students.config(folder)["student"])
    example = tiny_students.example(1, 2)["messages"]
    rendered = render(example, prepared.tokenizer, prepared.spec)
    assert check(rendered, example, prepared.tokenizer, prepared.spec, prepared.vocab) == []
