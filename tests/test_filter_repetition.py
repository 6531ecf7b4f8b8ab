"""The filter for traces that run in circles, and the hashes of runs it stands on."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import UsageError
from distill.filter.repetition import Repetition, cycle, repeated_share
from distill.filter.runs import LONGEST, repeated, run_hashes, words_of
from distill.records import Grade, Problem, Trace
from distill.thinking import convert

PROBLEM = Problem(messages=({"role": "user", "content": "q"},), gold="4")


def judge(filter_: Repetition, text: str) -> str | None:
    made = Trace(problem_id=PROBLEM.id, index=0, text=text)
    return filter_(PROBLEM, made, Grade(outcome="correct"))


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


LOOPS |= {
    "a block again": "<think>\n"
    + " ".join(w + v + x for w in "bdgklmnprst" for v in "aeiou" for x in "fhjqvwxz") * 2,
    "only counting": "<think>\n"
    + "".join(
        f"The position with {i} tokens is lost, because {i + 3} tokens are left then. "
        for i in range(60)
    ),
    "wait, let me check": "<think>\nThe answer is 5.\n"
    + "".join(
        f"Wait, let me check again. If x is {i}, then {i} + {7 - i} = 7, so the equation holds.\n"
        for i in range(40)
    ),
}


FINE = {
    "cases": "<think>\n"
    + "".join(f"- {n}: contains a {n % 7}, which is not allowed.\n" for n in range(30))
    + "".join(f"Of the {w} ones some are left, and I look at them now.\n" for w in "abcdefghijklm")
    + " ".join(f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(300))
    + "</think>\n\n3",
    "a table": "<think>\n"
    + "".join(f"{i} + {i} = {2 * i}\n" for i in range(200))
    + "</think>\n\n9",
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


WORD = re.compile(r"[\u3000-\udfff]|[^\s\0\u3000-\udfff]+")
NUMBER = re.compile(r"[0-9#](?:[.,]?[0-9#])*")


def plain_words(text: str, masked: bool = False) -> list[str]:
    """Words as `runs` has them, cut into pieces of `LONGEST` bytes."""
    text = re.sub(r"[\s\0]", lambda m: " " if m[0].isascii() else "x", text)
    found = WORD.findall(NUMBER.sub("#", text) if masked else text)
    return [
        word.encode()[at : at + LONGEST].decode("latin-1")
        for word in found
        for at in range(0, len(word.encode()), LONGEST)
    ]


def plain_share(text: str, words: int, times: int) -> tuple[float, int]:
    """The same by comparing strings: slower, and nothing to get wrong."""
    found = plain_words(text)
    runs = Counter(tuple(found[at : at + words]) for at in range(len(found) - words + 1))
    often = sum(count for count in runs.values() if count >= times)
    return (often / runs.total(), max(runs.values())) if runs else (0.0, 0)


pieces = [
    "a",
    "b",
    "-1",
    "-2",
    "c.",
    " ",
    "\n",
    "1",
    "12",
    "3.14",
    "1,000",
    ",",
    "é",
    "数",
    "x" * 70,
]


@given(st.lists(st.sampled_from(pieces), max_size=80).map("".join), st.integers(2, 4))
def test_hashed_runs_agree_with_plain_ones(text: str, times: int) -> None:
    share, _, count = repeated_share(text, 3, times)
    assert (share, count) == plain_share(text, 3, times)


@given(st.text(max_size=200) | st.lists(st.sampled_from(pieces), max_size=60).map("".join))
def test_words_are_told_apart_as_plain_ones_are(text: str) -> None:
    for masked in (False, True):
        found, plain = words_of(text, masked=masked), plain_words(text, masked)
        assert len(found.starts) == len(plain)
        assert len(set(found.hashes.tolist())) == len(set(plain))
        assert found.long or all(len(word) < LONGEST for word in plain_words(text))


@given(
    st.lists(st.sampled_from([*pieces, "a 1 b 2 c 3 ", "9" * 70]), max_size=80).map("".join),
    st.integers(2, 4),
)
def test_one_look_at_masked_numbers_loses_no_loop(text: str, times: int) -> None:
    rule = Repetition(max_share=0.2, words=3, times=times, max_counting=None)
    found = rule._phrases(text)
    assert (found is not None) == (plain_share(text, 3, times)[0] > 0.2)


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 21), st.integers(2, 4))
def test_runs_of_any_size_and_how_many_repeat(numbers: list[int], size: int, times: int) -> None:
    text = " ".join(map(str, numbers))
    runs = run_hashes(words_of(text).hashes, size)
    plain = [tuple(numbers[at : at + size]) for at in range(len(numbers) - size + 1)]
    assert len(runs) == len(plain)
    counts = Counter(plain)
    assert len(set(runs.tolist())) == len(counts)
    assert repeated(runs, times) == sum(n for n in counts.values() if n >= times)


def test_masked_numbers_are_quoted_as_they_were_compared() -> None:
    words = words_of("In 1,024 of 2.5e3 cases (7%) x1 won.", masked=True)
    assert words.quoted(0, 9) == "In # of #e# cases (#%) x# won."


@given(st.text(max_size=400))
def test_any_text_is_judged(text: str) -> None:
    length, period = cycle(text)
    assert 0 <= length <= len(text)
    assert period >= 1
    assert 0 <= repeated_share(text, 3, 2)[0] <= 1
    judge(Repetition(words=3, times=2), text)


@pytest.mark.parametrize(
    "params",
    [{"max_share": 0}, {"words": 1}, {"times": 1}, {"tail_chars": 0}, {"max_counting": 1.5}],
)
def test_wrong_parameters(params: Any) -> None:
    with pytest.raises(UsageError, match="needs 0 < max_share"):
        Repetition(**params)


def test_signs_can_be_left_out() -> None:
    twice, counting = LOOPS["a block again"], LOOPS["only counting"]
    assert judge(Repetition(tail_chars=None), twice) is None
    assert judge(Repetition(max_counting=None), counting) is None


def calls_for(text: str) -> int:
    """Calls of functions, Python's and C's, that it takes to judge a text."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(trace)
    try:
        judge(Repetition(), text)
    finally:
        sys.setprofile(None)
    return count


