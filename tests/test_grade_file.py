"""`distill grade --file`: every row comes back graded, or with the reason why it is not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distill.cli import main


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"gold": "1/2", "response": "<think>?</think> It is \\boxed{0.5}", "source": "a", "id": 7},
        {"gold": 7, "response": "The answer is 8.", "source": "b"},
        {"gold": "7", "response": "<think>7 or", "finish_reason": "length"},
        {"response": "7"},
        {"gold": "7", "response": "7", "metadata": {"grader": "mth"}},
        {"gold": "7", "pred": "7"},
        {"gold": "7", "response": ["7"]},
        {"gold": "\ud800", "response": "\\boxed{\ud800}"},
    ]
    lines = [json.dumps(row) for row in rows]
    path.write_bytes("\n".join([*lines, "{", "[1]", ""]).encode() + b"\xff\n")
    return path


def test_rows_come_back_in_order_with_their_grades(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["grade", "--file", str(file)]) == 0
    told = capsys.readouterr()
    rows = rows_of(told.out)
    outcomes = "correct wrong truncated ungraded error error error correct error error error"
    assert [row["outcome"] for row in rows] == outcomes.split()
    assert rows[0] | {"version": ""} == {
        "gold": "1/2",
        "response": "<think>?</think> It is \\boxed{0.5}",
        "source": "a",
        "id": 7,
        "outcome": "correct",
        "score": 1.0,
        "extracted": "0.5",
        "grader": "math",
        "version": "",
        "detail": "",
    }
    assert "did you mean 'math'" in rows[4]["detail"]
    assert rows[5]["detail"] == "'response' is missing; keys: gold, pred"
    assert rows[6]["detail"].startswith("'response' is a list")
    assert rows[8] == rows[8] | {"line": 9, "grader": "", "score": 0.0}
    assert "not JSON" in rows[10]["detail"]
    assert "11 rows in" in told.err
    assert "5 rows could not be used; first: row 6: 'response' is missing" in told.err
    assert re.search(r"^ +correct +wrong +truncated +error +ungraded$", told.err, re.MULTILINE)
    assert re.search(r"^all +2 +1 +1 +6 +1\n +18.2%", told.err, re.MULTILINE)
    assert re.search(r"^b +0 +1 +0 +0 +0$", told.err, re.MULTILINE)


def test_a_file_for_the_rows_and_a_summary(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "graded.jsonl"
    assert main(["grade", "--file", str(file), "--out", str(out), "--json", "--limit", "3"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["rows"] == 3
    assert summary["outcomes"]["correct"] == summary["outcomes"]["truncated"] == 1
    assert summary["by_source"]["b"]["wrong"] == 1
    assert [row["outcome"] for row in rows_of(out.read_text())] == ["correct", "wrong", "truncated"]
    assert main(["grade", "--file", str(file), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(summary)


def test_graders_by_override_and_by_recipe(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["grade", "--file", str(file), "--limit", "1", "--quiet"]
    assert main([*command, "grading.graders=[exact]"]) == 0
    assert rows_of(capsys.readouterr().out)[0]["outcome"] == "wrong"
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: mine\ngrading: {graders: [math], by_source: {a: [exact]}}\n")
    assert main([*command, str(recipe)]) == 0
    assert rows_of(capsys.readouterr().out)[0]["grader"] == "exact"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--file", "nowhere.jsonl"], 2, "no file 'nowhere.jsonl'"),
        (["--file", "FILE", "grading.graders=[mth]"], 2, "did you mean 'math'?"),
        (["--file", "FILE", "grading.combin=all"], 2, "did you mean 'combine'?"),
        (["--file", "FILE", "sampling.n=2"], 2, "'sampling.n=2' is no key of grading"),
        (["--file", "BAD"], 1, "no row of"),
        (["--file", "EMPTY"], 1, "the file is empty"),
        ([], 2, "needs a recipe"),
    ],
)
def test_exit_codes(
    words: list[str],
    code: int,
    message: str,
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad, empty = tmp_path / "bad.jsonl", tmp_path / "empty.jsonl"
    bad.write_text('{"gold": "1", "pred": "1"}\n')
    empty.write_text("\n")
    names = {"FILE": str(file), "BAD": str(bad), "EMPTY": str(empty)}
    assert main(["grade", *(names.get(word, word) for word in words)]) == code
    assert message in capsys.readouterr().err


def test_tests_in_a_row_reach_their_grader(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(
        "from distill.records import Grade\n"
        "def count(problem, trace):\n"
        "    return Grade(outcome='correct', extracted=str(len(problem.metadata['tests'])))\n"
    )
    path, recipe = tmp_path / "rows.jsonl", tmp_path / "mine.yaml"
    path.write_text(json.dumps({"response": "x", "tests": [1, 2], "metadata": {"a": 1}}) + "\n")
    recipe.write_text("name: mine\ngrading: {graders: ['./mine.py:count']}\n")
    assert main(["grade", "--file", str(path), str(recipe), "--quiet"]) == 0
    assert rows_of(capsys.readouterr().out)[0]["extracted"] == "2"


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"gold": "1", "response": "\\\\boxed{1}"}\n' * 3000)
    command = f"{sys.executable} -m distill.cli grade --file {path} --quiet | head -1"
    ran = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert json.loads(ran.stdout)["outcome"] == "correct"
    assert ran.stderr == ""
