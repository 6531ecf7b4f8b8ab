"""The renderer: what is trained is token for token what a served student is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import DataError
from distill.protocols import Rendered
from distill.students import catalog, preflight, template_check
from distill.students.loading import Prepared
from distill.students.render import IGNORED, RenderSpec, answer_ids, completion_text, render
from distill.thinking import join, split
from tests import families

EVERY = [
    *(
        pytest.param(name, tags, False, id=f"{name}-{tags}")
        for name in families.SYNTHETIC
        for tags in ("text", "tokens")
    ),
    *(
        pytest.param(name, tags, True, id=f"real-{name}-{tags}", marks=pytest.mark.slow)
        for name, tags in (
            ("qwen2", "text"),
            ("qwen2", "tokens"),
            ("qwen3", "text"),
            ("llama3", "text"),
            ("smollm2", "tokens"),
        )
    ),
]
Chat = list[dict[str, str]]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


SUM = join("1 plus 2 is 3.\n\nWait, yes.", "\\boxed{3}")
CHATS: dict[str, Chat] = {
    "one turn": [turn("user", "1+2=?"), turn("assistant", SUM)],
    "system": [turn("system", "Be brief."), turn("user", "1+2=?"), turn("assistant", SUM)],
    "three turns": [
        turn("user", "1+2=?"),
        turn("assistant", SUM),
        turn("user", "Thanks. And 2+2?"),
        turn("assistant", "4"),
        turn("user", "3+3?"),
        turn("assistant", join("Two threes.", "6")),
    ],
    "no thinking": [turn("user", "Hello!"), turn("assistant", "Hello.\n")],
    "no opening tag": [turn("user", "1+1"), turn("assistant", "hm\n</think>\n\n2")],
    "cramped": [turn("user", "1+1"), turn("assistant", "<think>hm</think>2")],
    "white space": [turn("user", "  a\n\n\tb "), turn("assistant", join("\n\n x\n", "  y  "))],
    "unicode": [
        turn("user", "Wie groß ist 𝛑? ∑∫ 数学 \u200d👩‍👩‍👧 e\u0301"),
        turn("assistant", join("π ≈ 3,14 — 约等于 🤔", "≈ 3.14 ✓")),
    ],
    "tags in the question": [
        turn("user", "What do <think> and </think> mean?"),
        turn("assistant", join("They ask about tags.", "They mark thinking.")),
    ],
}


@pytest.mark.parametrize(("name", "tags", "true"), EVERY)
def test_trained_is_what_the_student_is_asked_for_and_should_say(
    name: str, tags: str, true: bool
) -> None:
    ready = families.prepared(name, tags, true=true)
    student = families.reloaded(name, tags, true=true)
    for title, chat in CHATS.items():
        got = render(chat, ready.tokenizer, ready.spec)
        prompt, trained = parts(got)
        assert prompt == served(student, chat[:-1]), title
        assert trained[-1] == student.eos_token_id, title
        assert trained.count(student.eos_token_id) == 1, title
        assert student.pad_token_id not in trained, title
        said = completion_text(chat[-1]["content"], ready.spec)
        assert trained[:-1] == answer_ids(said, student), title
        # Without thinking too, what the server would return is the answer, word for word.
        text = student.decode(trained, skip_special_tokens=True)
        wanted = split(chat[-1]["content"])
        answered = split(text, prompt_opens=bool(ready.spec.prefill))
        folds = true and name in ("qwen2", "qwen3")  # their tokenizers normalise to NFC
        if not folds:
            assert answered.answer == wanted.answer, title
            assert (answered.reasoning or None) == (wanted.reasoning or None), title
        assert preflight.check(got, chat, ready.tokenizer, ready.spec, ready.vocab) == [], title
    assert template_check.check(ready.tokenizer, ready.spec) == []
    assert student.pad_token_id != student.eos_token_id


def parts(rendered: Rendered) -> tuple[list[int], list[int]]:
    """The prompt's ids and the trained ones."""
    start = rendered.labels.count(IGNORED)
    assert rendered.labels == [IGNORED] * start + rendered.input_ids[start:]
    return rendered.input_ids[:start], rendered.input_ids[start:]


def served(tokenizer: Any, messages: Any) -> list[int]:
    """What a server makes of a chat, with nothing but the student's folder."""
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
    return list(ids)


@pytest.mark.parametrize(("name", "tags", "true"), EVERY)
def test_bos_stands_once_where_the_tokenizer_has_one(name: str, tags: str, true: bool) -> None:
    student = families.reloaded(name, tags, true=true)
    bos = student.bos_token_id
    ids = served(student, CHATS["three turns"][:-1])
    if bos in student.encode("x"):
        assert ids[0] == bos
        assert ids.count(bos) == 1
    elif bos is not None:
        assert ids[:2] != [bos, bos]


@pytest.mark.parametrize(("name", "tags", "true"), EVERY)
def test_tags_are_one_token_each_by_choice(name: str, tags: str, true: bool) -> None:
    ready = families.prepared(name, tags, true=true)
    prompt, trained = parts(render(CHATS["one turn"], ready.tokenizer, ready.spec))
    ids = [ready.tokenizer.convert_tokens_to_ids(t) for t in ("<think>", "</think>")]
    whole = [i for i in ids if i is not None and i in ready.tokenizer.get_vocab().values()]
    if tags == "tokens":
        assert (prompt + trained).count(ids[0]) == 1
        assert trained.count(ids[1]) == 1
        assert set(ids) <= set(ready.new_tokens)
        assert ready.vocab > max(ids)
    elif not whole:
        assert ready.spelled == {}
    # Part of the text either way: servers leave special tokens out.
    assert "</think>" in ready.tokenizer.decode(trained, skip_special_tokens=True)


