"""The judge and the grade step: six outcomes, order, several graders, the summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.errors import UsageError
from distill.grade import Judge, grade_traces, grading_identity
from distill.grade.auto import Auto
from distill.grade.base import Check
from distill.grade.exact import Exact
from distill.grade.gym import KEY, ReasoningGym, pack, unpack
from distill.problems import load_source
from distill.records import OUTCOMES, Grade, Problem, Trace, read_jsonl, write_jsonl
from distill.schema import Grading, Problems, SourceSpec

MINE = """
import time
from distill.records import Grade

def grade(problem, trace):
    if "hang" in trace.text:
        time.sleep(1000)
    return Grade(outcome="correct" if "good" in trace.text else "ungraded", extracted="mine")

class Length:
    name, version = "length", "7"
    def __init__(self, most):
        self.most = most
    def __call__(self, problem, trace):
        return Grade(outcome="correct" if len(trace.text) <= self.most else "wrong")

def scored(problem, trace, *, factor):
    return Grade(outcome="wrong", score=0.1 * factor)
"""


def problem(gold: str | None, question: str = "?", **metadata: Any) -> Problem:
    messages = ({"role": "user", "content": question},)
    return Problem(messages=messages, gold=gold, source="s", metadata=metadata)


def trace(text: str, of: Problem, index: int = 0, finish: str = "stop") -> Trace:
    return Trace(problem_id=of.id, index=index, text=text, finish_reason=finish)


def grading(*graders: Any, timeout_s: float = 60) -> Grading:
    return Grading(graders=list(graders) or ["auto"], timeout_s=timeout_s, workers=1)


def gym_problems(task: str, size: int = 3, **config: Any) -> list[Problem]:
    spec = SourceSpec(task=task, size=size, config=config)
    return list(load_source(spec, Problems(), Path()))


def test_the_six_outcomes(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    p, free = problem("x+1"), problem(None)
    pairs = [
        (p, trace("<think>a</think> \\boxed{1+x}", p)),
        (p, trace("<think>a</think> \\boxed{x+2}", p)),
        (p, trace("<think>\\boxed{x+1}", p)),
        (p, trace("<think>\\boxed{x+1}", p, finish="length")),
        (free, trace("\\boxed{1}", free)),
    ]
    with Judge(grading(), tmp_path) as judge:
        outcomes = [g.outcome for g in judge.grade_many(pairs)]
    with Judge(grading("./mine.py:grade", timeout_s=0.5), tmp_path) as judge:
        outcomes.append(judge.grade(p, trace("hang", p)).outcome)
    assert outcomes == ["correct", "wrong", "unparsed", "truncated", "ungraded", "error"]
    assert set(outcomes) == set(OUTCOMES)


def test_grades_come_in_order_around_a_hang(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    p = problem("1")
    texts = ["good", "hang", "good", "bad", "good"] * 3
    with Judge(grading("./mine.py:grade", timeout_s=0.3), tmp_path) as judge:
        grades = list(judge.grade_many((p, trace(t, p, i)) for i, t in enumerate(texts)))
    assert [g.outcome for g in grades] == ["correct", "error", "correct", "ungraded", "correct"] * 3
    assert grades[0].grader == "grade"
    assert grades[0].version.startswith("source:")


def test_first_decisive_grader_wins(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    p = problem("5")
    with Judge(grading("exact", "./mine.py:grade"), tmp_path) as judge:
        found = [
            judge.grade(p, trace(t, p))
            for t in ("good \\boxed{5}", "good \\boxed{6}", "good, no box", "neither")
        ]
    assert [(g.outcome, g.grader) for g in found] == [
        ("correct", "exact"),
        ("wrong", "exact"),
        ("correct", "grade"),
        ("unparsed", "exact"),
    ]


def test_parameters_of_graders(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    p = problem("Paris")
    t = trace("The answer is paris.", p)
    with Judge(grading("exact"), tmp_path) as judge:
        assert judge.grade(p, t).correct
    with Judge(grading({"exact": {"case": True}}), tmp_path) as judge:
        assert not judge.grade(p, t).correct
    with Judge(grading({"./mine.py:Length": {"most": 5}}), tmp_path) as judge:
        assert judge.grade(p, t).outcome == "wrong"
    with Judge(grading({"./mine.py:scored": {"factor": 3}}), tmp_path) as judge:
        assert judge.grade(p, t).score == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("grader", "words"),
    [
        ("exakt", "did you mean 'exact'"),
        ({"exact": {"cases": 1}}, "cases"),
        ("./none.py:f", "no file"),
        ({"./mine.py:scored": {"factor": 1, "factr": 3}}, "factr"),
    ],
)
def test_wrong_graders_are_refused_before_anything_runs(
    tmp_path: Path, grader: Any, words: str
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    with pytest.raises(UsageError, match=words):
        Judge(grading(grader), tmp_path)


def test_objects_run_in_this_process(tmp_path: Path) -> None:
    seen: list[str] = []

    def mine(p: Problem, t: Trace) -> Grade:
        seen.append(t.text)
        if t.text == "bad":
            raise ValueError("no")
        return Grade(outcome="correct")

    p = problem("1")
    with Judge(grading(), tmp_path, graders=[mine]) as judge:
        grades = list(judge.grade_many((p, trace(t, p)) for t in ("good", "bad")))
    assert [g.outcome for g in grades] == ["correct", "error"]
    assert seen == ["good", "bad"]


def test_equal_checks_are_made_once(tmp_path: Path) -> None:
    p = problem("1")
    pairs = [(p, trace("R: 1", p, i)) for i in range(50)]
    with Judge(grading({"regex": {"pattern": "R: (.)"}}), tmp_path) as judge:
        assert all(g.correct for g in judge.grade_many(pairs))
        assert judge.pool._tickets == 1


@pytest.mark.slow
def test_reasoning_gym_by_its_own_scorer(tmp_path: Path) -> None:
    problems = gym_problems("chain_sum", min_terms=2, max_terms=2)
    first = problems[0]
    texts = {
        f"\\boxed{{{first.gold}}}": ("correct", 1.0),
        f"\\boxed{{\\text{{{first.gold}}}}}": ("correct", 1.0),
        f"\\boxed{{{first.gold} apples}}": ("wrong", None),
        str(first.gold): ("correct", 1.0),
        f"It may be {first.gold} or not": ("unparsed", None),
        "": ("unparsed", 0.0),
    }
    with Judge(grading(), tmp_path) as judge:
        for text, (outcome, score) in texts.items():
            grade = judge.grade(first, trace(text, first))
            assert grade.outcome == outcome, text
            assert grade.score == score if score is not None else grade.score < 1
            assert grade.grader == "reasoning_gym"


def test_reasoning_gym_entries_survive_json() -> None:
    tricky = gym_problems("rearc", 1)[0]
    grader = ReasoningGym()
    again = json.loads(json.dumps(dict(tricky.metadata)))
    loaded = Problem(messages=tricky.messages, gold=tricky.gold, metadata=again)
    grade = grader(loaded, trace(f"\\boxed{{{tricky.gold}}}", loaded))
    assert grade.correct, grade


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(json_like)
def test_pack_and_unpack(value: Any) -> None:
    assert unpack(json.loads(json.dumps(pack(value)))) == value


def test_pack_refuses_what_json_cannot_hold() -> None:
    with pytest.raises(TypeError, match="object"):
        pack({"a": [object()]})
    assert unpack(pack({1, 2})) == {1, 2}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.text(max_size=80), st.text(max_size=20), st.sampled_from(["stop", "length"]))
def test_quick_parts_survive_any_text(text: str, gold: str, finish: str) -> None:
    gym, plain = problem(gold, **{KEY: {"task": "chain_sum", "entry": {}}}), problem(gold)
    for grader in (Auto(), Exact(), ReasoningGym()):
        for p in (gym, plain):
            result = grader.quick(p, trace(text, p, finish=finish))
            if isinstance(result, Check):
                assert result.args
                json.dumps(result.part)
            else:
                assert result.outcome in OUTCOMES
                assert result.outcome != "error", result.detail
                assert result.score == float(result.outcome == "correct")
                assert (result.outcome == "truncated") <= (finish == "length")


def test_the_step(tmp_path: Path) -> None:
    problems = [problem("1", "a?"), problem("2", "b?"), problem("3", "c?")]
    write_jsonl(tmp_path / "problems.jsonl", problems)
    texts = [("\\boxed{1}", "stop"), ("\\boxed{1}", "stop"), ("<think>", "length")]
    rows = [
        trace(text, p, i, finish) for p in problems for i, (text, finish) in enumerate(texts)
    ] + [Trace(problem_id="unknown", index=0, text="\\boxed{1}")]
    write_jsonl(tmp_path / "traces.jsonl", rows)
    out = tmp_path / "out"
    config = grading()
    grade_traces(
        config, tmp_path / "problems.jsonl", tmp_path / "traces.jsonl", out, folder=tmp_path
    )
    grades = list(read_jsonl(out / "grades.jsonl"))
    assert [(g["problem_id"], g["index"]) for g in grades] == [
        (t.problem_id, t.index) for t in rows
    ]
    assert [g["outcome"] for g in grades[:3]] == ["correct", "correct", "truncated"]
    assert grades[-1]["outcome"] == "error"
    assert grades[-1]["detail"] == "no such problem"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["traces"] == 10
    assert summary["outcomes"] == {
        "correct": 2,
        "wrong": 4,
        "unparsed": 0,
        "truncated": 3,
        "error": 1,
        "ungraded": 0,
    }
    assert summary["by_source"]["s"]["truncated"] == 3
    assert summary["pass_rate_histogram"] == [3, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    assert summary["problems_with_correct"] == 1
    assert summary["grader"] == "auto"
    assert "1 traces could not be judged" in summary["notes"][0]


def test_identity_has_the_versions_and_no_run_time_fields(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    identity = grading_identity(grading("auto", {"./mine.py:Length": {"most": 5}}), tmp_path)
    assert "math-verify" in identity["versions"][0]
    assert "reasoning-gym" in identity["versions"][0]
    assert identity["versions"][1] == "7"
    assert "workers" not in identity
    json.dumps(identity)


@pytest.mark.slow
def test_every_reasoning_gym_task_accepts_its_own_answer(tmp_path: Path) -> None:
    from reasoning_gym.factory import DATASETS

    # These tasks hold no reference answer, or one that their own scorer does not take.
    without = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
    pairs = []
    for task in sorted(set(DATASETS) - without - {"composite"}):
        p = gym_problems(task, 1)[0]
        pairs.append((p, trace(f"<answer>{p.gold}</answer>", p)))
    with Judge(grading(), tmp_path) as judge:
        wrong = [
            (p.source, g)
            for (p, _), g in zip(pairs, judge.grade_many(pairs), strict=True)
            if not g.correct
        ]
    assert not wrong
