"""The student's model card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from distill.errors import ModelError, StoreError
from distill.report import Report, write_model_card, write_report
from distill.report.build import collect
from distill.report.card import render_card
from tests.make_run import make_run


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return write_report(make_run(tmp_path_factory.mktemp("runs"), problems=20))


def test_it_keeps_what_the_trainer_wrote_and_is_written_once(
    report: Report, tmp_path: Path
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("---\nbase_model: x/y\ntags: [mine]\n---\n\n# Mine\n\nHow to prompt.\n")
    write_model_card(tmp_path, report)
    first = readme.read_text(encoding="utf-8")
    write_model_card(tmp_path, report)
    assert readme.read_text(encoding="utf-8") == first
    _, head, body = first.split("---\n", 2)
    front = yaml.safe_load(head)
    assert front["base_model"] == "x/y"
    assert "mine" in front["tags"]
    value = front["model-index"][0]["results"][0]["metrics"][0]["value"]
    assert value == round(100 * report.numbers["headline"]["student"], 2)
    assert "How to prompt." in body
    assert "## Limits" in body


def test_it_never_damages_a_finished_step(report: Report, tmp_path: Path) -> None:
    student = tmp_path / "student"
    student.mkdir()
    (tmp_path / "done.json").write_text(json.dumps({"files": {"student/README.md": {}}}))
    with pytest.raises(StoreError, match="part of a finished step"):
        write_model_card(student, report)
    assert not (student / "README.md").exists()


def test_it_needs_a_student(report: Report, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model folder"):
        write_model_card(tmp_path / "nowhere", report)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    numbers = collect(make_run(tmp_path, problems=8, hostile=True))
    card = render_card(numbers)
    _, head, body = card.split("---\n", 2)
    assert "<script" not in body
    assert yaml.safe_load(head)["license"] == "other"
    assert render_card(numbers, card) == card


def test_a_run_without_evaluation_claims_nothing(tmp_path: Path) -> None:
    steps = ("problems", "sample", "grade", "filter", "select", "train")
    card = render_card(collect(make_run(tmp_path, problems=8, steps=steps)))
    assert "model-index" not in card
    assert "Not evaluated." in card
