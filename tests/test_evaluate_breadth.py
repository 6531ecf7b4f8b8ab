"""What answers look like, named baselines, odd input, and lm-eval's closed form beside ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from distill import scores, statistics
from distill.errors import UsageError
from distill.evaluate import ModelRef
from distill.job import Job
from distill.lineup import model_refs
from distill.measures import Measures, quantiles
from distill.recipe import Recipe
from distill.records import Problem, write_jsonl
from distill.schema import Evaluation
from distill.step import Workspace
from tests.test_evaluate import evaluate, fake, place, real, sums

__all__ = ["place", "real"]


def row(problem: Problem, text: str, finish: str = "stop", tokens: int = 7) -> dict[str, Any]:
    return {
        "problem_id": problem.id,
        "index": 0,
        "text": text,
        "finish_reason": finish,
        "completion_tokens": tokens,
    }


def test_what_answers_look_like() -> None:
    (problem,) = sums(1)
    asked = "Find the smallest positive integer that is divisible by both of these numbers."
    problem = Problem(messages=({"role": "user", "content": asked},), gold="12")
    good = "<think>\nLet me try to find it.\n</think>\n\n\\boxed{12}"
    loop = "<think>\n" + "So it is twelve, and then again. " * 60
    mixed = "<think>\nLet us see. 我们需要找到最小的正整数，它可以被这两个数整除。\n</think>\n12"
    rows = [
        row(problem, good),
        row(problem, loop, "length", 400),
        row(problem, mixed),
        row(problem, "12", tokens=1),
        row(problem, "", "failed", 0),
    ]
    found = Measures().of([problem], rows)
    assert found["answers"] == 4
    assert found["tokens"]["max"] == 400
    shares = ("truncated", "unfinished_thinking", "without_thinking", "repetitive")
    assert [found[share] for share in (*shares, "mixed_languages")] == [0.25] * 5


def test_a_model_that_gave_nothing_has_no_shares() -> None:
    (problem,) = sums(1)
    found = Measures().of([problem], [row(problem, "", "failed", 0)])
    assert found["answers"] == 0
    assert {value for key, value in found.items() if key != "answers"} == {None}


def test_a_quantile_is_a_length_that_there_is() -> None:
    assert quantiles([5]) == dict.fromkeys(("p10", "p50", "p90", "p99", "max"), 5)
    assert quantiles(list(range(101, 0, -1)))["p90"] == 91


@pytest.mark.parametrize(
    ("skill", "mute", "problems", "k"),
    [
        pytest.param(1.0, 0.0, 3, 2, id="all right", marks=pytest.mark.slow),
        pytest.param(0.0, 0.0, 3, 2, id="all wrong", marks=pytest.mark.slow),
        pytest.param(0.5, 1.0, 3, 2, id="no answer"),
        pytest.param(0.5, 0.0, 3, 1, id="k = 1", marks=pytest.mark.slow),
        pytest.param(1.0, 0.0, 1, 1, id="one problem"),
    ],
)
def test_odd_results_are_numbers(
    place: Path, skill: float, mute: float, problems: int, k: int
) -> None:
    write_jsonl(place / "tasks" / "heldout.jsonl", sums(problems))
    models = [fake("base", skill=0.5), fake("student", skill=skill, mute=mute)]
    evaluate(place, models, samples=k)
    for name in ("results.json", "summary.json"):
        text = (place / "out" / name).read_text(encoding="utf-8")
        json.loads(text, parse_constant=pytest.fail)


def test_the_closed_form_is_lm_evals(place: Path) -> None:
    results, _, _ = evaluate(place, [fake("base", skill=0.5)])
    model = results["tasks"]["heldout"]["models"]["base"]
    low, high = model["interval_clt"]
    assert 0 < low < high < 1
    error = (high - low) / 2 / statistics.t_quantile(0.975, 19)
    assert model["lm_eval"]["pass@1_stderr,graded"] == pytest.approx(error)


def test_a_baseline_is_a_row_and_never_the_base(place: Path) -> None:
    models = [
        fake("base", skill=0.2),
        fake("student", skill=0.6),
        fake("base-v2", skill=1.0),
    ]
    results, _, _ = evaluate(place, models)
    task = results["tasks"]["heldout"]
    assert task["models"]["base-v2"]["pass@1"] == 1.0
    assert task["models"]["base-v2"]["text"]["answers"] == 80
    assert task["differences"]["student-base-v2"]["difference"] < 0
    assert results["headline"]["base_role"] == "base"
    assert scores.BASES == ("base", "base-best")


def test_baselines_are_named_and_told_apart() -> None:
    asked = Evaluation.model_validate(
        {"baselines": ["Qwen/Qwen2.5-Math-7B", {"model": "./x/y", "name": "mine"}, "./me.py:Me"]}
    )
    assert [spec.role for spec in asked.baselines] == ["Qwen2.5-Math-7B", "mine", "me.py-Me"]
    for wrong in (["a/base"], ["a/b", "c/b"], [{}], [{"model": "x", "name": "a b"}]):
        with pytest.raises(ValidationError):
            Evaluation.model_validate({"baselines": wrong})


@pytest.mark.slow
def test_a_baseline_is_asked_like_the_others(real: dict[str, Any]) -> None:
    base = Path(real["base"])
    recipe = Recipe.from_dict(real["recipe"])
    baselines = [
        {"model": base.name, "name": "own"},
        {"model": str(base), "name": "same", "template": "student", "options": {"batch_size": 2}},
        {"model": str(base), "name": "plain", "template": "plain.jinja"},
        {"model": "some-api-model", "name": "api", "engine": "openai"},
    ]
    (base.parent / "plain.jinja").write_text("{{ messages[-1].content }}")
    recipe.evaluate = Evaluation(
        **{**recipe.evaluate.model_dump(), "baselines": baselines, "base_at_best": False}
    )
    found = {ref.role: ref for ref in model_refs(recipe, real, base.parent, [])}
    assert list(found) == ["base", "student", "own", "same", "plain", "api"]
    assert (found["own"].path, found["own"].chat_template) == (str(base), "")
    assert found["same"].chat_template == found["base"].chat_template
    assert found["plain"].chat_template == "{{ messages[-1].content }}"
    assert [found[r].options.get("batch_size") for r in ("own", "same", "api")] == [8, 2, None]
    assert "name" not in found["own"].spec
    assert isinstance(found["api"], ModelRef)
    assert found["api"].engine == "openai"


def test_a_baselines_weights_and_template_are_identity(tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    asked = {"template": "own.jinja", "model": "other"}

    def identity(engine: str = "transformers", **more: Any) -> dict[str, Any]:
        recipe = Recipe.from_dict({"name": "mine", "student": {"base": "x/y"}})
        recipe.evaluate = Evaluation(engine=engine, baselines=[{**asked, **more}])
        job = Job(recipe, Workspace(tmp_path / "runs"))
        job.folder = tmp_path
        return job._baseline(recipe.evaluate.baselines[0])

    with pytest.raises(UsageError, match="no such file"):
        identity()
    (tmp_path / "own.jinja").write_text("{{ messages[-1].content }}")
    first = identity()
    assert first == identity() == identity(engine="vllm") == identity(options={"batch_size": 2})
    assert first != identity(name="renamed")
    assert first != identity(template="student")
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}")
    assert first != identity()
    (tmp_path / "own.jinja").write_text("{{ messages[-1].content }}")
    (folder / "config.json").write_text('{"changed": 1}')
    assert first != identity()
