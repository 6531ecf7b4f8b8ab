"""The recipe: what is refused and how, variants, overrides, origins, identity."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from distill.errors import RecipeError, UsageError
from distill.recipe import Recipe, find_recipe, shipped_recipes

MINE = """
name: mine
problems:
  sources: [{file: problems.jsonl}]
teacher: some/teacher
student: some/base
train: {epochs: 3}
variants:
  lora: {student: {method: lora}, train: {learning_rate: 1.0e-3}}
  long: {train: {max_length: 65536}}
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    return path


def test_defaults_recipe_variant_override_in_this_order(mine: Path) -> None:
    recipe = Recipe.load(mine, variant="lora", overrides=["train.learning_rate=5e-5"])
    assert recipe.train.epochs == 3
    assert recipe.train.learning_rate == 5e-5
    assert recipe.student.method == "lora"
    assert recipe.student.base == "some/base"
    assert recipe.origin("train.epochs") == "recipe"
    assert recipe.origin("student.method") == "variant lora"
    assert recipe.origin("train.learning_rate") == "override"
    assert recipe.origin("sampling.n") == "default"


def test_several_variants_are_laid_over_each_other(mine: Path) -> None:
    recipe = Recipe.load(mine, overrides=["variant=lora,long"])
    assert recipe.variant == "lora,long"
    assert recipe.student.method == "lora"
    assert recipe.train.max_length == 65536


def test_a_mapping_on_the_command_line_replaces_and_in_a_variant_merges(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        MINE + "  more: {teacher: {options: {b: 2}}}\n  none: {teacher: {options: {}}}\n"
    )
    given = ["teacher.options.a=1"]
    assert Recipe.load(path, variant="more", overrides=given).teacher.options == {"b": 2, "a": 1}
    whole = ["teacher.options={c: 3}"]
    assert Recipe.load(path, variant="more", overrides=whole).teacher.options == {"c": 3}
    assert Recipe.load(path, variant="more,none").teacher.options == {}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trian.epochs=3", ["trian", "train"]),
        ("train.epoch=3", ["train.epoch", "epochs"]),
        ("problems.sources=[{fil: x}]", ["problems.sources.0.fil", "file"]),
        ("train.epochs=-1", ["train.epochs", "-1", "greater than 0"]),
        ("student.method=qlra", ["student.method", "qlra", "qlora"]),
        ("problems.sources=[{task: chain_sum}]", ["chain_sum", "size"]),
        ("variant=lorra", ["lorra", "lora", "did you mean"]),
        ("epochs", ["epochs", "key=value"]),
        ("sampling.want=99", ["'sampling.want' = 99"]),
        ("sampling.limits=[9, 5]", ["'sampling': limits must grow", "[9, 5,"]),
        ("teacher.replicas=0", ["'teacher.replicas' = 0", "or equal to 1"]),
    ],
)
def test_a_wrong_override_is_named_with_the_nearest_right_one(
    mine: Path, override: str, words: list[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(mine, overrides=[override])
    for word in words:
        assert word in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["- a list", "name: [", "name: \xff", "just text"])
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RecipeError, match=r"bad\.yaml"):
        Recipe.load(path)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'pocket'"):
        find_recipe("pokcet")


def test_runtime_fields_are_not_part_of_the_identity(mine: Path) -> None:
    plain = Recipe.load(mine)
    runtime = ["sampling.concurrency=7", "train.processes=2", "grading.workers=1"]
    assert Recipe.load(mine, overrides=runtime).identity() == plain.identity()
    assert Recipe.load(mine, overrides=["sampling.top_p=0.9"]).identity() != plain.identity()


def test_a_recipe_survives_its_own_dump(mine: Path) -> None:
    recipe = Recipe.load(mine, variant="lora")
    again = Recipe.from_dict(recipe.model_dump(mode="json"))
    assert again.model_dump() == recipe.model_dump()
    assert again.identity() == recipe.identity()


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_and_variant_is_valid(name: str) -> None:
    from distill.recipe import variants_of

    assert Recipe.load(name).name == name
    for variant in variants_of(name):
        assert Recipe.load(name, variant=variant).variant == variant


def test_a_path_in_an_override_starts_where_the_command_is_typed(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "elsewhere"
    (here / "data").mkdir(parents=True)
    (here / "data" / "traces.jsonl").touch()
    (here / "parts.py").touch()
    monkeypatch.chdir(here)
    recipe = Recipe.load(
        mine,
        overrides=[
            "problems.sources=[{file: data/traces.jsonl}]",
            "teacher=./parts.py:Mine",
            "student.base=no/such-folder",
        ],
    )
    assert recipe.problems.sources[0].file == str(here / "data" / "traces.jsonl")
    assert recipe.teacher.engine == f"{here / 'parts.py'}:Mine"
    assert recipe.student.base == "no/such-folder"


def test_an_interpreter_for_no_step_or_from_nowhere_is_refused(mine: Path) -> None:
    from distill.agreement import check_agreement

    for override, said in [
        ("interpreters={sampling: python3}", "sampling"),
        ("interpreters={train: /no/such/python}", "/no/such/python"),
    ]:
        with pytest.raises(UsageError, match=said):
            check_agreement(Recipe.load(mine, overrides=[override]))
    check_agreement(Recipe.load(mine, overrides=[f"interpreters={{train: {sys.executable}}}"]))


def test_an_engine_of_the_evaluation_that_is_not_there_is_found_before_anything_runs(
    mine: Path,
) -> None:
    from distill.names import check_names

    with pytest.raises(UsageError, match="vlm"):
        check_names(Recipe.load(mine, overrides=["teacher.engine=openai", "evaluate.engine=vlm"]))
