"""What the page's own files hold, and what all three files say of better, worse and tokens."""

from __future__ import annotations

import base64
import csv
import json
import re
from io import StringIO

import pytest

from distill.report import Report, downloads, result_tables, words, write_report
from tests.make_run import make_run


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return write_report(make_run(tmp_path_factory.mktemp("runs")))


def read(report: Report, name: str) -> str:
    return (report.path.parent / name).read_text(encoding="utf-8")


def test_the_numbers_can_be_saved_from_the_page(report: Report) -> None:
    files = {f.name: saved(f) for f in downloads.files(report.numbers)}
    models = list(csv.DictReader(StringIO(files["results.csv"])))
    assert [m["model"] for m in models] == ["base", "base-best", "student", "teacher"]
    assert float(models[2]["pass@1"]) == report.numbers["headline"]["student"]
    gaps = {d["difference"]: d for d in csv.DictReader(StringIO(files["differences.csv"]))}
    assert float(gaps["student-base-best"]["value"]) == report.gain
    steps = list(csv.DictReader(StringIO(files["funnel.csv"])))
    assert [s["left"] for s in steps] == [
        str(s["left"]) for s in report.numbers["funnel"]["stages"]
    ]
    assert len(files["training.csv"].splitlines()) == 121
    whole = json.loads(files["numbers.json"])
    assert whole["headline"] == report.numbers["headline"]
    assert "traces" not in whole


def saved(file: downloads.File) -> str:
    return base64.b64decode(file.href.partition("base64,")[2]).decode("utf-8")


def test_a_spreadsheet_takes_no_name_for_a_formula(report: Report) -> None:
    evaluation = report.numbers["evaluation"]
    task = evaluation["tasks"]["heldout"]
    evil = {**report.numbers, "evaluation": {**evaluation, "tasks": {"=cmd()": task}}}
    (results,) = (f for f in downloads.files(evil) if f.name == "results.csv")
    rows = list(csv.DictReader(StringIO(saved(results))))
    assert {row["task"] for row in rows} == {"'=cmd()"}


def test_budgets_go_as_far_as_the_longest_answer_of_any_model() -> None:
    models = [
        {"role": "base", "within_tokens": [[64, 0.0], [128, 0.0], [256, 0.25]]},
        {"role": "student", "within_tokens": [[64, 0.0], [128, 0.0], [256, 0.5], [512, 0.75]]},
        {"role": "teacher", "pass@1": None},
    ]
    assert result_tables.budgets({"models": models}) == {
        "base": [(128, 0.0), (256, 0.25), (512, 0.25)],
        "student": [(128, 0.0), (256, 0.5), (512, 0.75)],
    }
    silent = [{"role": "base", "within_tokens": [[64, 0.0]]}]
    assert result_tables.budgets({"models": silent}) == {}


def test_regressions_stand_beside_gains_in_all_three_files(report: Report) -> None:
    lead = report.numbers["headline"]
    told = f"{lead['better']} better, {lead['worse']} worse, {lead['same']} unchanged"
    assert told in str(report)
    assert told in read(report, "report.md")
    page = re.sub(r"<[^>]+>", "", read(report, "report.html").split("<nav", maxsplit=1)[0])
    assert told in page


def test_accuracy_against_tokens_is_drawn_and_told(report: Report) -> None:
    page = read(report, "report.html")
    assert page.count('id="tokens-0-wide-title"') == 1
    task = report.numbers["evaluation"]["tasks"]["heldout"]
    found = result_tables.tokens_table(task)
    assert found is not None
    student = next(m for m in task["models"] if m["role"] == "student")
    last = found.rows[2][-1]
    assert (found.rows[2][0], last) == ("student", words.percent(student["pass@1"]))
    assert f"| student | {' | '.join(found.rows[2][1:])} |" in read(report, "report.md")
    assert "0 of 15 problems overlap with the training set." in page


def test_what_answers_look_like_is_a_table(report: Report) -> None:
    text = read(report, "report.md")
    assert "| base | 40 | 180 | 330 | 371 | 10.0% | 10.0% | 0.0% | 5.0% | 0.0% |" in text
    assert "thinking never ended" in read(report, "report.html")
    task = report.numbers["evaluation"]["tasks"]["heldout"]
    bare = [{k: v for k, v in m.items() if k != "text"} for m in task["models"]]
    assert result_tables.answers_table({**task, "models": bare}) is None


def test_tasks_of_lm_eval_say_how_they_were_asked() -> None:
    row = {"task": "mmlu", "metric": "acc", "values": {"base": 0.5}, "stderr": {"base": 0.01}}
    settings = {"backend": "lm-eval hf", "samples": 1, "fewshot": 5, "limit": 100}
    found = result_tables.lm_eval_table({"lm_eval": [{**row, "settings": settings}]})
    assert found is not None
    assert found.rows == [
        ["mmlu", "acc", "0.500 ± 0.010", "lm-eval hf, 5 examples, 100 problems at most"]
    ]
    plain = result_tables.lm_eval_table({"lm_eval": [{**row, "settings": {}}]})
    assert plain is not None
    assert plain.columns == ["task", "metric", "base"]
