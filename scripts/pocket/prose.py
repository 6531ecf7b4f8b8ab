"""The base's corpus: running text in which the single steps occur, never a chat-style chain.

A tiny model that has only seen questions and answers cannot use what it knows inside a longer
text. So the steps stand here as they will stand in chains: ``12 + 7 = 19.`` in a story about
coins, a word spelled out, two numbers compared. Short question-and-answer documents, which
answer at once, give the base a habit of its own to be compared with.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache

from reasoning_gym.arithmetic.leg_counting import ANIMALS
from reasoning_gym.data import read_data_file

from .chains import WRITERS, Steps, mark
from .tasks import CONFIGS, DIFFICULTIES, Problem, draw, reserved_questions

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Henry", "Ida", "Jonas")
THINGS = ("coins", "apples", "books", "stones", "letters", "cards", "eggs", "tickets", "shells")
PLACES = ("garden", "harbour", "market", "school", "river", "library", "kitchen", "forest")
VERBS = ("walked to", "looked at", "talked about", "waited near", "painted", "remembered")
TIMES = ("In the morning", "At noon", "Later", "On Monday", "After lunch", "In winter", "Then")
SAYINGS = (
    "Wait, let me check the steps",
    "Hmm, I guess so",
    "That gives a good result",
    "All fine, so the result is right",
    "Let me do that again",
    "I go first, then you start",
    "I spell each word backward",
    "I compare them and keep what I like",
    "Remove that or keep it, but join in",
)
MANNERS = ("Step by step", "One by one", "Letter by letter", "Probably", "From left to right")
QUALITIES = ("old", "quiet", "small", "bright", "empty", "wide", "cold", "busy")


@lru_cache(maxsize=1)
def words() -> list[str]:
    """English words of 3 to 10 letters that no recipe's problem asks about."""
    taken = {q.rsplit(" ", 1)[1] for q in reserved_questions() if q.startswith("Spell this")}
    listed = read_data_file("words3to10.txt").split()
    return [word for word in listed if word.isalnum() and word not in taken]


def number(rng: random.Random) -> int:
    """A number as the tasks have them: mostly two digits."""
    return rng.choice([rng.randint(10, 99), rng.randint(10, 99), rng.randint(0, 9)])


def sums(rng: random.Random) -> str:
    """A running total, in a story or bare."""
    total = number(rng) if rng.random() < 0.6 else rng.randint(-250, 350)
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    start = rng.choice([f"{name} counts {things}, so far {total}.", f"So far {total}.", ""])
    joint = rng.choice(["\n", " "])
    lines = [start] if start else []
    for _ in range(rng.randint(2, 6)):
        sign, term = rng.choice("+-"), number(rng)
        new = total + term if sign == "+" else total - term
        lines.append(f"{total} {sign} {term} = {new}.")
        if rng.random() < 0.08:
            lines.append(f"Now {rng.choice(TIMES).lower()} there are {new}.")
        total = new
    if rng.random() < 0.5:
        lines.append(rng.choice([f"In the end {total}.", f"So {name} has {total} {things}."]))
    return joint.join(lines)


def spelling(rng: random.Random) -> str:
    """Words spelled out, read from the end, and their letters counted."""
    lines = []
    for _ in range(rng.randint(2, 5)):
        word = rng.choice(words())
        word = word.capitalize() if rng.random() < 0.1 else word.lower()
        spaced, back = " ".join(word), " ".join(word[::-1])
        letter = rng.choice(word.lower()) if rng.random() < 0.7 else rng.choice("aeinorst")
        start = rng.choice([0, 0, rng.randint(0, 7)])
        counted, count = mark(word, letter, start)
        lines.append(
            rng.choice(
                [
                    f"{word}: {spaced}.",
                    f"The word {word} is spelled {spaced}.",
                    f"{spaced} from the end is {back}.",
                    f"{word}: {spaced}. From the end: {back}.",
                    f"{back} makes {word[::-1]}.",
                    f"{spaced} makes {word}.",
                    f'After {start} times "{letter}" comes {word}: {counted}, {count}.',
                    f'The letter "{letter}" in {word}: {mark(word, letter, 0)[0]}.',
                ]
            )
        )
    return rng.choice(["\n", " "]).join(lines)


def _sign(left: int, right: int) -> str:
    return ">" if left > right else "<" if left < right else "="


