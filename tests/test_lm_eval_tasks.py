"""Our tasks in plain lm-eval, and lm-eval's own tasks k times over stored samples."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from distill import harness, stock
from distill.errors import DataError, UsageError
from distill.grade.code import Code
from distill.grade.service import Judge
from distill.records import Problem, Trace, write_jsonl
from distill.schema import Grading, Sampling
from tests.test_evaluate import LM_EVAL_TASK, evaluate, fake, place, sums

__all__ = ["place"]

FOLDER = Path(harness.__file__).parent / "tasks" / "lm_eval"

HUMANEVAL = {
    "kind": "humaneval",
    "prompt": "def total(xs):\n",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n",
    "entry_point": "total",
}


def said(problem: Problem, index: int) -> str:
    """Right but for the last two of four samples: one wrong, one unfinished."""
    if index == 3:
        return "<think>\nhm"
    if "tests" in problem.metadata:
        body = "sum(xs)" if index < 2 else "0"
        return f"<think>\nhm\n</think>\n\n```python\ndef total(xs):\n    return {body}\n```"
    return f"<think>\nhm\n</think>\n\nThe answer is {'B' if index < 2 else 'C'}."


def ask(problems: Sequence[Problem], sampling: Sampling) -> Iterator[Trace]:
    for problem in problems:
        for index in range(sampling.n):
            # lm-eval's request knows the question only; the file's problem has the tests.
            known = CODE if problem.question == CODE.question else CHOICE
            text = said(known, index)
            yield Trace(problem_id=problem.id, index=index, text=text)


def asked(question: str, **more: Any) -> Problem:
    return Problem(messages=({"role": "user", "content": question},), **more)


CODE = asked("Write total(xs).", metadata={"tests": HUMANEVAL})
CHOICE = asked("Which? A) 1 B) 2 C) 3", gold="B")
OPEN = asked("Which? And why?")


@pytest.mark.slow
@pytest.mark.parametrize(("grader", "problem"), [("code", CODE), ("choice", CHOICE)])
def test_plain_lm_eval_agrees_with_our_own_run(
    tmp_path: Path, grader: str, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import evaluator, tasks

    if grader == "code":
        try:
            Code()
        except UsageError as error:
            pytest.skip(f"no sandbox that works: {error.message}")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [problem, OPEN] if grader == "choice" else [problem]
    write_jsonl(tmp_path / "mine.jsonl", rows)
    metadata: Any = {"file": str(tmp_path / "mine.jsonl"), "grader": grader}
    manager = tasks.TaskManager(include_path=FOLDER, include_defaults=False, metadata=metadata)
    found = evaluator.evaluate(
        harness.SamplerLM(ask, limit=9),
        manager.load(["distill_problems"]),
        log_samples=False,
        bootstrap_iters=1,
        apply_chat_template=True,
    )
    theirs = found["results"]["distill_problems"]
    with Judge(Grading.model_validate({"graders": [grader], "workers": 1}), tmp_path) as judge:
        own = harness.ProblemTask("mine", rows, Sampling(n=4), judge.grade_many)
        ours = harness.evaluate_problems(harness.SamplerLM(ask, limit=9), {"mine": own})
    numbers = ours.results["mine"]
    # What nobody can grade is left out of both.
    assert theirs["pass@1,all"] == numbers["pass@1,graded"] == 0.5
    assert theirs["parsed,all"] == numbers["parsed,graded"] == 0.75


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two tasks of lm-eval and a group of them."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"question": p.question, "answer": p.gold} for p in sums(4)]
    write_jsonl(tmp_path / "data.jsonl", rows)
    for name in ("one", "two"):
        text = LM_EVAL_TASK.format(
            name=name,
            data=tmp_path / "data.jsonl",
            kind="generate_until",
            target="answer",
            more="metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]",
        )
        (tmp_path / f"{name}.yaml").write_text(text)
    group = "group: both\ntask: [one, two]\naggregate_metric_list: [{metric: exact_match}]\n"
    (tmp_path / "both.yaml").write_text(group)
    return tmp_path


@pytest.mark.slow
def test_a_task_that_generates_is_run_k_times_over_stored_samples(local: Path) -> None:
    requests = []
    # Of the six samples of a question the two tasks see each half, run by run.
    right = {0: [1, 1, 1], 1: [1, 0, 0], 2: [0, 0, 1], 3: [0, 0, 0]}
    place = {p.question: i for i, p in enumerate(sums(4))}

    def answers(problems: Sequence[Problem], sampling: Sampling) -> Iterator[Trace]:
        requests.append((len(problems), sampling))
        for problem in problems:
            gold = sums(4)[place[problem.question]].gold
            for index in range(sampling.n):
                text = gold if right[place[problem.question]][index // 2] else "no"
                yield Trace(problem_id=problem.id, index=index, text=str(text))

    loaded = stock.load_stock({"both": stock.Asked(3)}, include=local)
    settings = Sampling(n=1, temperature=0.6, top_p=0.9)
    lm = harness.SamplerLM(answers, limit=50, settings=settings)
    outcome = stock.sample_stock(lm, loaded, seed=0)
    means = [sum(row) / 3 for row in right.values()]
    for name in ("one", "two"):
        numbers = outcome.results[name]
        assert numbers["exact_match,none"] == pytest.approx(sum(means) / 4)
        error = statistics.stdev(means) / 2
        assert numbers["exact_match_stderr,none"] == pytest.approx(error)
        told = outcome.settings[name]
        assert (told["samples"], told["temperature"], told["top_p"]) == (3, 0.6, 0.9)
        assert (told["backend"], told["max_tokens"], told["problems"]) == ("sampled", 50, 4)
        assert set(numbers) == {"exact_match,none", "exact_match_stderr,none"}
    assert outcome.results["both"]["exact_match,none"] == pytest.approx(sum(means) / 4)
    # Both tasks ask the same questions: they are one request of six samples, bought once.
    ((count, sampling),) = requests
    assert (count, sampling.n, sampling.max_tokens) == (4, 6, 50)

    greedy = harness.SamplerLM(answers, limit=50, settings=Sampling(n=1, temperature=0))
    outcome = stock.sample_stock(greedy, loaded, seed=0)
    assert outcome.settings["one"]["samples"] == 1
    assert requests[-1][1].n == 2

    limited = stock.load_stock({"one": stock.Asked(1, limit=2)}, include=local)
    outcome = stock.sample_stock(lm, limited, seed=0)
    assert (requests[-1][0], outcome.settings["one"]["limit"]) == (2, 2)
    assert outcome.results["one"]["exact_match,none"] == 1.0


@pytest.mark.slow
def test_an_evaluation_asks_lm_evals_own_tasks(
    local: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = "doc_to_choice: ['1', '2']"
    text = LM_EVAL_TASK.format(
        name="chosen", data=local / "data.jsonl", kind="multiple_choice", target="0", more=more
    )
    (local / "chosen.yaml").write_text(text)
    load = stock.load_stock
    monkeypatch.setattr(stock, "load_stock", lambda specs: load(specs, include=local))
    asked = ["heldout", {"name": "one", "samples": 3, "limit": 2}, "chosen"]
    models = [fake("base", skill=0.0), fake("student", skill=1.0), fake("other", skill=1.0)]
    results, _, summary = evaluate(place, models, tasks=asked)
    assert set(results["lm_eval"]) == {"one"}
    assert set(results["lm_eval"]["one"]) == {"base", "student", "other"}
    told = results["lm_eval_settings"]["one"]
    assert (told["samples"], told["problems"], told["temperature"]) == (3, 2, 0.6)
    assert any(
        note.startswith("student: tasks of log-likelihoods were left out")
        for note in summary["notes"]
    )
    # The same question under the same settings is the same request, whoever asks.
    assert (summary["bought"], summary["reused"]) == (3 * 20 * 4, 3 * 2 * 3)
    _, _, again = evaluate(place, models, out="again", tasks=asked)
    assert (again["bought"], again["reused"]) == (0, 3 * (20 * 4 + 2 * 3))


@pytest.mark.slow
def test_programs_without_a_sandbox_are_refused(local: Path) -> None:
    path = local / "one.yaml"
    path.write_text(path.read_text() + "unsafe_code: true\n")
    with pytest.raises(DataError, match="programs of task 'one' without a sandbox"):
        stock.load_stock({"one": stock.Asked()}, include=local)


def test_a_grader_that_nobody_knows_is_named_at_once(tmp_path: Path) -> None:
    from distill.tasks.lm_eval import utils

    write_jsonl(tmp_path / "mine.jsonl", [CHOICE])
    with pytest.raises(UsageError, match="chose"):
        utils.load(str(tmp_path / "mine.jsonl"), grader="chose")
    with pytest.raises(ValueError, match="name the problems"):
        utils.load()
