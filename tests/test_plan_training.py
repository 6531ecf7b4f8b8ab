"""Memory and hours of a training, and the cheapest setting that fits."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from distill import models
from distill.plan_advice import ORDER, advice, fits
from distill.plan_data import Data, expected_data, lengths
from distill.plan_machines import GIB, machine, machines
from distill.plan_sampling import Basis, default_basis, problem_count
from distill.plan_search import METHODS, Found, as_it_is, cheapest, sections
from distill.plan_training import at_least, evaluate, memory
from distill.recipe import Recipe, shipped_recipes, variants_of

SIZES = ["1.5b", "7b", "8b", "14b", "32b", "70b"]


def arch_of(recipe: Recipe) -> Any:
    return models.student_entry(recipe.student.base).arch


def data_of(recipe: Recipe) -> Data:
    return expected_data(recipe, problem_count(recipe), default_basis(recipe))


def best(name: str, method: str, on: str, *overrides: str) -> Found:
    recipe = Recipe.load(name, overrides=list(overrides))
    return cheapest(recipe, method, arch_of(recipe), machine(on), data_of(recipe))


def states(base: str, **changes: Any) -> float:
    """Bytes of weights, gradients and optimizer of full training in one process."""
    recipe = Recipe.load("7b", overrides=["train.processes=1", "train.shard=none"])
    student, train, _ = sections(recipe, "full")
    parts = memory(models.student_entry(base).arch, student, {**train, **changes})
    return float(parts.weights + parts.gradients + parts.optimiser)


def test_states_of_full_training_are_what_the_field_knows() -> None:
    assert states("Qwen/Qwen2.5-32B", max_length=512) == pytest.approx(512e9, rel=0.06)
    seventy = states("meta-llama/Llama-3.3-70B-Instruct", max_length=512)
    assert seventy == pytest.approx(1.1e12, rel=0.06)
    assert seventy > 8 * 80 * GIB


def test_logits_are_never_whole() -> None:
    arch = models.student_entry("Qwen/Qwen2.5-Math-7B").arch
    whole = arch.vocab * 32768 * 4
    assert whole == pytest.approx(20e9, rel=0.01)
    recipe = Recipe.load("7b")
    student, train, _ = sections(recipe, "full")
    assert memory(arch, student, train).logits < whole / 4


def check_own_setting(name: str, variant: str = "") -> None:
    recipe = Recipe.load(name, variant=variant)
    arch, data = arch_of(recipe), data_of(recipe)
    for on in machines():
        found = as_it_is(recipe, arch, on, data).trained
        assert found.needed > 0, (name, variant, on.label)
        assert found.fits == (not found.short)
        if found.fits:
            assert found.free >= 0
            assert found.hours is None or found.hours > 0


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_recipe_says_what_it_needs_on_every_machine(name: str) -> None:
    check_own_setting(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_recipes())
def test_every_variant_says_what_it_needs_on_every_machine(name: str) -> None:
    for variant in variants_of(name):
        check_own_setting(name, variant)


def test_a_recipe_of_eight_gpus_does_not_fit_one() -> None:
    recipe = Recipe.load("7b")
    arch, data = arch_of(recipe), data_of(recipe)
    assert as_it_is(recipe, arch, machine("1x80"), data).trained.short == "asks for 8 GPUs"
    assert as_it_is(recipe, arch, machine("8x80"), data).trained.fits
    two = recipe.model_copy(update={"train": recipe.train.model_copy(update={"nodes": 2})})
    said = as_it_is(two, arch, machine("8x80"), data).trained.short
    assert said == "asks for 2 nodes of 8 GPUs"


def test_the_cheapest_setting_is_what_to_type() -> None:
    full = best("1.5b", "full", "8x80")
    assert full.trained.fits
    assert full.overrides == ("train.processes=8",)
    assert full.trained.free >= 0.05
    lora = best("7b", "lora", "1x80")
    assert lora.overrides == ("variant=lora",)
    # What is typed is what was planned.
    typed = Recipe.load("7b", overrides=list(lora.overrides))
    again = as_it_is(typed, arch_of(typed), machine("1x80"), data_of(typed)).trained
    assert again.needed == lora.trained.needed
    assert again.hours == pytest.approx(lora.trained.hours)


def test_what_was_typed_stays_under_another_method() -> None:
    recipe = Recipe.load(
        "7b", variant="published,full,17k", overrides=["train.epochs=7", "train.lora.rank=8"]
    )
    student, train, typed = sections(recipe, "lora")
    assert typed == ("variant=published,lora,17k",)
    assert student["method"] == "lora"
    assert (train["epochs"], train["lora"]["rank"]) == (7, 8)
    assert train["learning_rate"] == pytest.approx(8e-4)
    assert train["batch_size"] == 64  # 17k comes after lora, as typed


def test_a_recipe_without_variants_gets_the_method_and_its_rate() -> None:
    recipe = Recipe.from_dict({"name": "mine", "student": {"base": "Qwen/Qwen2.5-1.5B"}})
    _, train, typed = sections(recipe, "lora")
    assert typed == ("student.method=lora", "train.learning_rate=0.0001")
    assert train["learning_rate"] == pytest.approx(1e-4)
    assert sections(recipe, "full")[2] == ()


def test_a_shorter_length_is_the_last_resort_and_said() -> None:
    found = best("14b", "qlora", "1x40")
    assert found.trained.fits
    assert found.train["max_length"] < 32768
    assert "longer: left out" in found.compromise
    assert any(o.startswith("train.max_length=") for o in found.overrides)
    assert best("14b", "qlora", "1x80").compromise == ""
    none = best("70b", "full", "1x24")
    assert not none.trained.fits
    assert none.trained.short.startswith("needs ")


def test_offloading_needs_the_hosts_memory() -> None:
    recipe = Recipe.load("32b", overrides=["train.offload=true"])
    arch, data = arch_of(recipe), data_of(recipe)
    found = as_it_is(recipe, arch, machine("8x80"), data).trained
    assert found.host > 12 * arch.params / 1e9
    poor = dataclasses.replace(
        machine("8x80"), gpu=dataclasses.replace(machine("8x80").gpu, host=30)
    )
    assert "host" in as_it_is(recipe, arch, poor, data).trained.short


@pytest.mark.parametrize("name", ["1.5b", "32b"])
def test_the_fast_bound_is_never_above_the_estimate(name: str) -> None:
    recipe = Recipe.load(name)
    arch = arch_of(recipe)
    for method in METHODS:
        student, train, _ = sections(recipe, method)
        for changes in ({}, {"gradient_checkpointing": False, "max_length": 4096}):
            setting = {**train, **changes}
            bound = at_least(arch, student, setting)
            exact = memory(arch, student, setting).total
            assert bound <= exact * 1.001
            assert bound > exact * 0.8


def test_hours_follow_from_flops() -> None:
    recipe = Recipe.load("1.5b")
    arch, data = arch_of(recipe), data_of(recipe)
    student, train, _ = sections(recipe, "full")
    on = machine("1x80")
    kept = data.within(train["max_length"])
    found = evaluate(arch, student, train, on, kept)
    count = models.of_students("flops:training_flops")
    flops = sum(count(arch, [n]) for n in kept.lengths) / len(kept.lengths) * kept.seen(train)
    assert found.hours == pytest.approx(flops / (0.4 * on.gpu.flops) / 3600, rel=0.01)
    assert found.mfu == pytest.approx(0.4, rel=0.01)
    twice = evaluate(arch, student, train, on, kept, 0.2)
    assert twice.hours == pytest.approx(2 * found.hours)
    # Without recomputation less is computed at the same rate.
    kept_all = evaluate(arch, student, {**train, "gradient_checkpointing": False}, on, kept)
    assert kept_all.short or kept_all.hours < found.hours
    eight = evaluate(arch, student, {**train, "processes": 8}, machine("8x80"), kept)
    assert found.hours / 8 < eight.hours < found.hours / 5


def test_sharing_rows_takes_memory_off_and_time_on() -> None:
    recipe = Recipe.load("7b")
    arch, data = arch_of(recipe), data_of(recipe)
    student, train, _ = sections(recipe, "full")
    one = evaluate(arch, student, train, machine("8x80"), data)
    two = evaluate(arch, student, {**train, "context_parallel": 2}, machine("8x80"), data)
    assert two.needed < one.needed
    assert two.hours == pytest.approx(1.1 * one.hours, rel=0.02)


# -- data ----------------------------------------------------------------------------------------


def test_lengths_have_the_mean_they_were_asked_for() -> None:
    found = lengths(5555, 32968)
    assert sum(found) / len(found) == pytest.approx(5555, rel=0.01)
    assert max(found) <= 32968
    assert max(found) > 3 * sorted(found)[len(found) // 2]


def test_examples_are_what_selection_leaves() -> None:
    small = data_of(Recipe.load("7b", variant="published,1k"))
    assert small.examples == 1000
    assert small.updates(Recipe.load("7b", variant="published,1k").train.model_dump()) == 63 * 5
    every = Recipe.load("pocket", variant="unfiltered")
    count = problem_count(every)
    assert data_of(every).examples == pytest.approx(
        count * min(every.select.per_problem, every.sampling.n), rel=0.01
    )
    right = data_of(Recipe.load("pocket"))
    assert right.examples < count * Recipe.load("pocket").select.per_problem
    shorter = small.within(8192)
    assert shorter.examples == pytest.approx(1000 * (1 - shorter.too_long), abs=1)
    assert shorter.mean < small.mean


def test_an_earlier_runs_lengths_are_taken_as_they_are() -> None:
    recipe = Recipe.load("7b")
    basis = Basis((1, 1), 100, "a pilot", lengths=(50, 100, 200))
    assert expected_data(recipe, 1000, basis).lengths == (50, 100, 200)


# -- advice --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_advice_is_a_setting_that_needs_clearly_less() -> None:
    recipe = Recipe.load("32b")
    said = advice(recipe, machine("8x80"))
    assert "train.offload=true" in said
    assert "8x80 GB" in said
    warned = fits(recipe, machine("8x80"))
    assert warned is not None
    assert warned.startswith("the training does not fit 8x80 GB: needs ")
    assert fits(Recipe.load("7b"), machine("8x80")) is None
    assert "variant=lora" in advice(Recipe.load("1.5b"), machine("1x24"))


def test_advice_where_nothing_is_known_is_an_order_and_never_an_error() -> None:
    assert advice(Recipe.from_dict({"name": "mine"}), machine("8x80")) == ORDER
    assert advice(Recipe.load("7b", overrides=["student.base=/nowhere"]), machine("8x80")) == ORDER
    broken: Any = None
    assert advice(broken, machine("8x80")) == ORDER
    assert fits(broken, machine("8x80")) is None


def test_advice_says_when_the_plan_expected_room() -> None:
    said = advice(Recipe.load("7b", variant="qlora"), machine("1x80"))
    assert said.startswith("the planner expected")
    assert "nvidia-smi" in said
