"""The cheapest setting of each method that fits a machine, as the overrides to type.

Searched are the keys that cannot change a result (processes, sharding, offload, recomputation,
tokens of a forward pass). A lower `max_length` leaves examples out, and a lower rank learns less:
they are tried only where nothing else fits, in this order, and said.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from distill.plan_data import Data
from distill.plan_machines import GIB, Machine
from distill.plan_models import new_tokens
from distill.plan_training import Trained, at_least, evaluate, hours_of
from distill.recipe import Recipe, variants_of

METHODS = ("full", "lora", "qlora")
MARGIN = 0.05
"""Share of a GPU's memory that a suggested setting leaves free: the estimate may be that wrong."""
SHORTER = (24576, 16384, 8192, 4096, 2048, 1024, 512)
"""Lengths that are tried where the recipe's does not fit."""
LOWER_RANKS = (64, 32, 16)
"""Ranks of LoRA that are tried where no length fits."""
LEFT_OUT = 0.5
"""The largest share of examples that a shorter `max_length` may leave out."""
FULL_PASS = 32768
"""Tokens of a forward pass beyond which more make nothing faster."""
EQUAL = 0.03
"""Settings whose hours differ by less are equally fast: the one nearest the recipe is taken."""
KEYS = (
    *("processes", "nodes", "shard", "offload", "gradient_checkpointing", "micro_batch_tokens"),
    *("context_parallel", "max_length"),
)
LORA_RATE = 10
"""LoRA's learning rate over that of full training (LoRA Without Regret, Thinking Machines 2025)."""

Sections = tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]
"""Student and train sections of a method, and the overrides that lead to them."""


@dataclass(frozen=True, slots=True)
class Found:
    """A setting with what to type for it; `compromise` says what it gives up (empty: nothing)."""

    trained: Trained
    overrides: tuple[str, ...]
    train: Mapping[str, Any]
    compromise: str = ""


def as_it_is(
    recipe: Recipe, arch: Any, machine: Machine, data: Data, mfu: float | None = None
) -> Found:
    """The recipe's own setting on this machine."""
    student, train, _ = own(recipe)
    return Found(
        evaluate(arch, student, train, machine, data.within(train["max_length"]), mfu), (), train
    )


def cheapest(
    recipe: Recipe,
    method: str,
    arch: Any,
    machine: Machine,
    data: Data,
    *,
    mfu: float | None = None,
    below: float = math.inf,
    way: Sections | None = None,
) -> Found:
    """The fastest setting of `method` that fits with a margin, else the one that needs least.

    The whole machine is paid for, so the fastest is the cheapest. `below` bounds the memory in GiB;
    `way` is `sections(recipe, method)` where that was asked before.
    """
    student, train, typed = way or sections(recipe, method)
    whole = recipe.train.max_length
    room = min((1 - MARGIN) * machine.gpu.usable, below * GIB)
    for start, kept in _attempts(train, method, data, whole):
        look = _Look(arch, student, train, machine, kept, mfu)
        settings = list(_settings(start, machine, method))
        chosen = look.fastest(settings, room)
        if chosen is not None:
            break
    if chosen is None:
        chosen = look.smallest(settings)
    said = _compromise(chosen, train, whole, kept.too_long - data.within(whole).too_long)
    trained = evaluate(arch, student, chosen, machine, kept, mfu)
    return Found(trained, (*typed, *_typed(chosen, train)), chosen, said)


def _attempts(
    train: Mapping[str, Any], method: str, data: Data, whole: int
) -> Iterator[tuple[dict[str, Any], Data]]:
    """What is given up one after another: nothing, length, and then the adapter's rank."""
    rank = train["lora"]["rank"]
    lower = [] if method == "full" else [r for r in LOWER_RANKS if r < rank]
    for chosen in (rank, *lower):
        for length in (train["max_length"], *(n for n in SHORTER if n < train["max_length"])):
            kept = data.within(length)
            if length < whole and kept.too_long > LEFT_OUT:
                break
            yield {**train, "max_length": length, "lora": {**train["lora"], "rank": chosen}}, kept


def _compromise(
    chosen: Mapping[str, Any], train: Mapping[str, Any], whole: int, left_out: float
) -> str:
    found = []
    if chosen["lora"]["rank"] < train["lora"]["rank"]:
        found.append(f"rank {chosen['lora']['rank']} instead of {train['lora']['rank']}")
    if chosen["max_length"] < whole:
        share = f"{left_out:.0%}" if left_out >= 0.01 else "under 1%"
        found.append(f"{share} of the examples are longer: left out")
    return "; ".join(found)


