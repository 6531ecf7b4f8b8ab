"""Filters that read one trace: outcome, form, thinking, length."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from distill.errors import UsageError
from distill.filter.corpus import Duplicates
from distill.filter.format import Format
from distill.filter.length import Length, with_tokenizers
from distill.filter.outcome import Correct, Truncated
from distill.filter.parts import filters_identity
from distill.filter.thinking import Thinking
from distill.records import Grade, Problem, Trace
from distill.schema import PartSpec
from distill.thinking import convert

PROBLEM = Problem(messages=({"role": "user", "content": "q"},), gold="4")


def judge(filter_: Any, text: str = "", outcome: Any = "correct", **trace: Any) -> str | None:
    """What a filter says about one trace; `detail` and `extracted` go to its grade."""
    grade = {k: trace.pop(k) for k in ("detail", "extracted") if k in trace}
    made = Trace(problem_id=PROBLEM.id, index=0, text=text, **trace)
    reason = filter_(PROBLEM, made, Grade(outcome=outcome, **grade))
    assert reason is None or isinstance(reason, str)
    return reason  # type: ignore[no-any-return]


def test_truncated() -> None:
    cut = judge(Truncated(), finish_reason="length", completion_tokens=99)
    assert cut == "cut off after 99 tokens"
    assert judge(Truncated(), outcome="truncated") == "graded as truncated"
    assert judge(Truncated()) is None


def test_correct_and_what_else_is_allowed() -> None:
    assert judge(Correct()) is None
    assert judge(Correct(), outcome="wrong", extracted="5") == "wrong: 5 instead of 4"
    assert judge(Correct(), outcome="error", detail="took 5 s") == "error: took 5 s"
    assert judge(Correct(), outcome="ungraded") == "ungraded"
    assert judge(Correct(["correct", "ungraded"]), outcome="ungraded") is None
    assert judge(Correct(), outcome="wrong", detail="not what was asked") == (
        "wrong: not what was asked"
    )


def test_only_what_nothing_could_grade_passes_ungraded() -> None:
    free = Problem(messages=({"role": "user", "content": "A poem?"},))
    task = Problem(messages=free.messages, metadata={"reasoning_gym": {"task": "t"}})
    made, ungraded = Trace(problem_id=free.id, index=0), Grade(outcome="ungraded")
    keep = Correct(ungraded="keep")
    assert keep(free, made, ungraded) is None
    assert Correct()(free, made, ungraded) == "ungraded"
    assert keep(PROBLEM, made, ungraded) == keep(task, made, ungraded) == "ungraded"
    assert keep(free, made, Grade(outcome="wrong", detail="dull")) == "wrong: dull"
    with pytest.raises(UsageError, match="ungraded = 'yes'"):
        Correct(ungraded="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<think>\na\n</think>\n\nb", None),
        ("  <think>a</think>b", None),
        ("b", "no thinking"),
        ("<think>a", "thinking was never closed"),
        ("a</think>b", "0 opening and 1 closing tags"),
        ("<think>a</think><think>b</think>c", "2 opening and 2 closing tags"),
        ("Sure! <think>a</think>b", "text before the thinking"),
        ("<think>\n \n</think>b", "empty thinking"),
        ("<think>a</think>\n", "no answer after the thinking"),
    ],
)
def test_format(text: str, reason: str | None) -> None:
    assert judge(Format(), text) == reason


def test_format_with_other_tags() -> None:
    assert judge(Format("<r>", "</r>"), "<r>a</r>b") is None


def test_length_in_tokens_estimated_tokens_and_characters() -> None:
    assert judge(Length(), "x", completion_tokens=4) == "4 tokens, fewer than 5"
    assert judge(Length(max_tokens=9), "x" * 40) == "10 tokens (estimated), more than 9"
    assert judge(Length(max_tokens=9), "x" * 40, completion_tokens=9) is None
    assert judge(Length(min_chars=50), "x" * 40) == "40 characters, fewer than 50"
    assert judge(Length(max_chars=30), "x" * 40) == "40 characters, more than 30"


def test_duplicates_ignore_white_space_and_keep_the_first() -> None:
    filter_ = Duplicates()
    traces = [
        Trace(problem_id=p, index=i, text=text)
        for p, i, text in (("a", 0, "x  y"), ("a", 1, "x\ny"), ("a", 2, "x Y"), ("b", 0, "x y"))
    ]
    grade = Grade(outcome="correct")
    filter_.prepare((PROBLEM, t, grade) for t in reversed(traces))
    reasons = [filter_(PROBLEM, t, grade) for t in traces]
    assert reasons == [None, "same text as sample 0", None, None]


def test_format_names_the_tags_of_another_style() -> None:
    text = "<|begin_of_thought|>\n\na\n\n<|end_of_thought|>\n\nb"
    assert judge(Format(), text) == "no thinking in <think> but in <|begin_of_thought|>"


QUESTION = "What is the sum of all whole numbers n for which n squared minus four is a prime?"
ASKED = Problem(messages=({"role": "user", "content": QUESTION},))
PROOF = "It is a product of two factors, so one of them is one; that makes three the only number."


@pytest.mark.parametrize(
    ("thinking", "answer", "reason"),
    [
        (PROOF, "\\boxed{3}", None),
        ("", "3", "empty thinking"),
        ("\n \n", "3", "empty thinking"),
        ("Okay.", "3", "thinking of 1 different words, fewer than 6: 'Okay.'"),
        ("Okay, okay! " * 30, "3", "thinking of 1 different words"),
        ("让我们一步一步地想清楚这个问题吧。", "3", None),
        (QUESTION, "3", "100% of the thinking stands in the question: 'What is the sum"),
        (f"Okay. {QUESTION.upper()}", "3", "94% of the thinking stands in the question"),
        (PROOF, f"{PROOF}\n\n\\boxed{{3}}", "100% of the thinking stands in the answer"),
        (f"{PROOF} {QUESTION} Let me see whether minus one does it, too. No.", PROOF, None),
    ],
)
def test_thinking_that_is_none(thinking: str, answer: str, reason: str | None) -> None:
    made = Trace(problem_id=ASKED.id, index=0, text=f"<think>\n{thinking}\n</think>\n\n{answer}")
    found = Thinking()(ASKED, made, Grade(outcome="correct"))
    assert (found or "").startswith(reason or "")
    assert (found is None) == (reason is None)


def test_real_thinking_is_some(shared: Path) -> None:
    kept = 0
    for name in ("topology_r1_math500", "misguided_attention_r1_qwq", "skythought_sky_t1_long"):
        for line in (shared / "traces" / f"{name}.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            asked = Problem(messages=({"role": "user", "content": row["problem"]},))
            text = convert(row["trace"])[0]
            made = Trace(problem_id=asked.id, index=0, text=text)
            kept += Thinking()(asked, made, Grade(outcome="correct")) is None
    assert kept == 617


TOKENIZER = Path(__file__).parent.parent / "students" / "pocket"


def test_length_in_tokens_of_the_student(tmp_path: Path) -> None:
    text = "<think>\n3 + 4 = 7.\n</think>\n\n\\boxed{7}"
    counted = Length(tokenizer=str(TOKENIZER), max_tokens=9)
    reason = judge(counted, text, completion_tokens=4)
    expected = len(Tokenizer.from_file(str(TOKENIZER / "tokenizer.json")).encode(text).ids)
    assert reason == f"{expected} tokens of the student, more than 9"
    made = Trace(problem_id="p", index=0, text=text)
    assert counted.measure(PROBLEM, made) == {"tokens": expected}
    assert pickle.loads(pickle.dumps(counted))(PROBLEM, made, Grade(outcome="correct")) == reason
    assert Length().measure(PROBLEM, made) == {}


def test_the_students_tokenizer_is_part_of_the_identity(tmp_path: Path) -> None:
    spec = PartSpec(name="length", params={"tokenizer": "student", "max_tokens": 99})
    (known,) = with_tokenizers([spec], tmp_path, lambda: str(TOKENIZER), 64)
    shutil.copy(TOKENIZER / "tokenizer.json", tmp_path)
    (moved,) = with_tokenizers([spec], tmp_path, lambda: str(tmp_path), 64)
    assert known != moved
    assert filters_identity([known], tmp_path) == filters_identity([moved], tmp_path)
    assert str(tmp_path) not in str(filters_identity([moved], tmp_path))
    with (tmp_path / "tokenizer.json").open("a") as file:
        file.write(" ")
    assert filters_identity([known], tmp_path) != filters_identity([moved], tmp_path)
    assert "train.max_length" in Length(**known.params).notes[0]
    assert "up to 99 tokens" in Length(**known.params).notes[0]
    assert Length(**{**known.params, "max_tokens": 64}).notes == []
    wrong = PartSpec(name="length", params={"tokenizer": "nowhere"})
    with pytest.raises(UsageError, match="no tokenizer 'nowhere'"):
        with_tokenizers([wrong], tmp_path, lambda: "", 64)
