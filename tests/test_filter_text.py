"""Filters that read one trace: outcome, form, length, repetition."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import UsageError
from distill.filter.corpus import Duplicates
from distill.filter.format import Format
from distill.filter.outcome import Correct, Truncated
from distill.filter.length import Length
from distill.filter.repetition import Repetition, cycle, repeated_share
from distill.records import Grade, Problem, Trace

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


LOOPS = {
    "a line": "<think>\nLet me see.\n" + "Wait, let me check that again.\n" * 30,
    "a paragraph": "<think>\n" + "First I add the two.\nThen I subtract three of them.\n\n" * 20,
    "cut inside": "<think>\nSo " + "we get the same equation as before, hence " * 12 + "we get the",
    "no spaces": "<think>\nx=" + "0123456789abcdefghijkmn" * 40,
    "one letter": "<think>\n" + "a" * 900,
    "chinese": "<think>\n" + "我们再检查一遍这个结果是不是正确的。" * 30,
    "out of it": "<think>\n"
    + "Let me count the stones in the third row once more. " * 20
    + "Fine, it is seven.\n</think>\n\nThe answer is 7.",
    "in the answer": "<think>\nSeven.\n</think>\n\n" + "The answer is \\boxed{7}. " * 20,
    "with counters": "<think>\n"
    + "".join(
        f"{i}. If we try the next number, the left side is still smaller than the right side, "
        "because both of them grow at the same time, so we have to go on with the next one.\n"
        for i in range(30)
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_are_found(name: str) -> None:
    assert judge(Repetition(), LOOPS[name])


FINE = {
    "pocket sum": "<think>\nI go from left to right.\n3 + 4 = 7.\n7 + 5 = 12.\n12 + 5 = 17.\n"
    "17 + 5 = 22.\nThat gives 22.\n</think>\n\nThe answer is \\boxed{22}.",
    "pocket letters": "<think>\nI spell each word.\n"
    + "".join(f"{w}: {' '.join(w)}, 0.\n" for w in ("banana", "llama", "anna", "assess", "otto"))
    + "Result: 0.\n</think>\n\nThe answer is \\boxed{0}.",
    "said twice": "<think>\n"
    + "To be sure I add the three numbers again: 31 + 45 = 76 and 76 + 18 = 94.\n" * 3
    + "</think>\n\n\\boxed{94}",
    "numbers": "<think>\n" + ", ".join(map(str, range(400))) + "\n</think>\n\n400",
    "empty": "",
}


@pytest.mark.parametrize("name", FINE)
def test_sound_traces_are_kept(name: str) -> None:
    assert judge(Repetition(), FINE[name]) is None


def test_reasons_quote_the_loop() -> None:
    reason = judge(Repetition(), LOOPS["a line"])
    assert reason is not None
    assert "let me check that again" in reason
    assert "29 times" in reason or "30 times" in reason


@given(st.text(alphabet="ab \n", max_size=12), st.text(alphabet="abc", min_size=1, max_size=6))
def test_a_cycle_is_found_with_its_whole_length(head: str, period: str) -> None:
    text = (head + period * 60).rstrip()
    length, found = cycle(text)
    assert length >= len(period) * 60 - len(period)
    assert text[-length + found :] == text[-length:-found]


def plain_share(text: str, words: int, times: int) -> tuple[float, int]:
    """The same by comparing strings: slower, and nothing to get wrong."""
    found = text.split()
    runs = Counter(tuple(found[at : at + words]) for at in range(len(found) - words + 1))
    repeated = sum(count for count in runs.values() if count >= times)
    return (repeated / runs.total(), max(runs.values())) if runs else (0.0, 0)


@given(st.lists(st.sampled_from(["a", "b", "-1", "-2", "c."]), max_size=60), st.integers(2, 4))
def test_hashed_runs_agree_with_plain_ones(found: list[str], times: int) -> None:
    text = " ".join(found)
    share, phrase, count = repeated_share(text, 3, times)
    assert (share, count) == plain_share(text, 3, times)
    assert phrase in text


@given(st.text(max_size=400))
def test_cycle_and_share_of_any_text(text: str) -> None:
    length, period = cycle(text)
    assert 0 <= length <= len(text)
    assert period >= 1
    assert 0 <= repeated_share(text, 3, 2)[0] <= 1


def test_long_traces_take_no_quadratic_time() -> None:
    """A doubled text may take four times as long on a busy machine, not sixteen times."""
    text = " ".join(f"word{i} is {i * i % 977}" for i in range(12_000))

    def seconds(sample: str) -> float:
        runs = []
        for _ in range(3):
            start = time.process_time()
            judge(Repetition(), sample)
            runs.append(time.process_time() - start)
        return min(runs)

    assert seconds(text) < 12 * max(seconds(text[: len(text) // 4]), 0.002)


def traces_of(shared: Path, name: str) -> list[dict[str, Any]]:
    path = shared / "traces" / f"{name}.jsonl"
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def test_real_traces(shared: Path) -> None:
    """Published R1 and QwQ chains pass; chains of badly trained students that loop do not."""
    good = [r["trace"] for r in traces_of(shared, "topology_r1_math500")]
    good += [r["trace"] for r in traces_of(shared, "misguided_attention_r1_qwq")]
    dropped = [text for text in good if judge(Repetition(), text)]
    assert len(dropped) < 0.02 * len(good)
    assert all(text.count(text[-60:]) > 20 for text in dropped)
    long = [r for r in traces_of(shared, "skythought_sky_t1_long") if len(r["trace"]) > 64_000]
    assert len(long) > 30
    assert all(judge(Repetition(), r["trace"]) for r in long)
    rest = [r for r in traces_of(shared, "skythought_sky_t1_long") if r["grader_correct"]]
    assert sum(judge(Repetition(), r["trace"]) is not None for r in rest) < 0.02 * len(rest)