@dataclass(frozen=True, slots=True)
class _Look:
    """One look for a setting: of one method, on one machine, at one length."""

    arch: Any
    student: Mapping[str, Any]
    train: Mapping[str, Any]
    machine: Machine
    data: Data
    mfu: float | None

    def fastest(self, settings: list[dict[str, Any]], room: float) -> dict[str, Any] | None:
        """The fastest setting in `room` bytes; of equally fast ones that nearest the recipe."""
        ranked = sorted(((*self._slowness(s), n) for n, s in enumerate(settings)))
        best = next((r for r in ranked if self._fits(settings[r[-1]], room)), None)
        if best is None:
            return None
        near = sorted(
            (len(_typed(settings[r[-1]], self.train)), r)
            for r in ranked
            if r[0] <= best[0] * (1 + EQUAL)
        )
        most = len(_typed(settings[best[-1]], self.train))
        nearer = (r for n, r in near if n < most and self._fits(settings[r[-1]], room))
        return settings[next(nearer, best)[-1]]

    def smallest(self, settings: list[dict[str, Any]]) -> dict[str, Any]:
        """The setting that needs least memory."""
        return min(settings, key=lambda s: at_least(self.arch, self.student, s))

    def _slowness(self, setting: Mapping[str, Any]) -> tuple[float, float]:
        hours = hours_of(self.arch, self.student, setting, self.machine, self.data, self.mfu)
        # Without a number of examples: what moves and repeats least.
        moves = 8 * setting["offload"] + 4 * setting["gradient_checkpointing"]
        moves += 2 * (setting["shard"] != "none")
        return (hours, 0.0) if hours is not None else (moves, 0.0)

    def _fits(self, setting: Mapping[str, Any], room: float) -> bool:
        if at_least(self.arch, self.student, setting, room) > room:
            return False
        found = evaluate(self.arch, self.student, setting, self.machine, self.data, self.mfu)
        return found.fits and found.needed * GIB < room


def _settings(train: Mapping[str, Any], machine: Machine, method: str) -> Iterator[dict[str, Any]]:
    """All settings worth a look on all GPUs of a machine."""
    length = train["max_length"]
    sharded = train["shard"] if train["shard"] != "none" else "fsdp"
    # bitsandbytes' weights are not sharded by this trainer: every process holds all of them.
    shards = ["none", sharded] if machine.total > 1 and method != "qlora" else ["none"]
    own = train["micro_batch_tokens"]
    budget = None if own is None else max(own, length)
    for shard, again in itertools.product(shards, (True, False)):
        # Sharded weights are gathered for every pass: larger ones may be faster.
        budgets = [budget]
        if shard != "none" and length <= FULL_PASS // 2 and (own or 0) < FULL_PASS:
            budgets.append(FULL_PASS)
        together = [1]
        if shard == "fsdp" and train["packing"] and again:
            together += [n for n in (2, 4, 8) if machine.gpus % n == 0]
        for tokens, offload, context in itertools.product(budgets, (False, True), together):
            if offload and shard == "none":
                continue
            yield {
                **train,
                "processes": machine.gpus,
                "nodes": machine.nodes,
                "shard": shard,
                "offload": offload,
                "gradient_checkpointing": again,
                "micro_batch_tokens": tokens,
                "context_parallel": context,
            }


def _typed(setting: Mapping[str, Any], train: Mapping[str, Any]) -> tuple[str, ...]:
    """The overrides from one train section to another."""
    typed = [f"train.{key}={_yaml(setting[key])}" for key in KEYS if setting[key] != train[key]]
    if setting["lora"]["rank"] != train["lora"]["rank"]:
        typed.append(f"train.lora.rank={setting['lora']['rank']}")
    return tuple(typed)


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def own(recipe: Recipe) -> Sections:
    """The recipe's own sections; the student's with the number of its new tokens."""
    student = recipe.student.model_dump(mode="json")
    student["new_tokens"] = new_tokens(recipe)
    return student, recipe.train.model_dump(mode="json"), ()


def sections(recipe: Recipe, method: str) -> Sections:
    """The sections of the recipe by `method`, and the overrides that lead there.

    A recipe's variant of that name brings its learning rate and batch; without one the method is
    changed and the rate with it. What the user typed stays.
    """
    student, train, _ = own(recipe)
    if student["method"] == method:
        return student, train, ()
    path = recipe._path
    known = variants_of(str(path)) if path is not None else []
    if method in known:
        chosen = [v for v in recipe.variant.split(",") if v]
        place = next((i for i, v in enumerate(chosen) if v in METHODS), None)
        rest = [v for v in chosen if v not in METHODS]
        rest.insert(min(place or 0, len(rest)), method)
        words = ",".join(rest)
        other = Recipe.load(str(path), variant=words)
        if other.student.method == method:
            new_student, new_train, _ = own(other)
            _keep_overrides(recipe, new_student, new_train)
            return new_student, new_train, (f"variant={words}",)
    rate = train["learning_rate"]
    if student["method"] == "full":
        rate *= LORA_RATE
    elif method == "full":
        rate /= LORA_RATE
    typed = [f"student.method={method}"]
    if rate != train["learning_rate"]:
        typed.append(f"train.learning_rate={rate:.3g}")
    return {**student, "method": method}, {**train, "learning_rate": rate}, tuple(typed)


def _keep_overrides(recipe: Recipe, student: dict[str, Any], train: dict[str, Any]) -> None:
    mine = {"student": own(recipe)[0], "train": own(recipe)[1]}
    for key, by in recipe._origins.items():
        section, _, name = key.partition(".")
        if by != "override" or section not in mine or name == "method":
            continue
        target = student if section == "student" else train
        first, _, second = name.partition(".")
        if second and isinstance(target.get(first), dict):
            target[first][second] = mine[section][first][second]
        elif first in target:
            target[first] = mine[section][first]
