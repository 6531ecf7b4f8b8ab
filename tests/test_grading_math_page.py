"""Every example of docs/grading-math.md, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from distill.grade.math import Math
from distill.records import Grade

PAGE = (Path(__file__).parents[1] / "docs" / "grading-math.md").read_text(encoding="utf-8")


def rows(title: str) -> list[tuple[str, str]]:
    """The first two columns of the table under a heading."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    found = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", section, re.MULTILINE)
    assert found
    return found


def equal(gold: str, answer: str) -> bool:
    grader = Math()
    result = grader.compare(gold, answer)
    grade = result if isinstance(result, Grade) else grader.check(*result.args)
    return grade.correct


@pytest.mark.parametrize(("gold", "answer"), rows("Equal"))
def test_equal(gold: str, answer: str) -> None:
    assert equal(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), rows("Different"))
def test_different(gold: str, answer: str) -> None:
    assert not equal(gold, answer)


SIDES = [
    ("1, 2", "1", False),
    ("1", "1, 2", False),
    ("1, 2", "(1, 2)", True),
    ("[-2,7]", "-2 \\le x \\le 7", True),
    ("-2 \\le x \\le 7", "[-2,7]", True),
    ("(1,2)", "[1,2]", False),
    ("50\\%", "0.5", True),
    ("0.5", "50\\%", True),
    ("50\\%", "\\frac{1}{2}", True),
    ("50\\%", "50", True),
    ("50\\%", "5", False),
    ("\\frac{1}{3}", "0.333333", True),
    ("\\frac{1}{3}", "0.33", False),
    ("10^{-7}", "10^{-8}", False),
    ("4.03188", "4.031882", True),
    ("4.031882", "4.03188", False),
    ("2.67", "2.6667", False),
    ("204_5", "204", True),
    ("5", "x = 5", True),
    ("x = 5", "5", True),
    ("x = 5", "y = 5", False),
    ("2x+3=7", "7", False),
    ("C e^{-2t}", "c e^{-2t}", True),
]


@pytest.mark.parametrize(("gold", "answer", "same"), SIDES)
def test_what_is_not_alike_for_gold_and_answer(gold: str, answer: str, same: bool) -> None:
    assert f"`{gold}`" in PAGE
    assert f"`{answer}`" in PAGE
    assert equal(gold, answer) is same