def comparing(rng: random.Random) -> str:
    """Pairs of numbers, and lists of those above or below a limit."""
    limit = rng.randint(-100, 100)
    numbers = [rng.randint(-100, 100) for _ in range(rng.randint(2, 6))]
    larger = [str(n) for n in numbers if n > limit]
    smaller = [str(n) for n in numbers if n < limit]
    pairs = rng.choice(["\n", " "]).join(f"{n} {_sign(n, limit)} {limit}." for n in numbers)
    return rng.choice(
        [
            pairs,
            f"Of the numbers {[str(n) for n in numbers]}, larger than {limit}: {larger}.",
            f"Of the numbers {[str(n) for n in numbers]}, smaller than {limit}: {smaller}.",
            f"{pairs} So {larger} are larger and {smaller} are smaller.",
        ]
    )


def legs(rng: random.Random) -> str:
    """What stands on how many legs, with small products and totals."""
    lines = []
    total = 0
    for index in range(rng.randint(2, 5)):
        animal, count = rng.choice(list(ANIMALS)), rng.randint(1, 12)
        own = ANIMALS[animal]
        facts = [f"A {animal} has {own} legs.", f"{count} * {own} = {count * own}."]
        lines.append(rng.choice([facts[0], " ".join(facts), f"{animal}: {facts[1]}"]))
        if index:
            lines.append(f"{total} + {count * own} = {total + count * own}.")
        total += count * own
    return rng.choice(["\n", " "]).join(lines)


def story(rng: random.Random, least: int = 3, most: int = 6) -> str:
    """Plain sentences, so that not everything is a sum."""
    name = rng.choice(NAMES)
    lines = []
    for _ in range(rng.randint(least, most)):
        verb, place, quality = rng.choice(VERBS), rng.choice(PLACES), rng.choice(QUALITIES)
        lines.append(
            rng.choice(
                [
                    f"{rng.choice(TIMES)} {name} {verb} the {quality} {place}.",
                    f"The {place} was {quality}, and so was the {rng.choice(PLACES)}.",
                    f"{name} had {rng.randint(2, 40)} {rng.choice(THINGS)} in the {place}.",
                    f'"I like the {place}," said {rng.choice(NAMES)}.',
                    f'"{rng.choice(SAYINGS)}," said {rng.choice(NAMES)}.',
                    f"{rng.choice(MANNERS)} {name} {verb} the {place}.",
                ]
            )
        )
    return " ".join(lines)


def _example_sum(p: Problem) -> str:
    parts = p.entry["metadata"]["expression"].split()
    total, said = int(parts[0]), []
    for sign, term in zip(parts[1::2], parts[2::2], strict=True):
        new = total + int(term) if sign == "+" else total - int(term)
        said.append(f"{total} {sign} {term} = {new}")
        total = new
    return f"To find {' '.join(parts)} we take {', then '.join(said)}. It is {total}."


def _example_letters(p: Problem) -> str:
    meta, count, said = p.entry["metadata"], 0, []
    for word in meta["span"]:
        spelled, count = mark(word, meta["target_letter"], count)
        said.append(f"{word}: {spelled}, {count}.")
    span = " ".join(meta["span"])
    return f'In "{span}" we look for "{meta["target_letter"]}". {" ".join(said)} It is {count}.'


def _example_backward(p: Problem) -> str:
    word = p.entry["metadata"]["word"]
    return f"To turn {word} round: {' '.join(word)}, {' '.join(p.answer)}, {p.answer}."


def _example_filter(p: Problem) -> str:
    meta = p.entry["metadata"]
    limit, numbers = meta["filter_value"], meta["original_numbers"]
    said = [f"{n} {_sign(int(n), int(limit))} {limit}." for n in numbers]
    task = p.question.split(" in this")[0].lower()
    return f"We {task} from {numbers}. {' '.join(said)} This leaves {p.answer}."


def _example_legs(p: Problem) -> str:
    said, total = [], 0
    for index, (animal, count) in enumerate(p.entry["metadata"]["animals"].items()):
        new = count * ANIMALS[animal]
        said.append(f"{animal}: {count} * {ANIMALS[animal]} = {new}.")
        if index:
            said.append(f"{total} + {new} = {total + new}.")
        total += new
    listed = p.question.split("if you have ")[1].split("?")[0]
    return f"The legs of {listed}. {' '.join(said)} It is {total}."


