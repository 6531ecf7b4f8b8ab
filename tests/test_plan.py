"""The plan: what sampling will take, before anything runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distill.cli import main
from distill.errors import UsageError
from distill.plan import plan_lines
from distill.plan_sampling import Basis, default_basis, expected, not_honoured, problem_count
from distill.policy import Policy
from distill.recipe import Recipe, shipped_recipes
from distill.records import write_jsonl
from distill.simulate import draw, simulate


def recipe(*overrides: str) -> Recipe:
    return Recipe.load("1.5b", overrides=list(overrides))


def test_every_shipped_recipe_has_a_plan() -> None:
    for name in shipped_recipes():
        for more in ([], ["sampling.want=2"]):
            lines = plan_lines(Recipe.load(name, overrides=more))
            assert lines[0].startswith("plan")
            assert len(lines) >= 4


def test_fixed_n_is_a_product() -> None:
    plan = recipe("sampling.n=8", "problems.limit=1000", "teacher.price_out=2")
    found = expected(plan, 1000, default_basis(plan))
    assert (found.samples, found.tokens) == (8000, 8000 * 5355)
    assert found.money == pytest.approx(8000 * 5355 * 2 / 1e6)
    text = "\n".join(plan_lines(plan, tokens_per_second=11_900))
    assert "1,000 problems x 8 samples = 8,000 traces" in text
    assert "time about 1.0 hours" in text
    assert "cost about 85.68" in text


def test_adaptive_sampling_is_simulated_and_scaled() -> None:
    plan = recipe("sampling.want=4", "sampling.max=16")
    found = expected(plan, 40_000, default_basis(plan))
    direct = simulate(Policy(want=4), draw(4000, 16))
    assert found.samples == 10 * direct.whole.samples
    assert found.tokens == 10 * direct.whole.tokens
    assert found.solved == direct.whole.covered / 4000
    text = "\n".join(plan_lines(plan))
    assert "4 accepted traces of at most 16 samples" in text
    assert "no problem is given up before its 16 samples" in text
    assert "Beta(0.43, 0.57)" in text


def test_an_easier_mix_and_one_trace_wanted_cost_less() -> None:
    easy = Basis((4.0, 1.0), 5355, "easy ones")
    hard = Basis((1.0, 4.0), 5355, "hard ones")
    four, one = recipe("sampling.want=4"), recipe("sampling.want=1")
    assert expected(four, 1000, easy).tokens < expected(four, 1000, hard).tokens
    assert expected(one, 1000, easy).tokens < expected(four, 1000, easy).tokens


@pytest.mark.slow
def test_a_budget_bounds_the_plan() -> None:
    plan = recipe("sampling.want=1", "sampling.budget_tokens=200000000")
    found = expected(plan, 40_000, default_basis(plan))
    assert found.tokens == pytest.approx(2e8, rel=0.05)
    assert found.rounds
    assert "rounds of a budget of 200,000,000" in "\n".join(plan_lines(plan))
    money = recipe("sampling.want=1", "sampling.budget_cost=400", "teacher.price_out=2")
    assert expected(money, 40_000, default_basis(money)).money == pytest.approx(400, rel=0.05)


def test_the_number_of_samples_that_gives_up_is_said() -> None:
    text = plan_lines(recipe("sampling.want=1", "sampling.max=64", "sampling.give_up=0.1"))
    assert any("given up after 18 samples" in line for line in text)


def test_what_the_catalog_knows_to_be_ignored_is_said() -> None:
    plan = recipe("teacher.model=deepseek-reasoner")
    assert not_honoured(plan) == ["seed", "temperature", "top_p"]
    assert any("ignores: seed, temperature" in line for line in plan_lines(plan))
    assert not_honoured(recipe()) == []


def test_problems_of_unknown_number_are_planned_one_by_one(tmp_path: Path) -> None:
    plan = Recipe.from_dict(
        {
            "name": "mine",
            "problems": {"sources": [{"file": str(tmp_path / "p.jsonl")}]},
            "teacher": {"engine": "replay", "model": ""},
            "sampling": {"want": 2},
        }
    )
    assert problem_count(plan) is None
    assert "2 accepted traces of at most 16 samples of each problem" in "\n".join(plan_lines(plan))
    assert problem_count(plan, {"problems": 7}) == 7


def earlier_run(folder: Path, *, graded: bool = True) -> Path:
    """A run of 40 problems: half solved at once, half twice in four."""
    grades, traces = [], []
    for number in range(40):
        for index, correct in enumerate([1, 1] if number % 2 else [1, 0, 0, 1]):
            key = {"problem_id": str(number), "index": index}
            grades.append({**key, "outcome": "correct" if correct else "wrong"})
            traces.append({**key, "completion_tokens": 100 if correct else 300, "prompt_tokens": 7})
    grades.append({"problem_id": "open", "index": 0, "outcome": "ungraded"})
    write_jsonl(folder / "steps" / "grade-1" / "grades.jsonl", grades)
    write_jsonl(folder / "steps" / "sample-1" / "traces.jsonl", traces)
    steps = {"sample": {"folder": "steps/sample-1"}, "grade": {"folder": "steps/grade-1"}}
    run = folder / "pilot-1"
    run.mkdir()
    steps = steps if graded else {"sample": steps["sample"]}
    record = {"steps": steps, "recipe": {"teacher": {"model": "QwQ-32B"}}}
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    return run


def test_a_pilots_grades_are_the_basis(tmp_path: Path) -> None:
    basis = Basis.of_run(earlier_run(tmp_path))
    assert basis.sample_tokens == pytest.approx(500 / 3)
    assert 0.55 < basis.mix[0] / sum(basis.mix) < 0.8
    assert basis.said == "the 40 problems of pilot-1"


def test_a_pilot_brings_lengths_and_the_speed_it_bought_with(tmp_path: Path) -> None:
    run = earlier_run(tmp_path)
    basis = Basis.of_run(run)
    # Correct traces have 100 tokens and a prompt of 7.
    assert set(basis.lengths) == {107}
    assert (basis.speed, basis.teacher) == (None, "QwQ-32B")
    summary = tmp_path / "steps" / "sample-1" / "summary.json"
    summary.write_text(json.dumps({"bought": 120, "tokens_per_second": 1500.0}))
    assert Basis.of_run(run).speed == 1500
    summary.write_text(json.dumps({"bought": 0, "tokens_per_second": 0.0}))
    assert Basis.of_run(run).speed is None


def test_a_run_without_grades_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pilot-1 has no graded traces"):
        Basis.of_run(earlier_run(tmp_path, graded=False))


def distill(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "distill.cli", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_verb_prints_figures_for_scripts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier_run(tmp_path)
    arguments = ["plan", "1.5b", "sampling.want=2", "--limit", "500", "--json", "--on", "1x80"]
    arguments += ["--from", "pilot-1", "--runs", str(tmp_path), "--tokens-per-second", "1000"]
    assert main(arguments) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["sampling"]["problems"] == 500
    assert plan["sampling"]["hours"] == pytest.approx(plan["sampling"]["tokens"] / 3.6e6)
    assert plan["basis"]["said"] == "the 40 problems of pilot-1"
    assert plan["data"][0]["mean_tokens"] == 107


@pytest.mark.slow
def test_the_verb_needs_no_torch_and_refuses_nonsense(tmp_path: Path) -> None:
    code = (
        "import sys; from distill.cli import main\n"
        "assert main(['plan', '7b', 'sampling.want=4']) == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'vllm', 'lm_eval'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ran.stderr.strip() == "[]"
    refused = distill("plan", "7b", "--tokens-per-second", "-1", cwd=tmp_path)
    assert refused.returncode == 2
    assert "--tokens-per-second is -1" in refused.stderr
    assert distill("plan", "7b", "--from", "none", cwd=tmp_path).returncode == 2
