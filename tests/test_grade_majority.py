"""The majority vote: groups of equal answers, what each grade says, the filter, a whole recipe."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill import Recipe, run
from distill.errors import UsageError
from distill.filter.majority import Majority as Kept
from distill.grade import grade_traces
from distill.grade.majority import Group, agreement, answer_of, as_written, merged
from distill.records import Example, Grade, Problem, Trace, read_jsonl, read_records, write_jsonl
from distill.schema import Grading


def problem(question: str, gold: str | None = None, **metadata: Any) -> Problem:
    messages = ({"role": "user", "content": question},)
    return Problem(messages=messages, gold=gold, source="s", metadata=metadata)


def traces(of: Problem, *answers: str | None) -> list[Trace]:
    return [
        Trace(
            problem_id=of.id,
            index=i,
            text="<think>\nhm\n</think>\n\n" + ("no idea" if a is None else f"\\boxed{{{a}}}"),
        )
        for i, a in enumerate(answers)
    ]


def graded(
    folder: Path, items: list[tuple[Problem, list[Trace]]], *graders: Any
) -> tuple[list[Grade], dict[str, Any]]:
    write_jsonl(folder / "problems.jsonl", [p for p, _ in items])
    write_jsonl(folder / "traces.jsonl", [t for _, group in items for t in group])
    config = Grading(graders=list(graders) or ["auto", "majority"], workers=1, timeout_s=60)
    grade_traces(
        config, folder / "problems.jsonl", folder / "traces.jsonl", folder / "out", folder=folder
    )
    summary = json.loads((folder / "out" / "summary.json").read_text())
    return list(read_records(Grade, folder / "out" / "grades.jsonl")), summary


def test_every_grade_says_how_many_agree_and_none_is_correct(tmp_path: Path) -> None:
    open_, shut = problem("open?"), problem("shut?", "7")
    tied, mute = problem("tied?"), problem("mute?")
    items = [
        (open_, traces(open_, "42", "42.0", "41", None, "\\frac{84}{2}")),
        (shut, traces(shut, "7", "8")),
        (tied, traces(tied, "Paris", "\\text{Rome}", "paris", "Rome")),
        (mute, traces(mute, None, None)),
    ]
    grades, summary = graded(tmp_path, items)
    told = [(g.outcome, g.grader, round(g.score, 2), g.extracted, g.detail) for g in grades]
    most = "3 of 5 agree on '42'"
    assert told[:5] == [
        ("ungraded", "majority", 0.6, "42", most),
        ("ungraded", "majority", 0.6, "42", most),
        ("ungraded", "majority", 0.2, "41", "a minority: 1 of 5 agree on '41', 3 on '42'"),
        ("ungraded", "majority", 0.0, None, f"no answer; {most}"),
        ("ungraded", "majority", 0.6, "42", most),
    ]
    assert [(g.outcome, g.grader) for g in grades[5:7]] == [("correct", "math"), ("wrong", "math")]
    assert {g.detail for g in grades[7:11]} == {
        "a tie: 2 of 4 agree on 'Paris', as many on '\\text{Rome}'",
        "a tie: 2 of 4 agree on '\\text{Rome}', as many on 'Paris'",
    }
    assert grades[11].detail == "none of 2 has an answer"
    assert summary["outcomes"]["correct"] == 1
    votes = summary["majority"]
    assert {k: votes[k] for k in ("problems", "traces", "answered", "majority", "tied")} == {
        "problems": 3,
        "traces": 11,
        "answered": 8,
        "majority": 1,
        "tied": 1,
    }
    assert votes["by_share"] == [1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    assert "all stay ungraded" in " ".join(summary["notes"])


def test_where_a_reference_is_known_the_majority_can_be_checked(tmp_path: Path) -> None:
    right, wrong = problem("right?", "1"), problem("wrong?", "2")
    items = [
        (right, traces(right, "1", "1", "3")),
        (wrong, traces(wrong, "5", "5", "2")),
        (free := problem("free?"), traces(free, "1")),
    ]
    grades, summary = graded(tmp_path, items, "auto", {"majority": {"check": True}})
    assert [g.outcome for g in grades] == ["correct"] * 2 + ["wrong"] * 3 + ["correct", "ungraded"]
    checked = summary["majority"]["checked"]
    assert {k: checked[k] for k in ("problems", "decided", "right", "pass_rate")} == {
        "problems": 2,
        "decided": 2,
        "right": 1,
        "pass_rate": 0.5,
    }
    assert checked["by_share"][6] == [2, 1]
    assert summary["majority"]["problems"] == 1


def test_choices_vote_by_letter() -> None:
    asked = problem("which?", choices=["a dog", "a cat"])
    votes = [answer_of(asked, t) for t in traces(asked, "(B)", "b", "a cat", "\\text{A}", "C", "7")]
    assert votes == ["B", "B", "B", "A", None, None]


@given(st.lists(st.sampled_from(["1", "2", "3", None]), max_size=12))
def test_groups_hold_every_answer_once(answers: list[str | None]) -> None:
    groups = as_written(answers)
    places = sorted(place for group in groups for place in group.places)
    assert places == [i for i, answer in enumerate(answers) if answer is not None]
    sizes = [len(group.places) for group in groups]
    assert sizes == sorted(sizes, reverse=True)
    everything = [(a, b) for b in range(len(groups)) for a in range(b)]
    assert len(merged(groups, everything)) == min(1, len(groups))
    assert merged(groups, []) == groups


def test_equality_that_is_not_transitive_groups_by_the_larger() -> None:
    groups = [Group("a", [0, 1, 2]), Group("b", [3, 4]), Group("c", [5])]
    # b equals a, c equals b alone: c does not come to a by way of b.
    assert [g.places for g in merged(groups, [(0, 1), (1, 2)])] == [[0, 1, 2, 3, 4], [5]]


def vote(detail: str) -> Grade:
    return Grade(outcome="ungraded", grader="majority", detail=detail)


@pytest.mark.parametrize(
    ("detail", "reason"),
    [
        ("5 of 8 agree on '42'", None),
        ("4 of 8 agree on '42'", "4 of 8 agree on '42', less than 60%"),
        ("3 of 3 agree on '42'", "3 of 3 agree on '42', fewer than 4"),
        ("a minority: 5 of 8 agree on 'x'", "a minority: 5 of 8 agree on 'x'"),
        ("a tie: 4 of 8 agree on 'x'", "a tie: 4 of 8 agree on 'x'"),
        ("no answer; 7 of 8 agree on '42'", "no answer; 7 of 8 agree on '42'"),
        ("none of 8 has an answer", "none of 8 has an answer"),
    ],
)
def test_the_filter_keeps_what_enough_agree_on(detail: str, reason: str | None) -> None:
    asked = problem("open?")
    assert Kept()(asked, traces(asked, "42")[0], vote(detail)) == reason


def test_the_filter_lets_everything_else_pass() -> None:
    free, known = problem("open?"), problem("known?", "1")
    trace = traces(free, "42")[0]
    minority = vote("a minority: 1 of 8 agree on '1', 7 on '2'")
    assert Kept()(free, trace, Grade(outcome="correct", grader="judge")) is None
    assert Kept()(known, trace, minority) is None
    uncounted = Grade(outcome="ungraded", grader="auto", detail="5 of 5 agree on '1'")
    assert "name `majority`" in str(Kept()(free, trace, uncounted))
    kept = Kept()
    kept.begin({known.id: known}, {})
    assert "all problems have a reference" in kept.notes[0]
    kept.begin({known.id: known, free.id: free}, {})
    assert kept.notes == []
    with pytest.raises(UsageError, match="share"):
        Kept(share=60)


@given(st.text(max_size=80))
def test_no_answer_can_pass_for_an_agreement(answer: str) -> None:
    found = agreement(vote(f"a minority: 1 of 8 agree on '{answer}', 5 on '{answer}'"))
    assert found is not None
    assert (found.kind, found.agree, found.traces) == ("minority", 1, 8)


def test_torn_traces_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.grade.majority.BATCH", 1)
    one, other = problem("one?"), problem("other?")
    first, second = traces(one, "1", "1")
    items = [(one, [first]), (other, traces(other, "2")), (one, [second])]
    grades, summary = graded(tmp_path, items)
    assert [g.detail for g in grades] == [f"1 of 1 agree on '{a}'" for a in (1, 2, 1)]
    assert "do not stand together" in " ".join(summary["notes"])


@pytest.mark.slow
def test_a_recipe_trains_on_what_the_majority_says(tmp_path: Path) -> None:
    rows = [{"problem": f"Question {i}?"} for i in range(3)]
    (tmp_path / "open.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    answers = [["7"] * 4 + ["8"], ["7", "8", "9", "7", "8"], ["1/2", "0.5", "0.50", "x", "1/2"]]
    (tmp_path / "told.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "prompt": row["problem"],
                    "text": f"<think>\nI try {i} for {row['problem']}\n</think>\n\n\\boxed{{{a}}}",
                }
            )
            + "\n"
            for row, group in zip(rows, answers, strict=True)
            for i, a in enumerate(group)
        )
    )
    recipe = Recipe.from_dict(
        {
            "name": "vote",
            "problems": {
                "instruction": "",
                "heldout": 0,
                "sources": [{"file": str(tmp_path / "open.jsonl"), "name": "open", "gold": None}],
            },
            "teacher": {"engine": "replay", "model": str(tmp_path / "told.jsonl")},
            "sampling": {"n": 5, "max_tokens": 64},
            "grading": {"graders": ["auto", "majority"]},
            "filters": [
                "truncated",
                {"correct": {"ungraded": "keep"}},
                {"majority": {"share": 0.6, "least": 4}},
                "format",
            ],
            "select": {"per_problem": 8},
            "evaluate": {"tasks": []},
        }
    )
    report = run(recipe, until="select", runs=tmp_path / "runs")
    steps = json.loads((report.path.parent / "run.json").read_text())["steps"]
    folders = {name: tmp_path / "runs" / step["folder"] for name, step in steps.items()}
    grades = Counter(g["outcome"] for g in read_jsonl(folders["grade"] / "grades.jsonl"))
    assert grades == {"ungraded": 15}
    verdicts = list(read_jsonl(folders["select"] / "verdicts.jsonl"))
    assert Counter(v["filter"] for v in verdicts) == {"": 8, "majority": 7}
    said = [
        e.messages[-1]["content"]
        for e in read_records(Example, folders["select"] / "dataset.jsonl")
    ]
    assert sum("\\boxed{7}" in text for text in said) == 4
    assert not any("\\boxed{8}" in text or "\\boxed{x}" in text for text in said)