EXAMPLES: dict[str, Callable[[Problem], str]] = {
    "chain_sum": _example_sum,
    "letter_counting": _example_letters,
    "spell_backward": _example_backward,
    "number_filtering": _example_filter,
    "leg_counting": _example_legs,
}


def worked(rng: random.Random) -> str:
    """A little worked example as a schoolbook prints it; easy ones only."""
    return "\n".join(
        EXAMPLES[task](draw(rng, task, "easy"))
        for task in rng.choices(list(CONFIGS), k=rng.randint(1, 2))
    )


def _stated(problem: Problem) -> str:
    """The question without its phrasing: what a schoolbook's exercise says."""
    meta = problem.entry["metadata"]
    if problem.task == "chain_sum":
        return str(meta["expression"])
    if problem.task == "letter_counting":
        return f'"{meta["target_letter"]}" in "{" ".join(meta["span"])}"'
    if problem.task == "spell_backward":
        return f"{meta['word']} from the end"
    if problem.task == "number_filtering":
        return problem.question.split("\n")[0]
    return problem.question.split("if you have ")[1].split("?")[0]


def _any_problem(rng: random.Random) -> Problem:
    level = rng.choices(DIFFICULTIES, weights=[5, 3.5, 1.5])[0]
    return draw(rng, rng.choice(list(CONFIGS)), level)


def exercise(rng: random.Random) -> str:
    """An exercise, some other text, and its steps: what was said must be found again."""
    problem = _any_problem(rng)
    steps = Steps(rng, 0.0, restate=True)
    answer = WRITERS[problem.task](problem, steps)
    head = problem.question.strip() if rng.random() < 0.5 else _stated(problem)
    between = story(rng, 1, 3) if rng.random() < 0.8 else ""
    end = rng.choice([f"\nIt is {answer}.", f"\nAnswer: {answer}", ""])
    lines = "\n".join(steps.lines)
    return f"Exercise. {head}\n{between}\nSolution.\n{lines}{end}"


def recall(rng: random.Random) -> str:
    """Something said, other text, and the same said again, whole or item by item."""
    count = rng.randint(2, 7)
    listed = [
        rng.choice(words()) if rng.random() < 0.5 else str(rng.randint(-99, 99))
        for _ in range(count)
    ]
    if rng.random() < 0.3:
        listed = [f"{rng.randint(1, 12)} {rng.choice(list(ANIMALS))}" for _ in range(count)]
    again = rng.choice(["\n".join(f"{item}." for item in listed), ", ".join(listed)])
    said = rng.choice([", ".join(listed), " ".join(listed), str(listed)])
    return f"{rng.choice(NAMES)} wrote: {said}\n{story(rng, 1, 3)}\nAgain:\n{again}"


def answered(rng: random.Random) -> str:
    """A question answered at once, as forums do; often without the box that was asked for."""
    problem = draw(rng, rng.choice(list(CONFIGS)), rng.choice(DIFFICULTIES))
    said = rng.choices(
        ["The answer is \\boxed{{{}}}.", "It is {}.", "{}", "The answer is {}."],
        weights=[6, 2, 1, 1],
    )[0]
    return f"User: {problem.prompt}\n\nAssistant: {said.format(problem.answer)}"


Kind = Callable[[random.Random], str]
# By training stage: the second adds finding again what was said some way back.
KINDS: dict[int, dict[Kind, float]] = {
    1: {
        sums: 0.19,
        spelling: 0.22,
        comparing: 0.12,
        legs: 0.12,
        story: 0.07,
        worked: 0.13,
        answered: 0.15,
    },
    2: {
        sums: 0.10,
        spelling: 0.10,
        comparing: 0.04,
        legs: 0.04,
        story: 0.03,
        worked: 0.09,
        recall: 0.10,
        exercise: 0.35,
        answered: 0.15,
    },
    # For the teacher's last stage: no answers at once.
    3: {
        sums: 0.10,
        spelling: 0.10,
        comparing: 0.05,
        worked: 0.10,
        recall: 0.15,
        exercise: 0.50,
    },
}


def document(rng: random.Random, stage: int = 1) -> str:
    """One document of the base's corpus."""
    kinds = KINDS[stage]
    return rng.choices(list(kinds), weights=list(kinds.values()))[0](rng)


def running_text(rng: random.Random) -> str:
    """One document for the teacher: steps only, no answers at once."""
    return str(rng.choice([sums, spelling, comparing, legs, worked, worked])(rng))
