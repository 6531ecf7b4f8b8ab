"""A recipe with a general part: problems without answers beside checkable ones, to a mixed set."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill import Recipe, run
from distill.agreement import check_agreement, open_sources
from distill.errors import UsageError
from distill.mix import quotas
from distill.protocols import Capabilities, Completion, OnTokens, Request, Usage
from distill.records import Example, read_jsonl, read_records
from tests.fake_server import Asked, FakeServer, Reply, stream


class Teacher:
    """Adds rightly, and answers every other open question well."""

    identity = "general-1"
    capabilities = Capabilities(deterministic=True)

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def complete(self, request: Request, on_tokens: OnTokens | None = None) -> Completion:
        self.asked.append(request.key)
        text: str = request.prompt[-1]["content"]  # type: ignore[index, call-overload]
        number = int("".join(c for c in text.split("?")[0] if c.isdigit()))
        if "+" in text:
            answer = f"\\boxed{{{2 * (number % 100)}}}"
        else:
            answer = f"A {'good' if number % 2 else 'bad'} poem about {number}."
        chain = f"Let me think about {number}, it will be good."
        return Completion(
            text=f"<think>\n{chain}\n</think>\n\n{answer}",
            usage=Usage(prompt_tokens=10, completion_tokens=20),
        )


def recipe_of(folder: Path, **changes: Any) -> Recipe:
    sums = [{"problem": f"What is {i:02d} + {i:02d} ?", "answer": str(2 * i)} for i in range(24)]
    poems = [{"problem": f"A poem about {i} please?"} for i in range(30)]
    for name, rows in (("sums", sums), ("poems", poems)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return Recipe.from_dict(
        {
            "name": "general",
            "problems": {
                "heldout": 0.2,
                "sources": [
                    {"file": str(folder / "sums.jsonl"), "name": "reasoning"},
                    {
                        "file": str(folder / "poems.jsonl"),
                        "name": "general",
                        "gold": None,
                        "instruction": "",
                    },
                ],
            },
            "sampling": {"n": 1, "max_tokens": 64},
            "filters": ["truncated", "correct", "format", "duplicates"],
            "select": {"mix": {"reasoning": 0.75, "general": 0.25}},
            **changes,
        }
    )


def go(folder: Path, teacher: Any, **changes: Any) -> dict[str, Path]:
    report = run(recipe_of(folder, **changes), teacher=teacher, until="select", runs=folder / "r")
    record = json.loads((report.path.parent / "run.json").read_text())
    return {name: folder / "r" / step["folder"] for name, step in record["steps"].items()}


def referee(asked: Asked) -> Reply:
    assert asked.body is not None
    good = "good" in asked.body["messages"][-1]["content"].partition("<response>")[2]
    return stream(json.dumps({"verdict": "correct" if good else "wrong", "reason": "read"}))


@pytest.mark.slow
def test_a_judged_general_part_is_mixed_in(tmp_path: Path) -> None:
    teacher = Teacher()
    with FakeServer(referee) as server:
        judge = {"judge": {"engine": "openai", "model": "m", "base_urls": [server.url]}}
        steps = go(tmp_path, teacher, grading={"graders": ["auto", judge]})
        asked = sum(a.body is not None for a in server.asked)
        again = go(
            tmp_path,
            teacher,
            grading={"graders": ["auto", judge]},
            select={"mix": {"reasoning": 4, "general": 12}},
        )
        assert sum(a.body is not None for a in server.asked) == asked == 30
    assert len(teacher.asked) == len(set(teacher.asked))
    assert steps["grade"] == again["grade"]
    grades = list(read_jsonl(steps["grade"] / "grades.jsonl"))
    by_grader = Counter((g["grader"], g["outcome"]) for g in grades)
    assert by_grader["judge", "correct"] == by_grader["judge", "wrong"] == 15
    examples = list(read_records(Example, steps["select"] / "dataset.jsonl"))
    sources = Counter(e.source for e in examples)
    assert sources["reasoning"] == 3 * sources["general"] > 0
    poems = [e for e in examples if e.source == "general"]
    assert all("A good poem" in e.messages[-1]["content"] for e in poems)
    assert all("\\boxed" not in e.messages[0]["content"] for e in poems)
    chosen = Counter(e.source for e in read_records(Example, again["select"] / "dataset.jsonl"))
    assert chosen == {"reasoning": 4, "general": 12}
    dropped = Counter(
        v["filter"] for v in read_jsonl(again["select"] / "verdicts.jsonl") if not v["kept"]
    )
    assert dropped["correct"] == 15
    assert dropped["select"] == len(grades) - 15 - 16


def test_an_ungraded_general_part_is_kept_only_where_the_recipe_says_so(tmp_path: Path) -> None:
    teacher = Teacher()
    with pytest.raises(UsageError, match="source 'general' has no gold answers"):
        go(tmp_path, teacher)
    assert teacher.asked == []
    filters = ["truncated", {"correct": {"ungraded": "keep"}}, "format"]
    steps = go(tmp_path, teacher, filters=filters)
    summary = json.loads((steps["grade"] / "summary.json").read_text())
    assert summary["outcomes"]["ungraded"] == 30
    assert summary["judges"] == []
    sources = Counter(e.source for e in read_records(Example, steps["select"] / "dataset.jsonl"))
    assert sources["reasoning"] == 3 * sources["general"] > 0


def test_adaptive_sampling_cannot_wait_for_a_judge(tmp_path: Path) -> None:
    judge = {"judge": {"engine": "openai", "model": "m", "base_urls": ["http://127.0.0.1:9/v1"]}}
    with pytest.raises(UsageError, match=r"sampling\.want"):
        go(
            tmp_path,
            Teacher(),
            grading={"graders": ["auto", judge]},
            sampling={"want": 1, "max_tokens": 64},
        )


def test_adaptive_sampling_counts_what_a_judge_decides_later(tmp_path: Path) -> None:
    teacher = Teacher()
    with FakeServer(referee) as server:
        judge = {"judge": {"engine": "openai", "model": "m", "base_urls": [server.url]}}
        steps = go(
            tmp_path,
            teacher,
            grading={"graders": ["auto", judge]},
            filters=["truncated", {"correct": {"ungraded": "keep"}}],
            sampling={"want": 1, "max": 4, "max_tokens": 64},
            select={"mix": {"general": 9}},
        )
    tries = Counter(key.split("/")[0] for key in teacher.asked)
    assert set(tries.values()) == {1}  # all are accepted at once: the judge comes afterwards
    outcomes = Counter(g["outcome"] for g in read_jsonl(steps["grade"] / "grades.jsonl"))
    assert outcomes["wrong"] == 15
    chosen = Counter(e.source for e in read_records(Example, steps["select"] / "dataset.jsonl"))
    assert chosen["general"] == 9


def test_a_mix_of_unknown_sources_is_refused_before_sampling(tmp_path: Path) -> None:
    teacher = Teacher()
    keep = ["truncated", {"correct": {"ungraded": "keep"}}]
    with pytest.raises(UsageError, match="did you mean 'general'"):
        go(tmp_path, teacher, filters=keep, select={"mix": {"genral": 5}})
    assert teacher.asked == []


def test_the_recipe_of_the_page_is_one_that_can_be_run() -> None:
    page = (Path(__file__).parent.parent / "docs" / "general-data.md").read_text()
    recipe = Recipe.from_dict(yaml.safe_load(page.split("```yaml")[1].split("```")[0]))
    check_agreement(recipe)
    assert open_sources(recipe) == ["general"]
    room = quotas({"reasoning": 10**6, "general": 10**6}, recipe.select.mix, 800_000)
    assert room == {"reasoning": 600_000, "general": 200_000}
