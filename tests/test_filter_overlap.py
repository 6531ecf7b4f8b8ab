"""Decontamination: what counts as the same problem, what as a template, and when to stop."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import DataError
from distill.filter.overlap import Overlap
from distill.filter.questions import tokens, words
from distill.records import Problem

LONG = (
    "Janet has $\\frac{3}{4}$ of a cake and eats 1,200 grams of it on every one of the "
    "seven days of the week before her birthday; how much is left?"
)


def ask(question: str, source: str = "train", **metadata: Any) -> Problem:
    return Problem(
        messages=({"role": "user", "content": f"{question}\n\nPlease reason step by step."},),
        statement=question,
        source=source,
        metadata=metadata,
    )


def overlaps(
    train: Sequence[str | Problem], exam: Sequence[str | Problem], **params: Any
) -> tuple[list[str], Overlap]:
    """Questions of `train` that overlap, and the filter for a look at its reasons."""
    found = Overlap(**{"max_share": None, **params})
    problems = [p if isinstance(p, Problem) else ask(p) for p in train]
    found.begin(
        {p.id: p for p in problems},
        {"exam": [p if isinstance(p, Problem) else ask(p, "exam") for p in exam]},
    )
    return [p.question for p in problems if p.id in found.hits], found


@pytest.mark.parametrize(
    "copy",
    [
        LONG,
        LONG.upper().replace("\\FRAC", "\\dfrac"),
        LONG.replace("\\frac{3}{4}", "\\frac34").replace("1,200", "1200"),
        LONG.replace(" ", "\n  "),
        "As every year, " + LONG[:120],
        LONG.replace("Janet", "Mary"),
    ],
)
def test_copies_and_passages_are_found(copy: str) -> None:
    found, overlap = overlaps([copy], [LONG])
    assert found == [copy]
    (hit,) = overlap.hits.values()
    assert hit.asked.task == "exam"
    assert "cake" in hit.reason.lower()


def test_nine_words_in_common_are_not_enough() -> None:
    common = "red blue green grey black white pink brown gold"
    assert overlaps([f"Is {common} all of it?"], [f"Was {common} none at last?"])[0] == []
    assert overlaps([f"Is {common} all of it?"], [f"Was {common} none at last?"], n=9)[0]


@pytest.mark.parametrize(
    ("copy", "same"),
    [
        ("What is $3+4$?", True),
        ("what is 3 + 4", True),
        ("What is \\(3+4\\)?", True),
        ("What is $3-4$?", False),
        ("What is 3 + 4 + 5?", False),
        ("What is (3 + 4)?", False),
    ],
)
def test_short_questions_must_be_equal(copy: str, same: bool) -> None:
    assert bool(overlaps([copy], ["What is $3 + 4$?"])[0]) is same


def test_the_statement_is_compared_not_the_instruction() -> None:
    instruction = "please answer in the usual way with all of your steps written out in full"
    train = [
        Problem(messages=({"role": "user", "content": f"{q} {instruction}"},), statement=q)
        for q in ("What is one?", "What is two?")
    ]
    exam = Problem(
        messages=({"role": "user", "content": f"What is two? {instruction}"},),
        statement="What is two?",
    )
    assert overlaps(train, [exam])[0] == ["What is two?"]


def gym(task: str, question: str) -> Problem:
    entry = {"question": question, "answer": "1", "metadata": {}}
    return ask(question, reasoning_gym={"task": task, "config": {}, "entry": entry})


def test_generated_problems_are_compared_by_instance() -> None:
    text = "State the final answer to the following arithmetic problem, as one number: {} ="
    train = [gym("chain_sum", text.format(f"{i} + 5")) for i in range(40)]
    exam = [gym("chain_sum", text.format(f"{i} + 5")) for i in range(38, 60)]
    assert overlaps(train, exam)[0] == [p.question for p in train[38:]]
    assert overlaps([gym("products", text.format("39 + 5"))], exam)[0] == []


def test_brackets_tell_generated_problems_apart() -> None:
    assert overlaps([gym("brackets", "Close: ( [ {")], [gym("brackets", "Close: ( { [")])[0] == []


def test_real_reasoning_gym_tasks_share_text_and_do_not_overlap() -> None:
    reasoning_gym = pytest.importorskip("reasoning_gym")
    for task in ("chain_sum", "letter_counting", "number_sorting"):
        sets = [reasoning_gym.create_dataset(task, seed=s, size=60) for s in (1, 5000)]
        train, exam = ([gym(task, e["question"]) for e in entries] for entries in sets)
        assert overlaps(train, exam)[0] == []
        assert len(overlaps(train, train[:20])[0]) == 20


def test_runs_that_stand_everywhere_are_templates() -> None:
    text = (
        "A farmer sells {} eggs for {} cents each and wants to know what {} earn. Round the "
        "result to the nearest whole number and write it down as a plain integer."
    )
    numbers = iter(random.Random(0).sample(range(10, 9999), 900))
    questions = [text.format(*islice(numbers, 3)) for _ in range(300)]
    train, exam = questions[:240], [*questions[230:240], *questions[240:]]
    found, overlap = overlaps(train, exam)
    assert found == questions[230:240]
    assert "count as templates" in overlap.notes[0]
    literal, _ = overlaps(train, exam, template_share=1)
    assert literal == train


def test_a_few_copies_of_one_question_are_no_template() -> None:
    copies = [f"{LONG} Variant {i} of this one." for i in range(8)]
    others = [f"Question {i} about something else entirely, number {i * 7}?" for i in range(200)]
    assert overlaps([*copies, *others], [LONG])[0] == copies


def test_stock_phrases_count_only_where_they_are_most_of_a_question() -> None:
    phrase = "where m and n are relatively prime positive integers find the sum of m and n"
    train = [f"{' '.join(f'w{i}x{j}' for j in range(30))} is m over n {phrase}" for i in range(40)]
    others = [f"Is the number {i} a prime or not, and why so?" for i in range(3000)]
    long = "A bag holds nine red and seven blue marbles and a child who cannot see draws two; "
    exam = [f"{long * 2} the chance that both are red is m over n {phrase}"]
    found, overlap = overlaps([*train, *others], exam, template_share=1)
    assert found == []
    assert overlap.notes == []
    assert overlaps([*train, *others], exam, template_share=1, common=100)[0] == train
    found, overlap = overlaps(
        [*train, *others], [f"Rolling is m over n {phrase}"], template_share=1
    )
    assert found == train
    assert "of its words" in next(iter(overlap.hits.values())).reason


def test_code_of_diagrams_is_no_text() -> None:
    asy = '[asy] draw((0,0)--(4,0)--(4,3)--cycle); label("$A$",(0,0),SW); dot((1,1)); [/asy]'
    assert overlaps([f"What is the area? {asy}"], [f"What is the angle at A? {asy}"])[0] == []


def test_too_large_a_share_stops_with_examples() -> None:
    exam = [f"{LONG} Case {i}." for i in range(4)]
    rest = [f"Is {i} a prime number?" for i in range(20)]
    with pytest.raises(DataError) as caught:
        overlaps([*exam, *rest], exam, max_share=0.05)
    assert "4 of 24 problems of the source 'train'" in caught.value.message
    assert "Janet has" in caught.value.message
    assert "max_share: null" in caught.value.hint
    assert len(overlaps([*exam[:2], *rest], exam, max_share=0.05)[0]) == 2


def test_relatives_of_heldout_problems_have_a_limit_of_their_own() -> None:
    exam = [ask(f"{LONG} Case {i}.") for i in range(4)]
    rest = [ask(f"Is {i} a prime number?") for i in range(20)]
    problems = {p.id: p for p in [*exam, *rest]}
    overlap = Overlap()
    overlap.begin(problems, {"heldout": exam})
    assert len(overlap.hits) == 4
    with pytest.raises(DataError, match="max_heldout_share"):
        Overlap(max_heldout_share=0.1).begin(problems, {"heldout": exam})


def test_shares_are_counted_per_source() -> None:
    exam = [f"{LONG} Case {i}." for i in range(4)]
    rest = [f"Is {i} a prime number?" for i in range(200)]
    overlaps([*exam, *rest], exam, max_share=0.05)
    with pytest.raises(DataError, match="source 'tainted'"):
        overlaps([*(ask(q, "tainted") for q in exam), *rest], exam, max_share=0.05)


def test_without_evaluation_problems_nothing_is_compared_and_it_says_so() -> None:
    found, overlap = overlaps([LONG], [])
    assert found == []
    assert "no evaluation problems" in overlap.notes[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$\\left(\\dfrac12\\right)$", ["(", "frac", "1", "2", ")"]),
        ("\\(x\\le 5\\)", ["x", "leq", "5"]),
        ("10{,}000 and 1,000,000 but 1, 2", ["10000", "and", "1000000", "but", "1", "2"]),
        ("a \\cdot b − c", ["a", "*", "b", "-", "c"]),
        ("求和是多少", ["求", "和", "是", "多", "少"]),
        ("\\text{Größe} 2.50", ["grösse", "2.50"]),
    ],
)
def test_tokens(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


@given(st.text())
def test_tokens_of_any_text(text: str) -> None:
    assert set(words(text)) <= set(tokens(text)) or "[asy]" in text
    assert tokens(" ".join(words(text))) == words(text) or not text.isascii() or "\\" in text


def load(shared: Path, name: str) -> list[Problem]:
    path = shared / "problems" / f"{name}.jsonl"
    return [ask(json.loads(line)["problem"], name) for line in path.open(encoding="utf-8")]


@pytest.mark.slow
def test_real_benchmarks(shared: Path) -> None:
    """MATH's train and test parts share problems up to numbers; GSM8K's hardly any."""
    exam = {name: load(shared, name) for name in ("math500", "aime24", "amc23", "gsm8k_test")}
    shares = {}
    for name in ("math_train_2k", "gsm8k_train_2k"):
        train = [*load(shared, name), *exam["aime24"]]
        overlap = Overlap()
        overlap.begin({p.id: p for p in train if p.source == name}, exam)
        shares[name] = len(overlap.hits) / 2000
        overlap = Overlap(max_share=None)
        overlap.begin({p.id: p for p in train}, exam)
        assert {p.id for p in exam["aime24"]} <= set(overlap.hits)
    assert 0.01 < shares["math_train_2k"] < 0.05
    assert shares["gsm8k_train_2k"] < 0.005
