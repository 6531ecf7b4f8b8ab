"""Multiple choice: letters in every dress, options by their text, golds in every form."""

from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import UsageError
from distill.grade.choice import Choice, Options, gold_letters, letters_of, spoken
from distill.records import OUTCOMES, Grade, Problem, Trace

FOUR = ["3/4", "\\frac{1}{2}", "Paris", "none of the above"]


def judged(
    text: str, gold: str | None = "B", finish: str = "stop", choices: Any = None, kind: Any = "auto"
) -> Grade:
    metadata = {} if choices is None else {"choices": choices}
    problem = Problem(messages=({"role": "user", "content": "?"},), gold=gold, metadata=metadata)
    trace = Trace(problem_id=problem.id, index=0, text=text, finish_reason=finish)
    return Choice(gold=kind)(problem, trace)


@pytest.mark.parametrize(
    "answer",
    [
        "B", "(B)", "B.", "B)", "[B]", "{B}", "$B$", "**B**", "`B`", "'B'", "b", "(b)", "b)",
        r"\text{B}", r"\textbf{(B)}", r"\mathrm{B}", r"(\text{B})", r"\text{(B) } 3",
        r"\mathbf{B.}",
        "B) 3/4", "B. Paris", "B: Paris", "(B) A dog", "B - yes", "B.Paris", "B)3/4",
        "option B", "Option (B)", "choice B", "the correct answer is B", "Answer: B",
        "B is correct", "B because A is wrong", "B, because it is", r"\textbf{B} \quad 12",
    ],
)  # fmt: skip
def test_a_letter_in_every_dress(answer: str) -> None:
    assert letters_of(answer) == "B"
    assert judged(f"<think>\nIt may be A.\n</think>\n\\boxed{{{answer}}}").outcome == "correct"


@pytest.mark.parametrize(
    "answer",
    ["A dog", "I think so", "a dog", "A cat and B", "Because", "Bob", "B's", "A'", "42", "B.C. 400",
     "", "I am", "An apple", "x+1", "A big one", r"\frac{1}{2}", "Eve", "B2", "I see why",
     "B = 5", "x: 5", "n. 4"],
)  # fmt: skip
def test_articles_and_words_are_no_choice(answer: str) -> None:
    assert letters_of(answer) == ""
    assert judged(f"\\boxed{{{answer}}}").outcome == "unparsed"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("So option B is right.", "B"),
        ("I choose C", "C"),
        ("The correct option is (D).", "D"),
        ("Option A fits, but the best choice is **C**", "C"),
        ("**(C)** is correct", "C"),
        ("All in all:\n\n**B**", "B"),
        ("bla\nC. Paris", "C"),
        ("Hm. A is the best.", "A"),
        ("The answer is A dog", ""),
        ("Option A says so.", "A"),
        ("I choose a card", ""),
        ("A dog is here", ""),
        ("It is a dog.", ""),
        ("Option A fits, and option B fits too.", ""),
        ("The answer isn't A: choose B", "B"),
        ("Not A is correct, **B** is correct", "B"),
        ("The best choice is not D. It must be option B", "B"),
        ("I pick option D, for option A is too small", "D"),
        ("Vitamin C is healthy", ""),
    ],
)
def test_what_is_said_without_a_mark(text: str, letter: str) -> None:
    assert spoken(text) == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("3/4", "A"), (r"\text{Paris}", "C"), ("paris.", "C"), ("D", "D"),
        ("None of the above", "D"), (r"\frac{1}{2}", "B"), ("B) 3/4", "B"),
        ("E", ""), ("Rome", ""), ("e", ""),
    ],
)  # fmt: skip
def test_the_text_of_one_option_counts(answer: str, letter: str) -> None:
    grade = judged(f"\\boxed{{{answer}}}", letter or "A", choices=FOUR)
    assert (grade.extracted or "") == letter
    assert grade.outcome == ("correct" if letter else "unparsed")


def test_options_in_the_forms_of_data_sets() -> None:
    arc = {"text": ["x", "y"], "label": ["A", "B"]}
    numbered = {"text": ["x", "y"], "label": ["1", "2"]}
    for choices in (
        ["x", "y"],
        {"A": "x", "B": "y"},
        arc,
        numbered,
        '["x", "y"]',
        ["A) x", "B) y"],
    ):
        assert judged("\\boxed{y}", "B", choices=choices).correct, choices
    same = judged("\\boxed{x}", "A", choices=["x", "x", "y"])
    assert same.outcome == "unparsed"
    assert same.detail == "no choice in 'x'"
    assert judged("\\boxed{A}", "A", choices={"first": "x"}).outcome == "error"
    assert judged("\\boxed{A}", "A", choices=7).outcome == "error"


