"""Tags and text: every way in which tags arrive broken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.thinking import canonical, join, sanitise, split


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
