"""Several trainings in one recipe: which steps, which data, and what is done again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from distill import Recipe, run
from distill.errors import DataError, RecipeError
from distill.job import Job
from distill.records import read_jsonl
from distill.schema_stages import MergeSpec
from distill.stages import stages_of
from distill.step import Workspace
from tests import tiny_students
from tests.test_pipeline import Counting, recipe_of

HARD = {"name": "hard", "select": {"pass_rate": [0.0, 0.7]}, "train": {"learning_rate": 1e-6}}


class Uneven(Counting):
    """Right on every sample of problems with an even first number, else on two of three."""

    identity = "uneven-1"

    async def complete(self, request: Any, on_tokens: Any = None) -> Any:
        first = int(next(w for w in request.prompt[-1]["content"].split() if w.isdigit()))
        if first % 2 == 0:
            request = request.__class__(
                **{
                    **{k: getattr(request, k) for k in request.__dataclass_fields__},
                    "key": request.key.split("/")[0] + "/0/0",
                }
            )
        return await super().complete(request, on_tokens)


class Recording:
    """A trainer of ten lines: writes down what it was given and where it started."""

    version = "1"

    def __init__(self) -> None:
        self.given: list[dict[str, Any]] = []

    def train(self, dataset: Path, out: Path, config: Mapping[str, Any]) -> Path:
        rows = list(read_jsonl(dataset))
        self.given.append({"rows": rows, "student": config["student"], "train": config["train"]})
        (out / "student").mkdir(parents=True)
        (out / "student" / "config.json").write_text("{}")
        (out / "summary.json").write_text(json.dumps({"updates": 1, "examples": len(rows)}))
        return out / "student"


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Problems, and a run up to its grades, which the tests share."""
    folder = tmp_path_factory.mktemp("graded")
    run(staged(folder), teacher=Uneven(), until="grade", runs=folder / "r")
    return folder


@pytest.fixture
def place(graded: Path, tmp_path: Path) -> Path:
    """A folder with those steps; the problems' file stays where it was, as part of a recipe."""
    shutil.copytree(graded / "r", tmp_path / "r")
    (tmp_path / "problems").symlink_to(graded)
    return tmp_path


def staged(tmp_path: Path, *stages: dict[str, Any], **changes: Any) -> Recipe:
    plain = {"filters": ["correct"], "select__min_tries": 3, "student": "pocket-base", **changes}
    problems = tmp_path / "problems"
    return recipe_of(
        problems.resolve() if problems.exists() else tmp_path, stages=list(stages), **plain
    )


def train(tmp_path: Path, recipe: Recipe, until: str = "train") -> tuple[dict[str, Any], Any]:
    trainer = Recording()
    report = run(recipe, teacher=Uneven(), student=trainer, until=until, runs=tmp_path / "r")
    return dict(json.loads((report.path.parent / "run.json").read_text())), trainer


def test_a_stage_trains_the_student_of_the_stage_before(place: Path) -> None:
    record, trainer = train(place, staged(place, {"name": "all"}, HARD))
    assert list(record["steps"])[-5:] == [
        "filter",
        "select-all",
        "select-hard",
        "train-all",
        "train-hard",
    ]
    one, two = trainer.given
    first = place / "r" / record["steps"]["train-all"]["folder"] / "student"
    assert two["student"]["base"] == str(first)
    assert (one["train"]["learning_rate"], two["train"]["learning_rate"]) == (1e-5, 1e-6)
    asked = [int(row["messages"][0]["content"].split()[2]) for row in two["rows"]]
    assert asked
    assert all(number % 2 for number in asked)
    assert len(one["rows"]) > len(two["rows"])


def test_a_later_stage_changes_nothing_before_it(place: Path) -> None:
    before, _ = train(place, staged(place, {"name": "all"}, HARD))
    changed = {**HARD, "train": {"learning_rate": 2e-6}}
    after, trainer = train(place, staged(place, {"name": "all"}, changed))
    assert len(trainer.given) == 1
    for name in ("select-all", "select-hard", "train-all"):
        assert after["steps"][name]["id"] == before["steps"][name]["id"]
    assert after["steps"]["train-hard"]["id"] != before["steps"]["train-hard"]["id"]


@pytest.mark.slow
def test_adding_or_renaming_a_stage_trains_nothing_again(place: Path) -> None:
    plain, _ = train(place, staged(place))
    assert list(plain["steps"])[-2:] == ["select", "train"]
    record, trainer = train(place, staged(place, {"name": "all"}, HARD))
    assert record["steps"]["train-all"]["id"] == plain["steps"]["train"]["id"]
    assert len(trainer.given) == 1
    _, again = train(place, staged(place, {"name": "first"}, {**HARD, "name": "second"}))
    assert again.given == []


def test_a_stage_with_filters_of_its_own(place: Path) -> None:
    short = {"name": "short", "filters": ["correct", {"length": {"max_tokens": 1000}}]}
    record, _ = train(place, staged(place, {"name": "all"}, short), until="select")
    names = ["filter", "filter-short", "select-all", "select-short"]
    assert list(record["steps"])[-4:] == names
    record, _ = train(place, staged(place, {"name": "all"}, short), until="filter")
    assert list(record["steps"])[-2:] == names[:2]


def test_stages_survive_being_written_down(place: Path) -> None:
    recipe = staged(place, {"name": "all"}, HARD, train__epochs=3)
    again = Recipe.from_dict(json.loads(json.dumps(recipe.model_dump(mode="json"))))
    assert [s.recipe.identity() for s in stages_of(again)] == [
        s.recipe.identity() for s in stages_of(recipe)
    ]
    assert stages_of(again)[1].recipe.train.epochs == 3