@pytest.mark.parametrize("name", families.SYNTHETIC)
def test_thinking_of_earlier_turns_is_kept_however_it_comes_back(name: str) -> None:
    ready, student = families.prepared(name), families.reloaded(name)
    chat = CHATS["three turns"]
    wanted, _ = parts(render(chat, ready.tokenizer, ready.spec))
    assert "1 plus 2 is 3." in student.decode(wanted)
    thought = split(SUM)
    fields = [
        # What a server with a reasoning parser returned, and one without.
        {"content": thought.answer, "reasoning": thought.reasoning},
        {"content": f"\n\n{thought.answer}", "reasoning_content": f"{thought.reasoning}\n"},
    ]
    if ready.spec.prefill:
        fields.append({"content": SUM.removeprefix("<think>\n")})
    for back in fields:
        history = [chat[0], {"role": "assistant", **back}, *chat[2:-1]]
        assert served(student, history) == wanted, back


@pytest.mark.parametrize(("name", "tags", "true"), EVERY)
def test_a_control_token_typed_as_text_is_refused(name: str, tags: str, true: bool) -> None:
    ready = families.prepared(name, tags, true=true)
    assert ready.tokenizer.eos_token in ready.spec.controls
    assert ready.tokenizer.pad_token in ready.spec.controls
    for control in ready.spec.controls:
        for at in range(3):
            chat = [dict(m) for m in CHATS["three turns"][:3]]
            chat.append(turn("assistant", SUM))
            chat[at + 1]["content"] += f" {control} "
            with pytest.raises(DataError) as caught:
                render(chat, ready.tokenizer, ready.spec)
            assert f"the text of the {chat[at + 1]['role']}" in str(caught.value)


def test_other_special_tokens_in_an_answer_stay_text() -> None:
    ready, student = families.prepared("smollm2"), families.reloaded("smollm2")
    assert "<filename>" not in ready.spec.controls
    chat = [
        turn("user", "How is cat used?"),
        turn("assistant", join("cat <filename>", "cat <filename>")),
    ]
    _, trained = parts(render(chat, ready.tokenizer, ready.spec))
    assert student.decode(trained, skip_special_tokens=True).count("<filename>") == 2


def test_sentencepiece_puts_no_blank_before_an_answer() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {c: i for i, c in enumerate("▁abcdefghijklmnopqrstuvwxyz<>/\n.")}
    core = Tokenizer(models.BPE(vocab=letters, merges=[]))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    assert tokenizer.decode(tokenizer.encode("hm.")) == " hm."
    for text in ("hm.", " hm.", "\n</think>\n\nyes"):
        assert tokenizer.decode(answer_ids(text, tokenizer)) == text


words = st.text(st.characters(codec="utf-8", exclude_characters="<>"), max_size=40)
answers = words.filter(str.strip)


@pytest.mark.parametrize("name", ["qwen2", "llama3", "gemma2", "other"])
@settings(max_examples=20, deadline=None)
@given(question=words, reasoning=words, answer=answers)
def test_any_text_is_asked_and_said_as_it_is(
    name: str, question: str, reasoning: str, answer: str
) -> None:
    ready, student = families.prepared(name), families.reloaded(name)
    text = join(reasoning, answer)
    got = render([turn("user", question), turn("assistant", text)], ready.tokenizer, ready.spec)
    prompt, trained = parts(got)
    assert prompt == served(student, [turn("user", question)])
    assert ready.spec.lead + text == ready.spec.prefill + student.decode(trained[:-1])


def test_answer_is_what_the_template_itself_would_write() -> None:
    for name in families.SYNTHETIC:
        ready, student = families.prepared(name), families.reloaded(name)
        for title in ("one turn", "three turns", "system", "no opening tag", "cramped"):
            got = render(CHATS[title], ready.tokenizer, ready.spec).input_ids
            whole = student.apply_chat_template(CHATS[title], tokenize=False)
            if title == "cramped" and ready.spec.prefill:
                continue  # the prompt's tag brings its line break
            if title == "no opening tag" and not ready.spec.prefill:
                continue  # nobody opened it
            assert whole.startswith(student.decode(got)), (name, title)


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
    text_of = (catalog.TEMPLATES / "chatml-r1.jinja").read_text()
    assert completion_text(text, RenderSpec.of(text_of)) == said


def refused(ready: Prepared, *messages: dict[str, str]) -> str:
    with pytest.raises(DataError) as caught:
        render(list(messages), ready.tokenizer, ready.spec)
    return caught.value.message


def test_what_cannot_be_trained_on_is_refused_with_the_reason(tmp_path: Path) -> None:
    ready, asked = families.prepared("qwen2"), turn("user", "1+1")
    assert "must end with an assistant's message" in refused(ready, asked)
    for empty in ("", " \n", "<think>\n\n</think>\n\n"):
        assert "there is no answer" in refused(ready, asked, turn("assistant", empty))
    thinks = turn("assistant", "<think>\nlet me")
    assert "never closed" in refused(ready, asked, thinks)
    mute = turn("assistant", "<think>\nlet me\n</think>\n\n")
    assert "no answer after the thinking" in refused(ready, asked, mute)
    assert "role 'tool'" in refused(ready, asked, turn("tool", "2"), turn("assistant", "2"))
    own = tmp_path / "own.jinja"
    own.write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    text = catalog.chat_template(str(families.base("qwen2")), str(own))
    strict = RenderSpec(text)
    with pytest.raises(DataError, match="no system"):
        render(CHATS["system"], ready.tokenizer, strict)