@pytest.mark.parametrize(
    ("gold", "choices", "letters"),
    [
        ("B", None, "B"), ("(b)", None, "B"), ("C.", FOUR, "C"), ("Paris", FOUR, "C"),
        ("2", FOUR, "C"), ("3/4", FOUR, "A"), ("A,C", FOUR, "AC"), ("AC", FOUR, "AC"),
        ("A and C", None, "AC"), ('["A", "C"]', FOUR, "AC"), ("0", None, "A"), ("B) x", None, "B"),
    ],
)  # fmt: skip
def test_golds_as_letter_text_and_index(gold: str, choices: Any, letters: str) -> None:
    options = Options.of(Problem(messages=(), metadata={"choices": choices}))
    assert gold_letters(gold, options) == letters


def test_a_gold_that_may_be_read_in_two_ways_is_an_error_until_the_recipe_says_which() -> None:
    numbers = ["1", "2", "3", "4"]
    grade = judged("\\boxed{B}", "2", choices=numbers)
    assert grade.outcome == "error"
    assert (
        grade.detail
        == "the reference answer '2' may be text B, index C: say {choice: {gold: text}}"
    )
    assert judged("\\boxed{B}", "2", choices=numbers, kind="text").correct
    assert judged("\\boxed{C}", "2", choices=numbers, kind="index").correct
    assert judged("\\boxed{B}", "2", choices=FOUR, kind="number").correct
    assert "names none of the 4 options" in judged("\\boxed{B}", "F", choices=FOUR).detail
    assert "no index" in judged("\\boxed{B}", "B", kind="index").detail
    with pytest.raises(UsageError, match="gold = 'roman'"):
        Choice(gold="roman")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("A, C", "correct"), ("C and A", "correct"), ("(A), (C)", "correct"), ("AC", "correct"),
        (r"\text{A and C}", "correct"), ("A) 3, C) 5", "correct"), ("A", "wrong"),
        ("A, B, C", "wrong"), ("A or C", "correct"), ("ABLE", "unparsed"),
    ],
)  # fmt: skip
def test_several_letters_where_the_gold_has_several(answer: str, outcome: str) -> None:
    assert judged(f"\\boxed{{{answer}}}", "A,C", choices=FOUR).outcome == outcome


def test_several_letters_where_one_is_right_are_wrong() -> None:
    grade = judged("\\boxed{A}, \\boxed{B}", "B")
    assert (grade.outcome, grade.extracted) == ("wrong", "AB")
    assert grade.detail == "several letters where one is right"


def test_a_letter_that_is_another_options_text_is_a_letter() -> None:
    vitamins = ["A", "C", "D", "K"]
    assert judged("\\boxed{C}", "C", choices=vitamins, kind="letter").correct
    assert judged("\\boxed{C}", "D", choices=vitamins, kind="text").correct


def test_cut_open_and_ungradable_traces() -> None:
    assert judged("<think>\nB", finish="length").outcome == "truncated"
    assert judged("The answer is probably (", finish="length").outcome == "truncated"
    assert judged("<think>\n\\boxed{B}").outcome == "unparsed"
    assert judged("B", None).outcome == "ungraded"


@given(st.sampled_from(string.ascii_uppercase), st.sampled_from(["({})", "{}.", "**{}**", "{}"]))
def test_all_letters_of_the_alphabet(letter: str, dress: str) -> None:
    assert judged(f"\\boxed{{{dress.format(letter)}}}", letter).correct
    other = "Q" if letter != "Q" else "R"
    assert judged(f"\\boxed{{{dress.format(letter)}}}", other).outcome == "wrong"


@given(st.text(max_size=60), st.text(max_size=12), st.none() | st.lists(st.text(max_size=6)))
def test_any_text_gets_a_grade(text: str, gold: str, choices: Any) -> None:
    grade = judged(text, gold, choices=choices)
    assert grade.outcome in OUTCOMES
    assert grade.score == float(grade.correct)
