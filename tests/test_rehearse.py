"""A rehearsal: few and long problems, full lengths, few updates, and nothing in the pool."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distill.recipe import Recipe
from distill.records import Example, Problem, Trace, read_records, write_jsonl
from distill.rehearse import (
    PROBLEMS,
    UPDATES,
    Memory,
    fill_examples,
    left_out,
    longest,
    rehearsed,
    shorten,
)

ROOT = Path(__file__).resolve().parents[1]


def asked(length: int) -> Problem:
    return Problem(messages=({"role": "user", "content": "x" * length},), gold="1")


def trace(problem: Problem, index: int) -> Trace:
    return Trace(problem_id=problem.id, index=index, text="<think>\na\n</think>\n\nb")


def test_what_needs_memory_stays_and_what_takes_time_shrinks() -> None:
    recipe = Recipe.load(
        "pocket",
        overrides=["sampling.want=2", "sampling.budget_tokens=10", "teacher.options.batch_size=20"],
    )
    found = rehearsed(recipe, "transformers")
    assert found.sampling.max_tokens == recipe.sampling.max_tokens
    assert found.sampling.want is None
    assert found.sampling.n == 3  # 8 problems fill a batch of 20
    assert found.teacher.options == {"batch_size": 20, "ignore_eos": True}
    assert found.evaluate.options["ignore_eos"]
    assert found.evaluate.max_tokens == recipe.evaluate.max_tokens
    assert found.filters == []
    assert found.train.max_length == recipe.train.max_length == 512
    assert found.train.micro_batch_tokens == 2048
    assert found.train.batch_size == 8  # two micro-batches of four full examples
    assert found.train.max_steps == UPDATES
    assert recipe.sampling.want == 2
    assert "ignore_eos" not in recipe.teacher.options
    assert found.folder == recipe.folder
    vllm = rehearsed(
        Recipe.load("pocket", overrides=["teacher.engine=vllm", "teacher.replicas=2"]), "vllm"
    )
    assert vllm.teacher.replicas == 2
    assert vllm.sampling.n == 2


def test_what_it_cannot_show_is_said() -> None:
    recipe = Recipe.load("pocket", overrides=["evaluate.tasks=[heldout, ifeval_of_lm_eval]"])
    assert left_out(recipe, "transformers") == [
        "lm-eval's own tasks are not rehearsed: ifeval_of_lm_eval"
    ]
    (said, _) = left_out(recipe, "openai")
    assert said.startswith("answers end where the model ends them")


def test_the_longest_problems_are_kept_with_their_traces(tmp_path: Path) -> None:
    problems = [asked(length) for length in range(1, 30)]
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    write_jsonl(source / "problems.jsonl", problems)
    write_jsonl(source / "traces.jsonl", [trace(p, i) for p in problems for i in range(4)])
    shorten(source, out)
    kept = list(read_records(Problem, out / "problems.jsonl"))
    assert [len(p.messages[0]["content"]) for p in kept] == list(range(29, 29 - PROBLEMS, -1))
    traces = list(read_records(Trace, out / "traces.jsonl"))
    assert {t.problem_id for t in traces} == {p.id for p in kept}
    assert len(traces) == 2 * PROBLEMS
    assert longest(problems[:3]) == problems[2::-1]


@pytest.mark.parametrize("limit", [64, 512])
def test_examples_fill_the_length_that_is_trained(tmp_path: Path, limit: int) -> None:
    text = "<think>\nfirst this, then that\n</think>\n\nThe answer is 4."
    chat = ({"role": "user", "content": "2+2"}, {"role": "assistant", "content": text})
    empty = ({"role": "user", "content": "2+2"}, {"role": "assistant", "content": ""})
    both = enumerate((empty, chat))
    examples = [Example(problem_id=str(i), index=0, messages=m) for i, m in both]
    write_jsonl(tmp_path / "in.jsonl", examples)

    def fill(trainer: str) -> dict[str, int]:
        return fill_examples(
            {
                "dataset": str(tmp_path / "in.jsonl"),
                "out": str(tmp_path / "out.jsonl"),
                "student": {"base": "pocket-base"},
                "train": {"max_length": limit, "batch_size": 3},
                "trainer": trainer,
            }
        )

    told = fill("sft")
    assert told["examples"] == 3 * UPDATES
    assert 0.96 * limit <= told["tokens"] <= limit
    rows = list(read_records(Example, tmp_path / "out.jsonl"))
    assert len(rows) == 3 * UPDATES
    assert {row.problem_id for row in rows} == {"1"}, "the trainer refuses an empty answer"
    assert rows[0].messages[0]["content"] == "2+2"
    assert rows[0].messages[1]["content"].count("</think>") == 1
    assert 0.9 * limit <= fill("./mine.py:Trainer")["tokens"] <= limit


def test_the_memory_of_children_is_seen() -> None:
    code = "data = bytearray(200 << 20); input()"
    with Memory(os.getpid(), every_s=0.02) as memory:
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
        try:
            for _ in range(1000):
                if memory.peak > 200 << 20 or memory._stop.wait(0.02):
                    break
        finally:
            child.kill()
            child.wait()
    assert memory.peak > 200 << 20
    assert "GiB of memory" in str(memory)


def rehearsal(runs: Path, *more: str) -> subprocess.CompletedProcess[str]:
    small = ["sampling.max_tokens=48", "evaluate.max_tokens=48", "evaluate.base_at_best=false"]
    small += ["teacher.options.batch_size=8", "evaluate.options.batch_size=8"]
    command = [sys.executable, "-m", "distill.cli", "run", "pocket", "variant=smoke", "--rehearse"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *small, *more, "--runs", str(runs)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        cwd=ROOT,
    )


@pytest.mark.slow
def test_the_pocket_recipe_is_rehearsed_and_leaves_no_trace(tmp_path: Path) -> None:
    done = rehearsal(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rehearsed pocket:")
    assert "8 traces, 384 tokens, 8 at the limit" in done.stderr
    assert "16 examples of 51" in done.stderr
    assert "2 updates, " in done.stderr
    assert done.stderr.count("peak: ") == 8
    left = {path.name.partition("-")[0] for path in (tmp_path / "steps").iterdir()}
    assert left == {"problems", "tasks"}
    assert not (tmp_path / "pool").exists()
    assert not list(tmp_path.glob("pocket-*"))


@pytest.mark.slow
def test_a_step_that_fails_is_named(tmp_path: Path) -> None:
    limits: list[Any] = ["train.max_length=4096", "train.micro_batch_tokens=4096"]
    done = rehearsal(tmp_path, *limits)
    assert done.returncode == 1
    assert "the rehearsal failed at train: train.max_length = 4096 is beyond" in done.stderr
    assert "Traceback" not in done.stderr
