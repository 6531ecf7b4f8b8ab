"""Regular expressions as extraction and as reference, and what backtracks for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill.errors import UsageError
from distill.grade import Judge
from distill.grade.pattern import Regex
from distill.records import Grade, Problem, Trace
from distill.schema import Grading


def judged(text: str, wanted: str | None, finish: str = "stop", **settings: Any) -> Grade:
    problem = Problem(messages=({"role": "user", "content": "?"},), gold=wanted)
    trace = Trace(problem_id=problem.id, index=0, text=text, finish_reason=finish)
    return Regex(**settings)(problem, trace)


@pytest.mark.parametrize(
    ("settings", "text", "gold", "outcome", "extracted"),
    [
        ({"pattern": r"Result: (\w+)"}, "Result: no\nResult: Yes", "yes", "correct", "Yes"),
        ({"pattern": r"Result: (\w+)", "which": "first"}, "Result: no\nResult: Yes", "yes", "wrong",
         "no"),
        ({"pattern": r"Result: (\w+)", "case": True}, "Result: Yes", "yes", "wrong", "Yes"),
        ({"pattern": r"\d+ ?km"}, "It is 12 km.", "12 km", "correct", "12 km"),
        ({"pattern": r"(?P<a>\d+) of (?P<b>\d+)", "group": "b"}, "3 of 7", "7", "correct", "7"),
        ({"pattern": r"result = (.*)$", "flags": "im"}, "RESULT = 5\nbye", "5", "correct", "5"),
        ({"pattern": r"x(y)?z", "group": 1}, "xz", "y", "unparsed", None),
        ({"pattern": r"Result: (\w+)"}, "nothing here", "yes", "unparsed", None),
        ({"pattern": r"Result: (\w+)"}, "<think>\nResult: y\n</think>\nno", "y", "unparsed", None),
        ({"gold": "pattern"}, r"So \boxed{colour}", "colou?r", "correct", "colour"),
        ({"gold": "pattern"}, r"So \boxed{colours}", "colou?r", "wrong", "colours"),
        ({"gold": "pattern", "match": "search"}, "my colours", "colou?r", "correct", "my colours"),
        ({"gold": "pattern", "flags": ["i"]}, r"\boxed{COLOR}", "colou?r", "correct", "COLOR"),
        ({"gold": "pattern"}, r"\boxed{COLOR}", "colou?r", "wrong", "COLOR"),
        ({"gold": "pattern"}, r"\boxed{x}", "(", "error", "x"),
        ({"gold": "pattern", "pattern": r"#(\d+)"}, "#12 #13", r"1[34]", "correct", "13"),
    ],
)  # fmt: skip
def test_patterns(
    settings: dict[str, Any], text: str, gold: str, outcome: str, extracted: str | None
) -> None:
    grade = judged(text, gold, **settings)
    assert (grade.outcome, grade.extracted) == (outcome, extracted), grade.detail


def test_cut_and_ungradable_traces() -> None:
    assert judged("<think>\nR: 1", "1", "length", pattern="R: (.)").outcome == "truncated"
    assert judged("said: R", "1", "length", pattern="R: (.)").outcome == "truncated"
    assert judged("R: 1", None, pattern="R: (.)").outcome == "ungraded"
    assert judged("<think>\nR: 1", "1", pattern="R: (.)").outcome == "unparsed"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"pattern": "(a"},
            r"does not compile: missing \), unterminated subpattern at character 0",
        ),
        ({}, "has no pattern"),
        ({"pattern": "a", "group": 2}, "no group 2"),
        ({"pattern": "(?P<x>a)", "group": "y"}, "no group 'y'"),
        ({"pattern": "a", "flags": "q"}, "no flag 'q'"),
        ({"pattern": "a", "which": "second"}, "which = 'second'"),
        ({"gold": "regexp"}, "gold = 'regexp'"),
        ({"patern": "a"}, "no parameter 'patern'; did you mean 'pattern'"),
    ],
)
def test_a_wrong_pattern_is_refused_when_the_recipe_is_read(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        Judge(Grading(graders=[{"regex": settings}]), Path())  # type: ignore[list-item]


def test_a_pattern_that_backtracks_for_ever_is_killed_and_its_neighbours_are_not() -> None:
    bad = Problem(messages=({"role": "user", "content": "?"},), gold="a")
    config = Grading(
        graders=[{"regex": {"pattern": "^(a+)+$"}}],  # type: ignore[list-item]
        timeout_s=0.5,
        workers=1,
    )
    texts = ["a", "a" * 60 + "b", "aaa"]
    with Judge(config, Path()) as judge:
        grades = list(
            judge.grade_many(
                (bad, Trace(problem_id=bad.id, index=i, text=text)) for i, text in enumerate(texts)
            )
        )
        assert judge.pool.killed == 1
    assert [grade.outcome for grade in grades] == ["correct", "error", "wrong"]
    assert "killed" in grades[1].detail
