"""The teacher's corpus: chains of thought with checks, corrections, and a few bad habits.

Each writer turns a problem into lines of reasoning and the answer they lead to. Slips that are
noticed ("Wait, ...") teach checking; slips that are not, guesses, endless doubt and unclosed
reasoning are put in on purpose, so that rejection sampling has something to reject. A habit has
to be frequent in the corpus to survive temperature 0.6 and top-p 0.95, which sharpen it away.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from reasoning_gym.arithmetic.leg_counting import ANIMALS

from .tasks import Problem

LEVEL = {"easy": 0, "medium": 1, "hard": 2}
P_NOTICED = 0.12  # per step: wrong, then "Wait, ..." and right
P_ENDLESS = 0.5  # of the doubting
P_CHECK = 0.4
MAX_CHARS = 420  # an endless chain is cut here, without an end token


@dataclass(frozen=True)
class Habits:
    """Shares of bad habits at easy, medium and hard problems."""

    guess: tuple[float, float, float]  # answers without working, mostly wrong
    slip: tuple[float, float, float]  # per step: wrong and carried on
    doubt: tuple[float, float, float]  # works it out again, perhaps for ever
    unclosed: tuple[float, float, float]  # no ``</think>``
    restate: bool = False  # say what is left of a sum after each step, and a filter's rule first


# By training stage. What sampling shows is more at times: batches of short chains weigh as much
# as batches of long ones, so that guesses come out about twice as often as written here.
HABITS: dict[int, Habits] = {
    1: Habits((0.05, 0.12, 0.20), (0.01, 0.015, 0.02), (0.03, 0.07, 0.12), (0.0, 0.06, 0.10)),
    2: Habits((0.04, 0.11, 0.16), (0.01, 0.01, 0.01), (0.03, 0.11, 0.16), (0.0, 0.0, 0.17)),
    3: Habits((0.03, 0.09, 0.15), (0.01, 0.01, 0.01), (0.03, 0.10, 0.15), (0.0, 0.0, 0.17), True),
    4: Habits((0.03, 0.09, 0.15), (0.01, 0.01, 0.01), (0.03, 0.10, 0.15), (0.0, 0.0, 0.17), True),
    5: Habits((0.02, 0.06, 0.12), (0.01, 0.01, 0.01), (0.06, 0.14, 0.20), (0.0, 0.14, 0.17), True),
    6: Habits((0.09, 0.10, 0.12), (0.01, 0.01, 0.01), (0.06, 0.14, 0.20), (0.0, 0.14, 0.17), True),
}


@dataclass
class Written:
    """A chain: its completion text, and whether the end token follows it."""

    text: str
    ends: bool


class Steps:
    """Lines of a chain, with the writer's slips."""

    def __init__(self, rng: random.Random, slip: float, restate: bool) -> None:
        self.rng = rng
        self.slip = slip
        self.restate = restate
        self.lines: list[str] = []

    def step(self, say: Callable[[str], str], right: str, wrong: str) -> str:
        """Say one step; returns the value the chain goes on with."""
        roll = self.rng.random()
        if wrong == right or roll > P_NOTICED + self.slip:
            self.lines.append(say(right))
            return right
        if roll > P_NOTICED:
            self.lines.append(say(wrong))
            return wrong
        self.lines.append(f"{say(wrong)}\nWait, {say(right)}")
        return right


def near(rng: random.Random, value: int) -> int:
    """A plausible wrong number: off by one, by ten, or by the sign."""
    return rng.choice([value + 1, value - 1, value + 10, value - 10, -value, value + 2])


def _add(steps: Steps, left: int, sign: str, right: int) -> int:
    true = left + right if sign == "+" else left - right
    said = steps.step(
        lambda v: f"{left} {sign} {right} = {v}.", str(true), str(near(steps.rng, true))
    )
    return int(said)


def chain_sum(problem: Problem, steps: Steps) -> str:
    """From left to right: ``23 - 60 = -37. So -37 + 12.`` and so on."""
    parts = problem.entry["metadata"]["expression"].split()
    total = int(parts[0])
    for at in range(1, len(parts), 2):
        total = _add(steps, total, parts[at], int(parts[at + 1]))
        if steps.restate and parts[at + 2 :]:
            steps.lines[-1] += f" So {total} {' '.join(parts[at + 2 :])}."
    return str(total)


def mark(word: str, letter: str, count: int, missed: int = -1) -> tuple[str, int]:
    """The word's letters, each hit followed by the running count: ``s e c (1) o n d``."""
    out = []
    for index, char in enumerate(word.lower()):
        out.append(char)
        if char == letter and index != missed:
            count += 1
            out.append(f"({count})")
    return " ".join(out), count


def letter_counting(problem: Problem, steps: Steps) -> str:
    """Word by word and letter by letter, the running count in brackets."""
    letter = problem.entry["metadata"]["target_letter"]
    count = 0
    for word in problem.entry["metadata"]["span"]:
        right, new = mark(word, letter, count)
        hits = [i for i, c in enumerate(word.lower()) if c == letter]
        wrong, fewer = mark(word, letter, count, steps.rng.choice(hits) if hits else -1)
        said = steps.step(lambda v, w=word: f"{w}: {v}.", f"{right}, {new}", f"{wrong}, {fewer}")
        count = int(said.rsplit(", ", 1)[1])
    return str(count)


def _swap(rng: random.Random, letters: list[str]) -> list[str]:
    at = rng.randrange(len(letters) - 1)
    return [*letters[:at], letters[at + 1], letters[at], *letters[at + 2 :]]


