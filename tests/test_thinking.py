"""Tags and text: every way in which tags arrive broken."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.thinking import STYLES, ThinkTags, canonical, convert, join, parse, sanitise, split


@pytest.mark.parametrize(
    ("text", "opens", "reasoning", "answer", "finished"),
    [
        ("<think>\na\n</think>\n\nb", False, "a", "b", True),
        ("a\n</think>\n\nb", True, "a", "b", True),
        ("a\n</think>\n\nb", False, "a", "b", True),
        ("<think>\na\n</think>\n\nb", True, "a", "b", True),
        ("just an answer", False, None, "just an answer", True),
        ("never closed", True, "never closed", "", False),
        ("<think>never closed", False, "never closed", "", False),
        ("<think>a</think>b<think>c</think>d", False, "a</think>b<think>c", "d", True),
        ("</think>", True, "", "", True),
        ("", False, None, "", True),
        ("", True, "", "", False),
    ],
)
def test_split(text: str, opens: bool, reasoning: str, answer: str, finished: bool) -> None:
    parts = split(text, prompt_opens=opens)
    assert (parts.reasoning, parts.answer, parts.finished) == (reasoning, answer, finished)


def test_two_blocks_are_counted() -> None:
    parts = split("<think>a</think>b<think>c</think>d")
    assert (parts.opened, parts.closed) == (2, 2)


def test_canonical_puts_the_templates_tag_back() -> None:
    assert canonical("a\n</think>\nb", prompt_opens=True) == "<think>\na\n</think>\n\nb"
    assert canonical("a and on", prompt_opens=True) == "<think>\na and on"
    assert canonical("no thinking") == "no thinking"


words = st.text(alphabet=st.characters(blacklist_characters="<>", blacklist_categories=["Cs"]))


@given(words, words)
def test_what_was_joined_comes_apart(reasoning: str, answer: str) -> None:
    parts = split(join(reasoning, answer))
    assert parts.reasoning == reasoning.strip()
    assert parts.answer == answer.strip()
    assert canonical(join(reasoning, answer)) == join(reasoning, answer)


pieces = st.lists(st.sampled_from(["<think>", "</think>", "a", "\n", " "])).map("".join)


@given(pieces, st.booleans())
def test_canonical_is_stable(text: str, opens: bool) -> None:
    once = canonical(text, prompt_opens=opens)
    assert canonical(once) == once


@given(st.text())
def test_sanitised_text_can_be_written(text: str) -> None:
    clean, changed = sanitise(text)
    clean.encode("utf-8")
    assert changed == (clean != text)


def test_lone_surrogates_are_replaced_and_flagged() -> None:
    assert sanitise("a\ud800b") == ("a\ufffdb", True)


STYLED = {
    "think": "<think>a</think>b",
    "begin_of_thought": "<|begin_of_thought|>\n\na\n\n<|end_of_thought|>\n\n"
    "<|begin_of_solution|>\n\nb\n\n<|end_of_solution|>",
    "thinking": "<thinking>a</thinking>b",
    "reasoning": "<reasoning>a</reasoning>\nb",
    "thought": "<thought>a</thought>b",
    "mistral": "[THINK]a[/THINK]b",
    "kimi": "◁think▷a◁/think▷b",
    "seed": "<seed:think>a</seed:think>b",
    "minimax": "a</mm:think>b",
    "cohere": "<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>b<|END_RESPONSE|>",
    "gemma": "<|channel>thought\na<channel|>b<turn|>",
    "harmony": "<|channel|>analysis<|message|>a<|end|>"
    "<|start|>assistant<|channel|>final<|message|>b<|return|>",
    "granite": "Here is my thought process: a\nHere is my response: b",
}


def test_every_style_is_converted() -> None:
    assert STYLED.keys() == STYLES.keys()
    for style, text in STYLED.items():
        assert convert(text) == (join("a", "b"), style)
        assert convert(join("a", "b")) == (join("a", "b"), "think")


@pytest.mark.parametrize("style", STYLES)
def test_what_is_not_closed_is_not_complete(style: str) -> None:
    open_thinking = f"{STYLES[style].tags.open}a"
    assert parse(open_thinking).complete is False
    assert convert(open_thinking) == ("<think>\na", style)
    answer = STYLES[style].answer
    if answer is not None:
        cut = f"{STYLES[style].tags.open}a{STYLES[style].tags.close}{answer.open}b"
        assert (parse(cut).complete, convert(cut)[0]) == (False, join("a", "b"))


def test_words_are_no_tags_inside_a_text() -> None:
    text = "He said: Here is my response: 4"
    assert convert(text) == (text, "none")
    assert parse("<|begin_of_solution|>4").complete is False
    assert convert("<r>a</r>b", ThinkTags("<r>", "</r>")) == (join("a", "b"), "as given")


marks = st.sampled_from(
    [s for style in STYLES.values() for s in (style.tags.open, style.tags.close)]
)


@given(st.lists(marks | st.sampled_from(["a", " ", "\n", "<|begin_of_solution|>"])).map("".join))
def test_any_mixture_of_tags_is_converted_once(text: str) -> None:
    once, _ = convert(text)
    assert convert(once)[0].count("<think>") >= once.count("<think>") > 0 or "<think>" not in once
    parts = parse(text).parts
    assert (parts.reasoning is None) == (parse(text).style == "none")


def test_real_traces_of_another_style(shared: Path) -> None:
    text = (shared / "traces" / "skythought_sky_t1_long.jsonl").read_text(encoding="utf-8")
    found = [parse(json.loads(line)["trace"]) for line in text.splitlines()]
    counts = Counter((f.style, f.parts.finished, f.complete) for f in found)
    assert counts == {
        ("begin_of_thought", True, True): 198,
        ("begin_of_thought", False, False): 108,
        ("begin_of_thought", True, False): 20,
        ("none", True, True): 50,
    }
    assert not any("<|" in f.parts.answer for f in found if f.complete)
