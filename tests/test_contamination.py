"""Evaluation problems that were trained on are found whatever the filters did."""

from __future__ import annotations

from pathlib import Path

from distill.contamination import contaminated
from distill.records import Problem, write_jsonl

LONG = "A farmer has {} cows and sells {} of them at the market on a rainy Tuesday morning in May"


def problem(text: str) -> Problem:
    return Problem(messages=({"role": "user", "content": text},), statement=text, gold="1")


def test_what_was_trained_on_is_found_and_the_rest_is_clean(tmp_path: Path) -> None:
    seen, unseen = problem(LONG.format(31, 17)), problem("How many primes are below one hundred?")
    never_trained = problem("What is the area of a circle with radius twelve centimetres?")
    train = [problem(LONG.format(31, 17) + " , how many are left?"), unseen, never_trained]
    write_jsonl(tmp_path / "problems.jsonl", train)
    rows = [{"problem_id": train[0].id}, {"problem_id": unseen.id}]
    write_jsonl(tmp_path / "dataset.jsonl", rows)
    tasks = {"a": [seen, never_trained], "b": [problem("Name the capital of France, please.")]}
    found = contaminated([tmp_path / "dataset.jsonl"], tmp_path / "problems.jsonl", tasks)
    assert found == {"a": {seen.id: train[0].id}, "b": {}}


def test_one_training_problem_may_overlap_with_several(tmp_path: Path) -> None:
    shared = LONG.format(31, 17)
    train = problem(shared)
    asked = [problem(f"{shared}, how many cows remain?"), problem(f"Today {shared}; say why.")]
    write_jsonl(tmp_path / "problems.jsonl", [train])
    write_jsonl(tmp_path / "dataset.jsonl", [{"problem_id": train.id}])
    found = contaminated([tmp_path / "dataset.jsonl"], tmp_path / "problems.jsonl", {"t": asked})
    assert set(found["t"]) == {p.id for p in asked}


def test_nothing_trained_is_nothing_found(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "problems.jsonl", [problem("x")])
    write_jsonl(tmp_path / "dataset.jsonl", [])
    found = contaminated([tmp_path / "dataset.jsonl"], tmp_path / "problems.jsonl", {"t": []})
    assert found == {"t": {}}
