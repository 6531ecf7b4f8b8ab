"""The default grader: what it chooses by, what it leaves alone, and agreement on real scores."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from distill.errors import MissingExtra
from distill.grade import grade_traces
from distill.grade.auto import Auto
from distill.grade.exact import Words, is_words
from distill.grade.gym import CARRIED, gradable, pack, unpack
from distill.records import Problem, Trace, write_jsonl
from distill.schema import Grading


def problem(gold: str | None = None, **metadata: Any) -> Problem:
    messages = ({"role": "user", "content": "?"},)
    return Problem(messages=messages, gold=gold, metadata=metadata)


@pytest.mark.parametrize(
    ("carried", "part"),
    [
        (problem("1", reasoning_gym={"task": "x"}, tests=["a"]), "gym"),
        (problem("1", tests=["assert f(1) == 1"], instructions=[{"id": "x"}]), "code"),
        (problem("1", instructions=[{"id": "x"}], schema={"type": "object"}), "instructions"),
        (problem(None, instruction_id_list=["x"], kwargs=[{}]), "instructions"),
        (problem("{}", schema={"type": "object"}, choices=["a", "b"]), "json_schema"),
        (problem("B", choices=["a", "b"]), "choice"),
        (problem(None, choices=["a", "b"]), ""),
        (problem("Paris"), "words"),
        (problem("12"), "math"),
        (problem(None, tests=[], schema=None), ""),
        (problem("SELECT 1", schema="CREATE TABLE t (a int)"), "math"),
        (problem(None, instructions="Be brief."), ""),
        (problem(None, schema='{"type": "object"}'), "json_schema"),
    ],
)
def test_what_a_problem_carries_says_who_judges_it(carried: Problem, part: str) -> None:
    assert Auto.part_for(carried) == part
    assert gradable(carried) == bool(part)


def test_every_key_that_makes_a_problem_gradable_has_a_part() -> None:
    for key in CARRIED:
        assert Auto.part_for(problem(**{key: [{"id": "x"}], "kwargs": [{}]})), key


@pytest.mark.parametrize(
    "gold",
    ["Paris", "New York", "Évora", r"\text{Evelyn}", "$\\text{odd}$", "No", "yes", "O'Brien",
     "Washington D. C.", "well-known", "true", "Ann"],
)  # fmt: skip
def test_golds_in_words(gold: str) -> None:
    assert is_words(gold)


@pytest.mark.parametrize(
    "gold",
    ["12", "x", "xyz", "ab", "x+y", "3 apples", "B", "pi", "infinity", "seven", "twenty-one",
     r"\frac{1}{2}", "sin x", "no solution", "undefined", "10 km", "(a, b)", "A, B", "red, blue",
     "five hundred", "one half", "", "f(x)", "a_1", "Q^2"],
)  # fmt: skip
def test_golds_that_may_be_formulas(gold: str) -> None:
    assert not is_words(gold)


@pytest.mark.parametrize(
    ("gold", "answer", "outcome"),
    [
        ("Paris", "pairs", "wrong"),
        ("Paris", r"\text{paris}", "correct"),
        ("Paris", "Paris, Texas", "wrong"),
        ("Nile", "the Nile", "correct"),
        ("The Nile", "Nile", "correct"),
        ("yes", "Yes, because 3 is odd", "correct"),
        ("no", "Yes: no doubt", "wrong"),
        ("true", "True.", "correct"),
        ("seven", "Seven", "correct"),
        (r"\text{east}", "East", "correct"),
        (r"\text{east}", "seat", "wrong"),
    ],
)
def test_answers_in_words(gold: str, answer: str, outcome: str) -> None:
    asked = problem(gold)
    grade = Auto()(asked, Trace(problem_id=asked.id, index=0, text=f"\\boxed{{{answer}}}"))
    assert grade.outcome == outcome
    assert grade.grader == "words"
    if outcome == "correct":
        assert Words()(asked, Trace(problem_id=asked.id, index=0, text=f"#### {answer}")).correct


def test_making_it_imports_nothing_that_a_problem_may_not_need() -> None:
    code = (
        "import sys; from distill.grade.auto import Auto; print(Auto().version)\n"
        "heavy = {'torch', 'sympy', 'reasoning_gym', 'lm_eval', 'nltk', 'jsonschema'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version, loaded = ran.stdout.splitlines()
    assert loaded == "[]"
    for part in (
        "math-verify",
        "reasoning-gym",
        "code ",
        "choice ",
        "json_schema ",
        "instructions ",
    ):
        assert part in version


def test_the_step_stops_where_a_package_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.grade.schema_json.util.find_spec", lambda name: None)
    write_jsonl(tmp_path / "p.jsonl", [problem("1"), problem("2", schema={"type": "object"})])
    write_jsonl(tmp_path / "t.jsonl", [])
    with pytest.raises(MissingExtra, match="grader 'json_schema' needs the package 'jsonschema'"):
        grade_traces(
            Grading(), tmp_path / "p.jsonl", tmp_path / "t.jsonl", tmp_path / "o", folder=tmp_path
        )
    assert not (tmp_path / "o").exists()


def test_entries_with_fractions_are_stored() -> None:
    entry = {"metadata": {"variables": {"a": Fraction(1, 3)}}, "__fraction__": 1}
    assert unpack(pack(entry)) == entry


@pytest.mark.slow
def test_agreement_with_the_scores_of_a_thousand_real_answers(shared: Path) -> None:
    from benchmarks.graders import FILE, JUDGED, ours, rows

    data = rows(shared / "grading" / FILE)
    grades = ours(data)
    outcomes = Counter((row.label, g.outcome) for row, g in zip(data, grades, strict=True))
    assert outcomes[True, "correct"] == sum(row.label for row in data) == 764
    assert outcomes[False, "error"] == 0
    found = {r.held["id"] for r, g in zip(data, grades, strict=True) if r.label != g.correct}
    assert found == set(JUDGED)
