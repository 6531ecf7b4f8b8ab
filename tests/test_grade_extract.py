"""Finding the final answer: never in the thinking, in one pass, and nothing where there is none."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.grade.extract import (
    answer_text,
    final_answer,
    last_boxed,
    thought_box,
    without_answer,
)
from distill.grade.math import Math
from distill.records import Problem, Trace

CASES = [
    (r"so \boxed{5}.", "5"),
    (r"first \boxed{4}, no: \boxed{5}", "5"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\{1,2\}}", r"\{1,2\}"),
    (r"\boxed{\left\{1\right.}", r"\left\{1\right."),
    (r"\boxed{x=\boxed{5}}", "x={5}"),
    (r"\boxed{\boxed{5}}", "5"),
    (r"\boxed{2} and \boxed{3}", "2, 3"),
    (r"$\boxed{2}$, $\boxed{3}$", "2, 3"),
    (r"\(\boxed{1}\) and \(\boxed{-2}\).", "1, -2"),
    (r"first \boxed{3} then \boxed{4}", "4"),
    (r"\boxed{3} cm and \boxed{4} cm", "3, 4"),
    (r"\boxed{2} is the step before the result, which is \boxed{3}", "3"),
    (r"\boxed{}", None),
    (r"\boxed{5} then \boxed{ }", "5"),
    (r"$\boxed{\frac{1}{2}$.", r"\frac{1}{2}"),
    (r"\boxed 7", "7"),
    (r"use \boxed format. The answer is 4", "4"),
    (r"\fbox{9}", "9"),
    ("<answer> 5 </answer>", "5"),
    ("It is 24*3=72.\n#### 72", "72"),
    ("**Final Answer**\n\n42", "42"),
    ("### Final Answer\n17\n", "17"),
    ("**Answer:** 42", "42"),
    ("**Answer: 42**", "42"),
    ("The final answer is $\\frac12$. I hope it is correct.", "\\frac12"),
    ("Answer: 3.5 apples.", "3.5 apples"),
    ("The answer to the question is 7.", "7"),
    ("The answers are $2$ and $3$.", "$2$ and $3$"),
    ("Final answer: \\[ x=5 \\]", "x=5"),
    ("the answer is therefore 5", "5"),
    ("half of it is \\boxed{255}. Final Answer: The final answer is $10,455$. I hope", "10,455"),
    ("Final Answer: **73**", "73"),
    ("✅ Final Answer: **73**\n", "73"),
    ("**Answer:** **(C)**", "(C)"),
    ("So he owns **73** of them.", "73"),
    ("In all that makes **$\\frac{1}{2}$**.", "\\frac{1}{2}"),
    ("It is 7.\n\n**Step 3:** check it", None),
    ("**Step 3**", None),
    ("That is **important**.", None),
    ("nothing to see", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "answer"), CASES)
def test_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def test_a_cut_expression_is_no_answer() -> None:
    assert last_boxed(r"so \boxed{12", cut=True) is None
    assert final_answer(r"\boxed{1}. Again: \boxed{12", cut=True) == "1"
    assert final_answer("The answer is 12", cut=True) is None
    assert final_answer("The answer is 12.\nIndeed", cut=True) == "12"


@pytest.mark.parametrize(
    "text",
    [
        r"<think>I get \boxed{7}</think>",
        r"<think>I get \boxed{7}",
        r"I get \boxed{7}, the answer is 7</think> so it is",
        r"<think>a</think> b <think>\boxed{7}</think> c",
    ],
)
def test_never_from_inside_the_thinking(text: str) -> None:
    trace = Trace(problem_id="p", index=0, text=text)
    assert final_answer(answer_text(trace)) is None


def test_engine_that_split_by_other_tags() -> None:
    trace = Trace(problem_id="p", index=0, text="?", reasoning="r", answer=r"<think>\boxed{1}")
    assert answer_text(trace) == ""
    trace = Trace(problem_id="p", index=0, text="?", reasoning="r", answer=r"so \boxed{1}")
    assert final_answer(answer_text(trace)) == "1"


def test_the_thinking_counts_only_when_asked_for() -> None:
    def grade(text: str, **params: bool) -> tuple[str, str | None, str]:
        trace = Trace(problem_id="p", index=0, text=text)
        found = Math(**params)(Problem(messages=(), gold="7"), trace)
        return found.outcome, found.extracted, found.detail

    said = "no answer after the thinking: its last box"
    for text in (r"<think>\boxed{6}, no: \boxed{7}", r"<think>it is \boxed{7}</think> So there."):
        assert grade(text)[0] == "unparsed"
        assert grade(text, in_thinking=True) == ("correct", "7", said)
    closed = r"<think>\boxed{7}</think> \boxed{8}"
    assert grade(closed, in_thinking=True) == ("wrong", "8", "")
    assert grade("<think>well</think>", in_thinking=True)[0] == "unparsed"


def test_thinking_that_the_server_took_apart() -> None:
    trace = Trace(problem_id="p", index=0, text="?", reasoning=r"\boxed{7}", answer="")
    assert thought_box(trace) == "7"


def test_truncated_and_unparsed_are_told_apart() -> None:
    def outcome(text: str, finish: str) -> tuple[str, str]:
        trace = Trace(problem_id="p", index=0, text=text, finish_reason=finish)
        grade = without_answer(trace, "g", "1")
        return grade.outcome, grade.detail

    assert outcome("<think>on and on", "length")[0] == "truncated"
    assert outcome("<think>done</think> well", "length")[0] == "truncated"
    assert outcome("<think>on and on", "stop") == ("unparsed", "no answer after the thinking")
    assert outcome("<think>done</think> well", "stop") == ("unparsed", "no final answer found")
    assert outcome("no thinking, no answer", "stop") == ("unparsed", "no final answer found")


@given(st.text(alphabet=st.sampled_from(list("\\{}$boxedanswer is:*#\n<>/ 17.,")), max_size=200))
def test_any_text_is_survived(text: str) -> None:
    for cut in (False, True):
        found = final_answer(text, cut=cut)
        assert found is None or isinstance(found, str)


@given(st.text(alphabet=st.sampled_from(list("{}\\ab1")), max_size=40))
def test_balanced_content_comes_back(content: str) -> None:
    depth = 0
    for before, char in zip(" " + content, content, strict=False):
        if before == "\\":
            return
        depth += {"{": 1, "}": -1}.get(char, 0)
        if depth < 0:
            return
    if depth or content.endswith("\\"):
        return
    found = last_boxed("x \\boxed{" + content + "} y")
    inner = content.strip()
    assert (found or "").replace("{", "").replace("}", "") == inner.replace("{", "").replace(
        "}", ""
    )


HOSTILE = [
    "\\boxed{",
    "\\boxed{1} and ",
    "{",
    "\\",
    "answer is ",
    "answer to ",
    "final answer ",
    "answer is $$",
    "<answer>",
    "#### ",
    "\\boxed ",
    "$",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_time_grows_with_the_text_not_its_square(piece: str) -> None:
    def cost(copies: int) -> float:
        text, best = piece * copies, float("inf")
        for _ in range(3):
            begin = time.process_time()
            final_answer(text)
            best = min(best, time.process_time() - begin)
        return best

    # Ten times the text: 100 times the time if quadratic. Processor time, and a wide margin.
    assert cost(6_000) < 40 * max(cost(600), 0.002)


def test_nested_boxes_are_linear() -> None:
    begin = time.process_time()
    assert final_answer("\\boxed{" * 50_000 + "5" + "}" * 50_000) == "5"
    assert time.process_time() - begin < 20
