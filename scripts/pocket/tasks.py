"""The pocket pair's tasks: reasoning-gym configs per difficulty, and problems to train on.

reasoning-gym draws item ``i`` of seed ``s`` from ``Random(s + i)``, so seeds 1 and 2 share all
but one of their items. Recipes use seeds below 1,000; everything here starts at 10,000 and drops
any question that a recipe could draw (items ``0 .. RESERVED - 1`` of seed 0).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import reasoning_gym

RESERVED = 3000
FIRST_SEED = 10_000
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
DIFFICULTIES = ("easy", "medium", "hard")

CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "chain_sum": {
        "easy": {"min_terms": 2, "max_terms": 3, "min_digits": 2, "max_digits": 2},
        "medium": {"min_terms": 4, "max_terms": 4, "min_digits": 2, "max_digits": 2},
        "hard": {"min_terms": 5, "max_terms": 6, "min_digits": 2, "max_digits": 2},
    },
    "letter_counting": {
        "easy": {"min_words": 3, "max_words": 4},
        "medium": {"min_words": 5, "max_words": 7},
        "hard": {"min_words": 8, "max_words": 11},
    },
    "spell_backward": {
        "easy": {"min_word_len": 4, "max_word_len": 5},
        "medium": {"min_word_len": 6, "max_word_len": 7},
        "hard": {"min_word_len": 8, "max_word_len": 10},
    },
    "number_filtering": {
        "easy": {"min_numbers": 3, "max_numbers": 4, "min_decimals": 0, "max_decimals": 0},
        "medium": {"min_numbers": 5, "max_numbers": 6, "min_decimals": 0, "max_decimals": 0},
        "hard": {"min_numbers": 7, "max_numbers": 9, "min_decimals": 0, "max_decimals": 0},
    },
    "leg_counting": {
        "easy": {"min_animals": 2, "max_animals": 3, "min_instances": 1, "max_instances": 9},
        "medium": {"min_animals": 4, "max_animals": 4, "min_instances": 1, "max_instances": 9},
        "hard": {"min_animals": 5, "max_animals": 6, "min_instances": 1, "max_instances": 12},
    },
}


@dataclass(frozen=True)
class Problem:
    """One reasoning-gym item: ``entry`` is what its dataset's ``score_answer`` needs."""

    task: str
    difficulty: str
    question: str
    answer: str
    entry: dict[str, Any]

    @property
    def prompt(self) -> str:
        """The user's message: the question as reasoning-gym words it, then R1's instruction."""
        return f"{self.question.strip()}\n{INSTRUCTION}"


def dataset(task: str, difficulty: str, seed: int, size: int) -> Any:
    """The reasoning-gym dataset of one task at one difficulty."""
    return reasoning_gym.create_dataset(task, seed=seed, size=size, **CONFIGS[task][difficulty])


def items(task: str, difficulty: str, seed: int, size: int) -> Iterator[Problem]:
    """The first ``size`` problems of a seed, in order."""
    for entry in dataset(task, difficulty, seed, size):
        yield Problem(task, difficulty, entry["question"], str(entry["answer"]), entry)


@lru_cache(maxsize=1)
def reserved_questions() -> frozenset[str]:
    """Every question a recipe may draw; no corpus may contain one of them."""
    return frozenset(
        problem.question
        for task, levels in CONFIGS.items()
        for level in levels
        for problem in items(task, level, 0, RESERVED)
    )


@lru_cache(maxsize=32)
def _long_dataset(task: str, difficulty: str) -> Any:
    return dataset(task, difficulty, FIRST_SEED, 1_000_000_000)


def draw(rng: random.Random, task: str, difficulty: str) -> Problem:
    """A random problem for a training corpus, never a reserved one."""
    source = _long_dataset(task, difficulty)
    while True:
        entry = source[rng.randrange(1_000_000_000)]
        if entry["question"] not in reserved_questions():
            return Problem(task, difficulty, entry["question"], str(entry["answer"]), entry)
