"""The pipeline with real stages and a teacher of ten lines: what is done again, and what is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distill import Recipe, run
from distill.errors import DistillError, ModelError, UsageError
from distill.models import has_gpu
from distill.protocols import Capabilities, Completion, OnTokens, Request, Usage
from distill.records import Problem, Trace, read_jsonl, read_records


class Counting:
    """Answers `a + b`; every third sample wrongly. Counts what it is asked."""

    identity = "counting-1"
    capabilities = Capabilities(deterministic=True)

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def complete(self, request: Request, on_tokens: OnTokens | None = None) -> Completion:
        self.asked.append(request.key)
        text = request.prompt[-1]["content"]  # type: ignore[index, call-overload]
        a, b = (int(word) for word in text.split("?")[0].split() if word.isdigit())
        total = a + b + (1 if int(request.key.split("/")[1]) % 3 == 2 else 0)
        answer = f"<think>\nAdd {a} and {b}: that makes {total}.\n</think>\n\n\\boxed{{{total}}}"
        return Completion(text=answer, usage=Usage(prompt_tokens=10, completion_tokens=20))


def recipe_of(tmp_path: Path, **changes: Any) -> Recipe:
    rows = [{"question": f"What is {i} + {i + 1} ?", "answer": str(2 * i + 1)} for i in range(20)]
    source = tmp_path / "problems.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data: dict[str, Any] = {
        "name": "tiny",
        "problems": {
            "heldout": 0.2,
            "sources": [{"file": str(source), "question": "question", "name": "sums"}],
        },
        "sampling": {"n": 3, "max_tokens": 64},
        "filters": ["truncated", "correct", "format", "duplicates"],
        "select": {"per_problem": 1},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            data[section] = {**data.get(section, {}), name: value}
        else:
            data[section] = value
    return Recipe.from_dict(data)


def select(tmp_path: Path, teacher: Any, **changes: Any) -> dict[str, Any]:
    report = run(
        recipe_of(tmp_path, **changes), teacher=teacher, until="select", runs=tmp_path / "r"
    )
    return dict(json.loads((report.path.parent / "run.json").read_text()))


def folder(tmp_path: Path, record: dict[str, Any], step: str) -> Path:
    return tmp_path / "r" / record["steps"][step]["folder"]


def test_from_problems_to_a_training_set(tmp_path: Path) -> None:
    teacher = Counting()
    record = select(tmp_path, teacher)
    problems = list(read_records(Problem, folder(tmp_path, record, "problems") / "problems.jsonl"))
    heldout = list(read_records(Problem, folder(tmp_path, record, "problems") / "heldout.jsonl"))
    assert len(problems) + len(heldout) == 20
    assert len(teacher.asked) == len(set(teacher.asked)) == 3 * len(problems)
    grades = list(read_jsonl(folder(tmp_path, record, "grade") / "grades.jsonl"))
    assert {(g["index"], g["outcome"]) for g in grades} == {
        (0, "correct"),
        (1, "correct"),
        (2, "wrong"),
    }
    final = list(read_jsonl(folder(tmp_path, record, "select") / "verdicts.jsonl"))
    assert len(final) == len(grades)
    assert sum(v["kept"] for v in final) == len(problems)
    assert {v["filter"] for v in final if not v["kept"]} <= {"correct", "duplicates", "select"}
    examples = list(read_jsonl(folder(tmp_path, record, "select") / "dataset.jsonl"))
    assert len(examples) == len(problems)
    assert all(e["messages"][-1]["content"].startswith("<think>\n") for e in examples)
    assert {e["problem_id"] for e in examples} == {p.id for p in problems}


def test_the_same_again_does_nothing_and_is_byte_identical(tmp_path: Path) -> None:
    first = select(tmp_path, Counting())
    data = (folder(tmp_path, first, "select") / "dataset.jsonl").read_bytes()
    teacher = Counting()
    again = select(tmp_path, teacher)
    assert teacher.asked == []
    assert all(step["reused"] for step in again["steps"].values())
    assert (folder(tmp_path, again, "select") / "dataset.jsonl").read_bytes() == data


def test_another_grader_or_filter_buys_no_trace_again(tmp_path: Path) -> None:
    select(tmp_path, Counting())
    teacher = Counting()
    for change in (
        {"grading__graders": ["exact"]},
        {"filters": ["correct"]},
        {"filters": ["correct", {"length": {"max_tokens": 30}}]},
        {"filters": ["correct", {"length": {"max_tokens": 25}}]},
        {"select__per_problem": 2},
        {"grading__timeout_s": 9},
    ):
        select(tmp_path, teacher, **change)
    assert teacher.asked == []


def test_raising_n_buys_only_the_new_samples(tmp_path: Path) -> None:
    select(tmp_path, Counting())
    teacher = Counting()
    record = select(tmp_path, teacher, sampling__n=5)
    assert {key.split("/")[1] for key in teacher.asked} == {"3", "4"}
    traces = list(read_records(Trace, folder(tmp_path, record, "sample") / "traces.jsonl"))
    assert [t.index for t in traces[:5]] == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_other_sampling_parameters_are_other_traces(tmp_path: Path) -> None:
    select(tmp_path, Counting())
    teacher = Counting()
    select(tmp_path, teacher, sampling__temperature=1.0)
    assert teacher.asked
    assert len(list((tmp_path / "r" / "pool").iterdir())) == 2


@pytest.mark.slow
def test_a_damaged_step_is_made_again_from_the_pool(tmp_path: Path) -> None:
    record = select(tmp_path, Counting())
    traces = folder(tmp_path, record, "sample") / "traces.jsonl"
    whole = [(t.key, t.text) for t in read_records(Trace, traces)]
    traces.write_bytes(traces.read_bytes()[:-100])
    teacher = Counting()
    select(tmp_path, teacher)
    assert teacher.asked == []
    assert [(t.key, t.text) for t in read_records(Trace, traces)] == whole


def test_published_traces_take_the_teachers_place(tmp_path: Path) -> None:
    rows = [
        {
            "problem": f"What is {i} + {i} ?",
            "answer": str(2 * i),
            "generations": [
                f"<think>\n{i} and {i} make {2 * i}.\n</think>\n\n\\boxed{{{2 * i}}}",
                f"<think>\nA guess: {i}.\n</think>\n\n\\boxed{{{i + 1000}}}",
            ],
        }
        for i in range(1, 12)
    ]
    path = tmp_path / "published.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = select(tmp_path, None, traces={"file": str(path), "format": "generations"})
    examples = list(read_jsonl(folder(tmp_path, record, "select") / "dataset.jsonl"))
    heldout = list(read_records(Problem, folder(tmp_path, record, "import") / "heldout.jsonl"))
    assert heldout
    assert len(examples) == 11 - len(heldout)
    assert "sample" not in record["steps"]


def test_problems_that_nothing_could_grade_are_refused_before_they_are_sampled(
    tmp_path: Path,
) -> None:
    path = tmp_path / "open.jsonl"
    path.write_text('{"question": "Why?"}\n{"question": "How?"}\n')
    sources = [{"file": str(path), "question": "question", "gold": None}]
    teacher = Counting()
    with pytest.raises(UsageError, match="no gold answers"):
        select(tmp_path, teacher, problems={"sources": sources})
    assert teacher.asked == []


def test_nothing_selected_is_an_error_that_says_why(tmp_path: Path) -> None:
    class Wrong(Counting):
        identity = "wrong-1"

        async def complete(self, request: Request, on_tokens: OnTokens | None = None) -> Completion:
            return Completion(text="<think>\nhm\n</think>\n\n\\boxed{-1}")

    with pytest.raises(DistillError, match="correct"):
        select(tmp_path, Wrong())
    record = json.loads(next((tmp_path / "r").glob("tiny-*/run.json")).read_text())
    assert record["status"] == "failed"
    assert "filter" in record["steps"]


def test_a_wrong_stage_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown stage 'trian'"):
        run(recipe_of(tmp_path), teacher=Counting(), until="trian", runs=tmp_path)


def test_the_student_must_be_left_where_it_is_looked_for(tmp_path: Path) -> None:
    class Elsewhere:
        version = "1"

        def train(self, dataset: Path, out: Path, config: Any) -> Path:
            return tmp_path

    recipe = recipe_of(tmp_path, student="pocket-base")
    with pytest.raises(UsageError, match="must write the model folder"):
        run(recipe, teacher=Counting(), student=Elsewhere(), until="train", runs=tmp_path / "r")


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_a_large_base_without_a_gpu_is_refused_before_anything_is_sampled(tmp_path: Path) -> None:
    base = tmp_path / "large"
    base.mkdir()
    config = {
        "model_type": "llama",
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "intermediate_size": 8192,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    }
    (base / "config.json").write_text(json.dumps(config))
    teacher = Counting()
    recipe = recipe_of(tmp_path, student=str(base))
    with pytest.raises(UsageError, match=r"trains 1\.\dB parameters.*no GPU"):
        run(recipe, teacher=teacher, until="train", runs=tmp_path / "r")
    assert teacher.asked == []


def test_a_missing_base_is_noticed_before_anything_is_sampled(tmp_path: Path) -> None:
    teacher = Counting()
    recipe = recipe_of(tmp_path, student="no/such-base")
    with pytest.raises(ModelError, match="no/such-base"):
        run(recipe, teacher=teacher, until="train", runs=tmp_path / "r")
    assert teacher.asked == []
