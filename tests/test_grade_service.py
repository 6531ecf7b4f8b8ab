"""Which graders judge a problem, what several of them say together, and any text whatever."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill import Recipe
from distill.agreement import check_agreement
from distill.errors import RecipeError, UsageError
from distill.grade import Judge, grading_identity
from distill.grade.base import Check, StagedGrader
from distill.grade.combine import ORDER, How, combined, decides
from distill.grade.extract import final_answer
from distill.grade.parts import JUDGE, KNOWN, GraderSpec, build, own_specs
from distill.records import OUTCOMES, Grade, Outcome, Problem, Trace, to_row
from distill.schema import Grading

ROOT = Path(__file__).parent.parent
SAYS = """
from distill.records import Grade

def says(problem, trace, *, word="correct", name="says"):
    return Grade(outcome=word, grader=name, version="1", score=0.5 if word == "wrong" else 1.0)
"""


def problem(gold: str | None = "1", source: str = "", **metadata: Any) -> Problem:
    return Problem(
        messages=({"role": "user", "content": "?"},), gold=gold, source=source, metadata=metadata
    )


def trace(text: str, index: int = 0) -> Trace:
    return Trace(problem_id="", index=index, text=text)


def grades_of(config: Grading, *pairs: tuple[Problem, str], folder: Path = Path()) -> list[Grade]:
    with Judge(config, folder) as judge:
        return list(judge.grade_many((p, trace(text)) for p, text in pairs))


def says(*words: Outcome) -> list[Grade]:
    return [Grade(outcome=word, grader=f"g{i}", version="1") for i, word in enumerate(words)]


@pytest.mark.parametrize(
    ("how", "words", "outcome"),
    [
        ("first", ["unparsed", "wrong", "correct"], "wrong"),
        ("first", ["ungraded", "error", "unparsed"], "error"),
        ("first", ["ungraded"], "ungraded"),
        ("all", ["correct", "correct"], "correct"),
        ("all", ["correct", "ungraded"], "correct"),
        ("all", ["correct", "wrong"], "wrong"),
        ("all", ["correct", "error"], "error"),
        ("all", ["unparsed", "error", "correct"], "unparsed"),
        ("all", ["correct", "truncated"], "truncated"),
        ("all", ["ungraded", "ungraded"], "ungraded"),
        ("any", ["wrong", "correct"], "correct"),
        ("any", ["wrong", "error"], "error"),
        ("any", ["unparsed", "wrong"], "wrong"),
        ("any", ["truncated", "unparsed"], "truncated"),
        ("any", ["ungraded", "unparsed"], "unparsed"),
    ],
)
def test_what_several_graders_say_together(how: How, words: list[Outcome], outcome: str) -> None:
    asked = list(itertools.takewhile(lambda g: not decides(how, g), says(*words)))
    asked = says(*words)[: len(asked) + 1]  # as the service does: nobody is asked in vain
    assert combined(how, asked).outcome == outcome


def test_all_and_any_do_not_depend_on_the_order_and_stop_early_without_a_change() -> None:
    for how in ("all", "any"):
        for words in itertools.product(OUTCOMES, repeat=3):
            whole = combined(how, says(*words)).outcome
            for order in itertools.permutations(words):
                grades = says(*order)
                stop = next((i for i, g in enumerate(grades) if decides(how, g)), 2)
                assert combined(how, grades[: stop + 1]).outcome == whole
    assert all(sorted(order) == sorted(OUTCOMES) for order in ORDER.values())


def test_a_combined_grade_says_who_said_what() -> None:
    wrong = combined("all", says("correct", "ungraded", "wrong"))
    assert (wrong.grader, wrong.detail) == ("g2", "all (g0: correct, g2: wrong)")
    agreed = combined("all", says("correct", "correct"))
    assert (agreed.grader, agreed.version) == ("g0, g1", "1")
    assert combined("any", says("ungraded", "correct")).detail == ""


def test_graders_together_in_workers(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SAYS)
    for how, outcome in (("first", "correct"), ("all", "wrong"), ("any", "correct")):
        mine = [{"./mine.py:says": {"word": word}} for word in ("ungraded", "correct", "wrong")]
        config = Grading(graders=mine, combine=how, workers=1)  # type: ignore[arg-type]
        (grade,) = grades_of(config, (problem(), "1"), folder=tmp_path)
        assert grade.outcome == outcome


def test_a_source_and_a_problem_have_graders_of_their_own() -> None:
    config = Grading(
        graders=["math"],  # type: ignore[list-item]
        by_source={"words": ["exact"], "cased": [{"exact": {"case": True}}]},  # type: ignore[list-item]
    )
    own = problem("Paris", "words", grader={"exact": {"case": True}})
    grades = grades_of(
        config,
        (problem("1/2"), "\\boxed{0.5}"),
        (problem("1/2", "words"), "\\boxed{0.5}"),
        (problem("Paris", "words"), "\\boxed{paris}"),
        (problem("Paris", "cased"), "\\boxed{paris}"),
        (own, "\\boxed{paris}"),
        (problem("Paris", "cased", grader="exact"), "\\boxed{paris}"),
        (problem("2", "words", grader=["exact", "math"]), "\\boxed{2}"),
    )
    assert [g.grader for g in grades] == ["math", *["exact"] * 6]
    assert [g.correct for g in grades] == [True, False, True, False, False, True, True]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("mth", "did you mean 'math'?"),
        ("./mine.py:grade", "names './mine.py:grade'"),
        ("os:system", "names 'os:system'"),
        ("judge", "names 'judge'"),
        ({"exact": {"cas": True}}, "did you mean 'case'?"),
        ({"code": {"sandbox": "http://elsewhere"}}, "sets parameters of 'code'"),
        (7, "metadata['grader'] is 7"),
        ([["exact"]], "metadata['grader'] is"),
        ({"a": {}, "b": {}}, "metadata['grader'] is"),
    ],
)
def test_a_problem_cannot_name_what_is_imported(named: Any, message: str) -> None:
    (bad, good) = grades_of(
        Grading(), (problem("1", grader=named), "\\boxed{1}"), (problem("1"), "\\boxed{1}")
    )
    assert bad.outcome == "error"
    assert message in bad.detail
    assert good.correct


def test_ten_thousand_graders_of_problems_keep_little_in_memory() -> None:
    with Judge(Grading(), Path()) as judge:
        pairs = (
            (problem("1", grader={"exact": {"case": bool(i % 2)}}), trace("\\boxed{1}"))
            for i in range(10)
        )
        assert all(g.correct for g in judge.grade_many(pairs))
        assert len(judge._own) == 2


def test_traces_are_read_as_they_are_judged() -> None:
    with Judge(Grading(workers=1), Path()) as judge:
        read = 0

        def pairs() -> Iterator[tuple[Problem, Trace]]:
            nonlocal read
            for _ in range(10_000):
                read += 1
                yield problem("1"), trace("\\boxed{1}")

        for count, grade in enumerate(judge.grade_many(pairs()), 1):
            assert grade.correct
            assert read <= count + judge.window


def test_identity_covers_combination_and_sources_and_old_recipes_keep_theirs() -> None:
    plain = grading_identity(Grading(), Path())
    assert not {"combine", "by_source", "workers"} & set(plain)
    others = [
        Grading(combine="all"),
        Grading(by_source={"a": ["exact"]}),  # type: ignore[list-item]
        Grading(by_source={"a": [{"exact": {"case": True}}]}),  # type: ignore[list-item]
        Grading(by_source={"b": ["exact"]}),  # type: ignore[list-item]
    ]
    seen = [json.dumps(grading_identity(g, Path()), sort_keys=True) for g in others]
    assert len({*seen, json.dumps(plain, sort_keys=True)}) == 5


@pytest.mark.parametrize(
    ("grading", "message"),
    [
        ({"by_source": {"a": []}}, "'a' has no grader"),
        ({"by_source": {"a": ["judge"]}}, "names a judge"),
        ({"combine": "most"}, "combine"),
        ({"by_sorce": {"a": ["exact"]}}, "did you mean 'by_source'?"),
    ],
)
def test_wrong_sections_are_refused(grading: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace("?", "\\?")):
        Recipe.from_dict({"name": "t", "grading": grading})


def test_wrong_names_are_found_before_anything_is_paid_for(tmp_path: Path) -> None:
    def recipe(**grading: Any) -> Recipe:
        source = {"file": str(tmp_path / "q.jsonl"), "name": "algebra"}
        return Recipe.from_dict(
            {"name": "t", "problems": {"sources": [source]}, "grading": grading}
        )

    check_agreement(recipe(by_source={"algebra": ["exact"]}))
    with pytest.raises(UsageError, match="'algbra' that there is not; did you mean 'algebra'"):
        check_agreement(recipe(by_source={"algbra": ["exact"]}))
    with pytest.raises(UsageError, match="unknown grader 'exct'; did you mean 'exact'"):
        check_agreement(recipe(by_source={"algebra": ["exct"]}))
    with pytest.raises(UsageError, match="has no parameter 'cas'; did you mean 'case'"):
        check_agreement(recipe(graders=[{"exact": {"cas": True}}]))
    with pytest.raises(UsageError, match="'math' has no parameter 'x'"):
        check_agreement(recipe(graders=[{"math": {"x": 1}}]))


def test_a_limit_of_its_own_for_a_grader_and_for_a_check() -> None:
    grader = StagedGrader()
    assert grader.limit(Check(()), 5) == 5
    grader.timeout_s = 20
    assert grader.limit(Check(()), 5) == 20
    assert grader.limit(Check((), timeout_s=1.5), 5) == 1.5
    passed_on = StagedGrader().delegated("code", grader, Check(("a",), "key"))
    assert passed_on == Check(("code", "a"), ("code", "key"), "code", 20)


# -- any text whatever ---------------------------------------------------------------------------

SIGNS = [*"{}[]()$^_1*#`é½ﷺ\x00\n \ud800\u202e\U0010ffff"]
MARKS = ["\\boxed{", "<think>", "</think>", "<answer>", "</answer>", "\\frac", "\\(", "\\]"]
PIECES = st.sampled_from([*SIGNS, *MARKS, "Answer: ", "final answer is", '{"a": ', "```python"])
TEXTS = st.one_of(
    st.text(),
    st.lists(st.one_of(PIECES, st.text(max_size=4)), max_size=40).map("".join),
    st.binary(max_size=200).map(lambda raw: raw.decode("utf-8", "replace")),
    st.binary(max_size=200).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
)
CARRIED: dict[str, Any] = {
    "choices": ["one", "two", "three"],
    "schema": {"type": "object"},
    "instructions": [{"id": "punctuation:no_comma", "kwargs": {}}],
    "tests": [{"input": "1", "output": "2"}],
}
PARAMS: dict[str, dict[str, Any]] = {"regex": {"pattern": "[0-9]+"}, "code": {"lazy": True}}


def rules() -> list[StagedGrader]:
    made = []
    for name in KNOWN:
        if name not in (JUDGE, "majority"):
            try:
                made.append(build(GraderSpec(name, PARAMS.get(name, {}), "")))
            except UsageError:
                continue  # a package of an extra that is not here
    assert len(made) >= 4
    return made


RULES = rules()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(TEXTS, TEXTS, st.sampled_from(["stop", "length"]), st.sampled_from([*CARRIED, ""]))
def test_any_text_gets_a_grade_or_a_check_from_every_grader(
    text: str, gold: str, reason: str, carries: str
) -> None:
    asked = problem(gold, **({carries: CARRIED[carries]} if carries else {}))
    answered = Trace(problem_id="", index=0, text=text, finish_reason=reason)
    final_answer(text, cut=reason == "length")
    for grader in RULES:
        try:
            result = grader.quick(asked, answered)
        except UsageError:
            continue  # no sandbox, or no package of an extra: said before sampling
        if isinstance(result, Check):
            hash(result.key)
        else:
            assert result.outcome in OUTCOMES


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5))
def test_any_text_gets_a_grade_that_can_be_written(pairs: list[tuple[str, str]]) -> None:
    exact = [build(GraderSpec("exact", {}, "")), build(GraderSpec("math", {}, ""))]
    quick = [g if g.name == "exact" else _Quick(g) for g in exact]
    with Judge(Grading(combine="any"), Path(), graders=quick) as judge:
        grades = list(judge.grade_many((problem(gold), trace(text)) for gold, text in pairs))
    assert len(grades) == len(pairs)
    for grade in grades:
        assert grade.outcome in OUTCOMES
        json.dumps(to_row(grade), ensure_ascii=False).encode()


class _Quick(StagedGrader):
    """A grader without what it would leave to a worker, which may hang."""

    name, version = "quick", "1"

    def __init__(self, inner: StagedGrader) -> None:
        self.inner = inner

    def quick(self, problem: Problem, trace: Trace) -> Grade | Check:
        result = self.inner.quick(problem, trace)
        return result if isinstance(result, Grade) else self.grade("unparsed")


def test_a_megabyte_leaves_little_in_a_grade() -> None:
    (grade,) = grades_of(
        Grading(graders=["exact"]),  # type: ignore[list-item]
        (problem("1"), "\\boxed{" + "9" * 1_000_000 + "}"),
    )
    assert grade.outcome == "wrong"
    assert len(grade.extracted or "") == 2000


def test_own_graders_are_read_as_in_a_recipe() -> None:
    assert own_specs(problem()) is None
    (one,) = own_specs(problem(grader={"name": "exact", "params": {"case": True}})) or ()
    assert (one.name, one.params) == ("exact", {"case": True})


@pytest.mark.slow
def test_hostile_pairs_are_judged_without_a_false_positive() -> None:
    command = [sys.executable, "-m", "benchmarks.grading_adversarial"]
    command += ["--pairs", "144", "--timeout", "0.5"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "144 pairs in" in ran.stdout, ran.stderr
    assert "FALSE POSITIVE" not in ran.stdout
    assert "the pool is sound afterwards" in ran.stdout


@pytest.mark.slow
def test_mutated_traces_break_no_grader_and_no_filter() -> None:
    command = [sys.executable, "scripts/fuzz.py", "--minutes", "1.5", "--seed", "1"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "0 findings" in ran.stdout
