"""Reference answers that cannot be read: named once per source, before anything is sampled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill import Recipe
from distill.errors import UsageError
from distill.grade.exact import Exact
from distill.grade.golds import check_golds, check_ready, kind_of, own_versions, reads
from distill.job import Job
from distill.records import Problem
from distill.schema import Grading
from distill.step import Workspace

WORDS = "\\text{Softball, Kickball}"


def problems(golds: list[str | None], source: str = "s", **metadata: Any) -> list[Problem]:
    return [
        Problem(
            messages=({"role": "user", "content": f"{source} {i}"},),
            gold=gold,
            source=source,
            metadata=metadata,
        )
        for i, gold in enumerate(golds)
    ]


def grading(**keys: Any) -> Grading:
    return Grading.model_validate(keys)


def test_readable_answers_say_nothing_and_start_no_worker() -> None:
    golds: list[str | None] = ["1", "\\frac{1}{2}", "x^2+1", "(1, 2]", "\\text{(A)}", "B", None]
    assert check_golds(problems(golds), Grading()) == []


def test_one_note_for_each_source_with_counts_and_an_example() -> None:
    found = check_golds(
        [*problems(["1", WORDS, "2", WORDS], "a"), *problems(["1"], "b"), *problems([WORDS], "c")],
        Grading(),
    )
    assert found == [
        "source 'a': 2 of 4 reference answers cannot be read as mathematics, "
        f"e.g. {WORDS!r}: traces can match them only as text",
        "source 'c': 1 of 1 reference answers cannot be read as mathematics, "
        f"e.g. {WORDS!r}: traces can match them only as text",
    ]


def test_only_answers_that_math_will_judge_are_looked_at() -> None:
    asked = problems([WORDS])
    assert check_golds(asked, grading(graders=["exact"])) == []
    assert check_golds(asked, grading(by_source={"s": ["exact"]})) == []
    assert check_golds(asked, grading(graders=["exact"], by_source={"s": ["math"]}))
    assert check_golds(problems([WORDS], grader="exact"), Grading()) == []
    assert check_golds(problems([WORDS], grader="math"), grading(graders=["exact"]))
    assert check_golds(problems(["Paris"]), Grading()) == []  # `auto` compares words as words


def test_an_answer_that_is_compared_as_text_for_its_length_is_counted() -> None:
    (note,) = check_golds(problems(["1+" * 2000 + "1", "1"]), Grading())
    assert "1 of 2 reference answers" in note
    assert len(note) < 250


def test_graders_that_problems_name_wrongly_are_found_too() -> None:
    (note,) = check_golds(problems(["1", "2"], grader="mth"), Grading())
    assert "source 's': the graders that 2 problems name for themselves cannot be had" in note
    assert "did you mean 'math'?" in note


@pytest.mark.parametrize("gold", ["", "\x00", "\ud800", "{" * 50, "\\frac{1}{", "$$", "\\\\", "^"])
def test_any_answer_has_a_kind(gold: str) -> None:
    assert kind_of(gold) in ("mathematics", "words", "open")


def test_sympy_reads_what_is_left_open() -> None:
    golds: list[str | None] = ["\\int_0^1 x dx", "\\frac{}{", "\\lim_{x \\to 0} x"]
    assert [kind_of(str(gold)) for gold in golds] == ["open"] * 3
    (note,) = check_golds(problems(golds), Grading())
    assert note.startswith("source 's': 1 of 3 reference answers cannot be read")
    assert repr(golds[1]) in note


def test_the_notes_stand_in_the_summary_of_the_problems_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"q": f"{i}?", "a": gold} for i, gold in enumerate(["1", WORDS])]
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    def done(**section: Any) -> Any:
        source = {"file": str(tmp_path / "q.jsonl"), "question": "q", "gold": "a", "name": "mine"}
        asked = {"sources": [source], "heldout": 0}
        recipe = Recipe.from_dict({"name": "t", "problems": asked, "grading": section})
        return Job(recipe, Workspace(tmp_path / "runs")).problems()

    first = done()
    notes = json.loads((first.folder / "summary.json").read_text())["notes"]
    assert [n for n in notes if "cannot be read" in n]
    assert "source 'mine': 1 of 2 reference answers cannot be read" in caplog.text
    assert done(timeout_s=9).folder == first.folder
    exact = done(graders=["exact"])
    assert exact.folder != first.folder
    assert json.loads((exact.folder / "summary.json").read_text())["notes"] == []


def test_what_a_grader_lacks_for_its_problems_is_found_first(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from distill.errors import UsageError\n"
        "from distill.grade.base import StagedGrader\n"
        "class Picky(StagedGrader):\n"
        "    version = '1'\n"
        "    def ready(self, problems):\n"
        "        if problems:\n"
        "            raise UsageError(f'cannot judge {len(problems)} problems')\n"
    )
    asked = [*problems(["1"] * 3, "a"), *problems(["1"] * 2, "b"), *problems(["1"], grader="exact")]
    mine = ["./mine.py:Picky"]
    with pytest.raises(UsageError, match="cannot judge 5 problems"):
        check_ready(asked, grading(graders=mine), tmp_path)
    with pytest.raises(UsageError, match="cannot judge 2 problems"):
        check_ready(asked, grading(by_source={"b": mine}), tmp_path)
    check_ready(asked, grading(by_source={"c": mine}), tmp_path)


def test_graders_that_problems_name_count_for_the_grades_identity(tmp_path: Path) -> None:
    rows = [{"q": f"{i}?", "a": "1"} for i in range(3)]
    (tmp_path / "mine.py").write_text(
        "def problems():\n"
        "    own = {'grader': {'exact': {'case': True}}}\n"
        "    yield {'question': '1?', 'gold': '1', 'metadata': own}\n"
        "    yield {'question': '2?', 'gold': '1', 'metadata': {'grader': 'mth'}}\n"
        "    yield {'question': '3?', 'gold': '1'}\n"
    )
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    def summary(source: dict[str, str]) -> dict[str, Any]:
        recipe = Recipe.from_dict({"name": "t", "problems": {"sources": [source], "heldout": 0}})
        done = Job(recipe, Workspace(tmp_path / "runs")).problems()
        return dict(json.loads((done.folder / "summary.json").read_text()))

    named = summary({"call": f"{tmp_path}/mine.py:problems"})
    assert named["own_graders"] == {"exact": {"case": True}}
    assert own_versions(named) == {"own": {"exact": Exact.version}}
    plain = summary({"file": str(tmp_path / "q.jsonl"), "question": "q", "gold": "a"})
    assert own_versions(plain) == {}


def test_the_default_graders_leave_identities_as_they_were() -> None:
    assert reads(Grading()) == {}
    assert reads(grading(graders=["math"])) == {"golds": {"": ["math"]}}
    assert reads(grading(by_source={"a": ["exact"]})) == {"golds": {"": ["auto"], "a": []}}