def test_a_longer_trace_takes_no_more_steps() -> None:
    """Per character there are passes over arrays alone; 800,000 characters take no more calls."""
    text = " ".join(f"word{i} is {i * i % 977}" for i in range(50_000))
    hostile = "a" * 15 + "b" + ("a" * 16 + "c") * 20_000 + "a" * 16
    judge(Repetition(), text)
    for sample in (text, hostile):
        assert calls_for(sample) <= calls_for(sample[: len(sample) // 16]) + 200


def traces_of(shared: Path, name: str) -> list[dict[str, Any]]:
    text = (shared / "traces" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_real_traces(shared: Path) -> None:
    """Published R1 and QwQ chains pass; chains of badly trained students that loop do not."""
    good = [r["trace"] for r in traces_of(shared, "topology_r1_math500")]
    good += [r["trace"] for r in traces_of(shared, "misguided_attention_r1_qwq")]
    dropped = [text for text in good if judge(Repetition(), text)]
    assert len(dropped) == 1  # it does loop, from its middle to its end
    assert dropped[0].count(dropped[0][-60:]) > 20
    rows = traces_of(shared, "skythought_sky_t1_long")
    found = {r["id"]: judge(Repetition(), convert(r["trace"])[0]) for r in rows}
    long = [r for r in rows if len(r["trace"]) > 64_000]
    assert len(long) > 30
    assert all(found[r["id"]] for r in long)
    assert sum(reason is not None for reason in found.values()) >= 80
    right = [r["id"] for r in rows if r["grader_correct"]]
    assert len(right) > 100
    assert sum(found[key] is not None for key in right) <= 1