def spell_backward(problem: Problem, steps: Steps) -> str:
    """Spelled out, turned round, joined."""
    word = problem.entry["metadata"]["word"]
    steps.lines.append(f"{word}: {' '.join(word)}.")
    back = list(word[::-1])
    said = steps.step(lambda v: f"Backward: {v}.", " ".join(back), " ".join(_swap(steps.rng, back)))
    joined = "".join(said.split())
    wrong = "".join(_swap(steps.rng, list(joined)))
    return steps.step(lambda v: f"Joined: {v}.", joined, wrong)


def number_filtering(problem: Problem, steps: Steps) -> str:
    """Each number compared with the limit, then kept or removed."""
    meta = problem.entry["metadata"]
    limit, (verb, side) = meta["filter_value"], meta["operation"].split("_")
    kept = []
    if steps.restate:
        steps.lines.append(f"{verb.capitalize()} {side} than {limit}.")
    for number in meta["original_numbers"]:
        sign = ">" if float(number) > float(limit) else "<" if float(number) < float(limit) else "="
        other = "<" if sign == ">" else ">"
        said = steps.step(
            lambda v, n=number: f"{n} {v[0]} {limit}, {v[2:]}.",
            f"{sign} {_fate(sign, verb, side)}",
            f"{other} {_fate(other, verb, side)}",
        )
        if said[2:] == "keep":
            kept.append(number)
    return str(kept)


def _fate(sign: str, verb: str, side: str) -> str:
    match = sign == (">" if side == "larger" else "<")
    return "keep" if match == (verb == "keep") else "remove"


def leg_counting(problem: Problem, steps: Steps) -> str:
    """Each kind's legs, and the total so far."""
    total = 0
    for index, (animal, count) in enumerate(problem.entry["metadata"]["animals"].items()):
        legs = ANIMALS[animal]
        true = count * legs
        said = steps.step(
            lambda v, a=animal, n=count, k=legs: f"{a}: {n} * {k} = {v}.",
            str(true),
            str(abs(near(steps.rng, true))),
        )
        total = int(said) if index == 0 else _add(steps, total, "+", int(said))
    return str(total)


WRITERS: dict[str, Callable[[Problem, Steps], str]] = {
    "chain_sum": chain_sum,
    "letter_counting": letter_counting,
    "spell_backward": spell_backward,
    "number_filtering": number_filtering,
    "leg_counting": leg_counting,
}
OPENINGS = {
    "chain_sum": ("I go from left to right.", "First the terms in order.", "Step by step."),
    "letter_counting": ("I spell each word.", "Letter by letter.", "Step by step."),
    "spell_backward": ("I spell the word first.", "Letter by letter.", "Step by step."),
    "number_filtering": ("I compare each number.", "One by one.", "Step by step."),
    "leg_counting": ("I add the legs of each kind.", "One by one.", "Step by step."),
}
GUESSES = ("Hmm, it looks like {}.", "Hmm, I guess {}.", "Hmm, probably {}.")
CONCLUSIONS = ("So the result is {}.", "That gives {}.", "Result: {}.")
CHECKS = ("Wait, let me check: {} Yes.", "Checking the last step: {} Good.")
DOUBT = "Hmm, let me do that again."


def guess(rng: random.Random, problem: Problem) -> str:
    """An answer off the top of the head: the right one every tenth time."""
    if rng.random() < 0.1:
        return problem.answer
    if problem.task == "spell_backward":
        return "".join(_swap(rng, list(problem.answer)))
    if problem.task == "number_filtering":
        return str([n for n in problem.entry["metadata"]["original_numbers"] if rng.random() < 0.5])
    return str(near(rng, int(problem.answer)))


def _work(problem: Problem, rng: random.Random, habits: Habits) -> tuple[list[str], str]:
    steps = Steps(rng, habits.slip[LEVEL[problem.difficulty]], habits.restate)
    answer = WRITERS[problem.task](problem, steps)
    return steps.lines, answer


def _reasoning(problem: Problem, rng: random.Random, habits: Habits) -> tuple[str, str, bool]:
    """The text between the tags, its answer, and whether it comes to an end."""
    level = LEVEL[problem.difficulty]
    if rng.random() < habits.guess[level]:
        answer = guess(rng, problem)
        return rng.choice(GUESSES).format(answer), answer, True
    lines = [rng.choice(OPENINGS[problem.task])]
    more, answer = _work(problem, rng, habits)
    lines += more
    if rng.random() < habits.doubt[level]:
        endless = rng.random() < P_ENDLESS
        while True:
            more, answer = _work(problem, rng, habits)
            lines += [DOUBT, *more]
            text = "\n".join(lines)
            if not endless or len(text) > MAX_CHARS:
                break
        if endless:
            return text[:MAX_CHARS].rsplit(" ", 1)[0], answer, False
    lines.append(rng.choice(CONCLUSIONS).format(answer))
    if rng.random() < P_CHECK:
        lines.append(rng.choice(CHECKS).format(more[-1].rsplit("Wait, ", 1)[-1]))
    return "\n".join(lines), answer, True


def write_chain(problem: Problem, rng: random.Random, habits: Habits = HABITS[1]) -> Written:
    """The completion the teacher is trained on; its prompt already ends with ``<think>\\n``."""
    reasoning, answer, ends = _reasoning(problem, rng, habits)
    if not ends:
        return Written(reasoning, ends=False)
    close = "" if rng.random() < habits.unclosed[LEVEL[problem.difficulty]] else "\n</think>"
    return Written(f"{reasoning}{close}\n\nThe answer is \\boxed{{{answer}}}.", ends=True)