def test_a_recipe_without_stages_is_what_it_was() -> None:
    assert {"stages", "merge"}.isdisjoint(Recipe.load("pocket").identity())
    assert {"pass_rate", "min_tries"}.isdisjoint(Recipe.load("pocket").select.identity())


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([{"name": "a"}, {"name": "a"}], "two stages are called 'a'"),
        ([{"name": "A b"}], "stages.0.name"),
        ([{"name": "a", "train": {"learning_rat": 1}}], "did you mean 'learning_rate'"),
        ([{"name": "a", "select": {"pass_rate": [0.7, 0.5]}}], "pass_rate is"),
        ([{"name": "a", "select": {"validation": 0.1}}, {"name": "b"}], "select.validation"),
        ([{"name": "a", "select": {"mix": {"x": 1}, "balance": "r1"}}], "not both"),
    ],
)
def test_what_is_wrong_is_said(place: Path, stages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Job(staged(place, *stages), Workspace(place))


def test_an_override_names_a_stage(place: Path) -> None:
    path = place / "mine.yaml"
    path.write_text("name: mine\nstages: [{name: all}, {name: hard, train: {epochs: 3}}]\n")
    changed = ["stages.hard.train.learning_rate=1e-6", "train.epochs=1", "stages.all.train.seed=5"]
    one, two = (s.recipe.train for s in stages_of(Recipe.load(path, overrides=changed)))
    assert (one.epochs, one.seed, two.epochs, two.learning_rate) == (1, 5, 3, 1e-6)
    with pytest.raises(RecipeError, match="no stage 'hart'; did you mean 'hard'"):
        Recipe.load(path, overrides=["stages.hart.train.epochs=2"])


def test_sections_that_only_disagree_together(place: Path) -> None:
    recipe = staged(place, {"name": "a", "select": {"balance": "r1"}}, select__mix={"sums": 3})
    with pytest.raises(RecipeError, match=r"stage 'a'.*not both"):
        Job(recipe, Workspace(place))


def test_no_problem_is_hard(place: Path) -> None:
    never = {"name": "hard", "select": {"pass_rate": [0.0, 0.1]}}
    with pytest.raises(DataError, match=r"of 1[0-9] graded problems 0 are within"):
        train(place, staged(place, {"name": "all"}, never), until="select")


def test_few_tries_are_no_rate(place: Path) -> None:
    recipe = staged(place, {"name": "all"}, HARD, select__min_tries=4)
    with pytest.raises(DataError, match="have fewer than 4 graded traces"):
        train(place, recipe, until="select")
    record, _ = train(place, staged(place, {"name": "all"}, HARD), until="select")
    folder = place / "r" / record["steps"]["select-hard"]["folder"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["left_out"]["pass_rate"] > 0
    # 3 tries at 85%: at most 2 right in 1 - 0.85 ** 3 of the cases.
    assert any("in 39% of the cases" in note for note in summary["notes"])


@pytest.mark.slow
def test_two_real_trainings_and_a_merge(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    base = tiny_students.base(tmp_path / "base")
    recipe = staged(
        tmp_path,
        {"name": "all"},
        {**HARD, "train": {"learning_rate": 1e-4}, "student": {"method": "lora"}},
        student={"base": str(base), "think_tokens": "tokens"},
        train={
            "epochs": 1,
            "batch_size": 4,
            "max_length": 256,
            "learning_rate": 1e-2,
            "gradient_checkpointing": False,
            "lora": {"rank": 4},
        },
    )
    run(recipe, teacher=Uneven(), until="train", runs=tmp_path / "r")
    # A run stands for its student: this merge changes nothing.
    recipe.merge = MergeSpec(models=["student", first_run(tmp_path)], weights=[3, 1])
    report = run(recipe, teacher=Uneven(), until="merge", runs=tmp_path / "r")
    record = json.loads((report.path.parent / "run.json").read_text())
    folders = {n: tmp_path / "r" / e["folder"] / "student" for n, e in record["steps"].items()}
    one, two = folders["train-all"], folders["train-hard"]
    for name in ("chat_template.jinja", "generation_config.json"):
        assert (one / name).read_text() == (two / name).read_text(), name
    vocabularies = [AutoTokenizer.from_pretrained(folder) for folder in (one, two)]
    assert vocabularies[0].get_vocab() == vocabularies[1].get_vocab()
    assert vocabularies[0].eos_token == vocabularies[1].eos_token == "<|im_end|>"
    first, second = (load_file(folder / "model.safetensors") for folder in (one, two))
    rows = first["model.embed_tokens.weight"]
    think = vocabularies[0].convert_tokens_to_ids("<think>")
    # Added again, the row of <think> would have gone back to the mean.
    assert torch.equal(rows[think], second["model.embed_tokens.weight"][think])
    assert not torch.equal(rows[think], rows.mean(0))
    merged = load_file(folders["merge"] / "model.safetensors")
    for name in second:
        torch.testing.assert_close(merged[name], second[name], rtol=0, atol=1e-6)
    assert report.student == folders["merge"]
    training = report.numbers["training"]
    assert [s["name"] for s in training["stages"]] == ["all", "hard"]
    updates = [s["updates"] for s in training["stages"]]
    assert training["stages"][1]["starts"] == updates[0]
    assert training["curve"][-1]["step"] == sum(updates)
    card = (folders["merge"] / "README.md").read_text()
    assert "merged with other" in card
    assert f"base_model: {base}" in (one / "README.md").read_text()
    assert str(one) not in (two / "README.md").read_text()


def first_run(tmp_path: Path) -> str:
    (found,) = (p.parent for p in (tmp_path / "r").glob("*/run.json"))
    return str(found)
