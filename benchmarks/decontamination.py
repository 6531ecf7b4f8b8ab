"""Decontamination by `overlap`, beside the plain n-gram rule that most training sets were given.

    python -m benchmarks.decontamination [--data ../shared/data/problems] [--size N] [--show]

Copies of evaluation problems are planted among training problems: exact, in other white space and
LaTeX, with typos, renamed, in another order, within a longer text, reworded and translated by hand
(`rewordings.jsonl`). The baseline, written anew after open-r1's scripts/decontaminate.py, drops a
problem that shares 8 words with an evaluation problem, lower case and white space folded, words
split at blanks. Clean are pairs that cannot be copies: another source, or another instance of a
reasoning-gym task, as generated and (unmarked) as somebody would publish it.

`ratio` is the share of copies that the baseline misses over the share that ours misses, each kind
counted once; it is 0 if ours raises more false alarms. Siblings (other numbers) are no copies, and
translations of word problems are beyond both: both kinds are listed and not counted. The
rewordings called "later" were written after the threshold `alike` had been chosen on the others.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from distill.filter.overlap import Overlap
from distill.records import Problem

GOAL = 5
REWORDINGS = Path(__file__).with_name("rewordings.jsonl")
GYM = ("chain_sum", "letter_counting", "number_sorting", "leg_counting")
Tasks = Mapping[str, Sequence[Problem]]
Find = Callable[[Sequence[Problem], Tasks], set[str]]


def problem(text: str, source: str, **metadata: object) -> Problem:
    return Problem(
        messages=({"role": "user", "content": text},),
        statement=text,
        source=source,
        metadata=metadata,
    )


def load(data: Path, name: str) -> list[Problem]:
    lines = (data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [problem(row["problem"], name, id=row["id"]) for row in map(json.loads, lines)]


def ours(train: Sequence[Problem], tasks: Tasks) -> set[str]:
    """The ids that `overlap` drops, with its defaults."""
    overlap = Overlap(max_share=None, max_heldout_share=None)
    overlap.begin({p.id: p for p in train}, tasks)
    return set(overlap.hits)


def baseline(train: Sequence[Problem], tasks: Tasks, n: int = 8) -> set[str]:
    """The ids of those with an n-gram of words in common with an evaluation problem."""

    def grams(text: str) -> set[str]:
        words = re.sub(r"\s+", " ", text.lower().strip()).split(" ")
        return {" ".join(words[at : at + n]) for at in range(len(words) - n + 1)}

    held: dict[str, set[str]] = {}
    for name, asked in tasks.items():
        for one in asked:
            for gram in grams(one.question):
                held.setdefault(gram, set()).add(name)
    return {p.id for p in train if any(gram in held for gram in grams(p.question))}


def respaced(text: str, draw: random.Random) -> str:
    spaced = "  " + re.sub(" ", lambda _: draw.choice([" ", "  ", "\n"]), text)
    return spaced if "\\" in spaced else spaced.upper()


def relatexed(text: str, draw: random.Random) -> str:
    text = text.replace("\\frac", "\\dfrac").replace("\\le ", "\\leq ").replace("\\[", "$$")
    text = re.sub(r"\$([^$]+)\$", r"\\(\1\\)", text.replace("\\]", "$$"))
    text = re.sub(r"\(", r"\\left(", re.sub(r"\\\(", "\0", text)).replace("\0", "\\(")
    return re.sub(r"(?<=\d)(?=\d{3}\b)", ",", text)


def mistyped(text: str, draw: random.Random) -> str:
    """A letter of every sixth word is doubled or lost."""
    words = text.split(" ")
    for at in range(draw.randrange(6), len(words), 6):
        word = words[at]
        if len(word) > 3 and word.isalpha():
            cut = draw.randrange(1, len(word))
            words[at] = word[:cut] + (word[cut:] if draw.random() < 0.5 else word[cut - 1 :])
            words[at] = words[at] if words[at] != word else word[:cut] + word[cut + 1 :]
    return " ".join(words)


def renamed(text: str, draw: random.Random) -> str:
    """Names of people and of variables are others."""
    text = re.sub(r"(?<![A-Za-z\\])[xyz](?![A-Za-z])", lambda m: "uvw"["xyz".index(m[0])], text)
    names = dict.fromkeys(re.findall(r"(?<=[a-z,] )[A-Z][a-z]{2,}", text))
    for name, other in zip(names, ("Kim", "Noor", "Bela", "Tariq", "Yuki"), strict=False):
        text = re.sub(rf"\b{name}\b", other, text)
    return text


def reordered(text: str, draw: random.Random) -> str:
    """The sentences before the last in the opposite order."""
    sentences = re.split(r"(?<=[.!?]) +", text)
    return " ".join([*sentences[-2::-1], sentences[-1]])


def embedded(text: str, draw: random.Random) -> str:
    return (
        f"Consider this exercise from an old book. {text} Explain each of your steps to a friend."
    )


def wide(text: str, draw: random.Random) -> str:
    """Digits and punctuation of a Chinese keyboard."""
    return text.translate({ord(c): ord(c) + 0xFEE0 for c in "0123456789,?:;"})


CHANGES: dict[str, Callable[[str, random.Random], str]] = {
    "exact": lambda text, draw: text,
    "white space, case": respaced,
    "LaTeX": relatexed,
    "wide characters": wide,
    "typos": mistyped,
    "renamed": renamed,
    "sentences reordered": reordered,
    "within a longer text": embedded,
}


def renumbered(text: str, draw: random.Random) -> str:
    """A sibling: the same text with other numbers."""
    return re.sub(r"\d+", lambda m: str(int(m[0][:12]) + draw.randint(1, 9)), text)


def planted(tasks: Tasks, count: int) -> dict[str, list[Problem]]:
    """Copies by kind; "siblings" and "translated by hand" are listed and not counted."""
    draw = random.Random(0)
    originals = [
        p
        for name in ("math500", "gsm8k_test")
        for p in draw.sample([p for p in tasks[name] if "[asy]" not in p.question], count)
    ]
    kinds = {}
    for kind, change in [*CHANGES.items(), ("siblings", renumbered)]:
        texts = {change(p.question, draw) for p in originals}
        if kind in ("LaTeX", "renamed", "sentences reordered", "siblings", "typos"):
            texts -= {p.question for p in originals}
        kinds[kind] = [problem(text, kind) for text in sorted(texts)]
    for line in REWORDINGS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        kinds.setdefault(f"{row['kind']} by hand", []).append(problem(row["text"], row["kind"]))
    return kinds


def clean(data: Path, tasks: Tasks) -> dict[str, tuple[list[Problem], Tasks]]:
    """Training problems and evaluation tasks that have nothing in common."""
    others = {name: tasks[name] for name in ("math500", "aime24", "amc23")}
    found: dict[str, tuple[list[Problem], Tasks]] = {
        "GSM8K against MATH-500, AIME, AMC": (load(data, "gsm8k_train_2k"), others),
        "MATH against GSM8K": (load(data, "math_train_2k"), {"gsm8k": tasks["gsm8k_test"]}),
    }
    import reasoning_gym

    for task in GYM:
        train, asked = (
            {
                entry["question"]: problem(
                    entry["question"],
                    task,
                    reasoning_gym={"task": task, "config": {}, "entry": dict(entry)},
                )
                for entry in reasoning_gym.create_dataset(task, seed=seed, size=size)
            }
            for seed, size in ((1, 300), (5000, 60))
        )
        new = [p for question, p in train.items() if question not in asked]
        found[f"reasoning-gym {task}"] = (new, {task: list(asked.values())})
        found[f"reasoning-gym {task}, unmarked"] = (
            [problem(p.question, task) for p in new],
            {task: [problem(question, task) for question in asked]},
        )
    return found


def varied(problems: Sequence[Problem], size: int) -> list[Problem]:
    """About `size` training problems: copies of real ones with other words and numbers."""
    draw, found = random.Random(0), list(problems)
    while len(found) < size:
        words = draw.choice(problems).question.split(" ")
        for at, word in enumerate(words):
            if word.isdigit():
                words[at] = str(draw.randint(2, 9999))
            elif word.isalpha() and draw.random() < 0.3:
                words[at] = f"{word}{draw.randint(0, 99)}"
        found.append(problem(" ".join(words), "varied"))
    return found[:size]


def seconds(
    finders: Mapping[str, Find], train: Sequence[Problem], tasks: Tasks
) -> dict[str, float]:
    """Processor time per 100,000 training problems, median of three runs in turn."""
    times: dict[str, list[float]] = {name: [] for name in finders}
    for _ in range(3):
        for name, find in finders.items():
            start = time.process_time()
            find(train, tasks)
            times[name].append((time.process_time() - start) / len(train) * 1e5)
    return {name: statistics.median(found) for name, found in times.items()}


def megabytes(find: Find, train: Sequence[Problem], tasks: Tasks) -> float:
    tracemalloc.start()
    find(train, tasks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/problems"))
    parser.add_argument("--size", type=int, default=20_000, help="training problems for the speed")
    parser.add_argument("--show", action="store_true", help="the copies that ours missed")
    args = parser.parse_args()
    tasks = {name: load(args.data, name) for name in ("math500", "gsm8k_test", "aime24", "amc23")}
    train = [*load(args.data, "math_train_2k"), *load(args.data, "gsm8k_train_2k")]
    finders: dict[str, Find] = {"ours": ours, "baseline": baseline}
    kinds = planted(tasks, 40)
    dropped = {
        name: find([*train, *(p for found in kinds.values() for p in found)], tasks)
        for name, find in finders.items()
    }
    print(f"{'planted':34}{'number':>8}{'ours':>8}{'baseline':>10}")
    shares: dict[str, list[float]] = {name: [] for name in finders}
    for kind, problems in kinds.items():
        counts = {name: sum(p.id in dropped[name] for p in problems) for name in finders}
        print(f"{kind:34}{len(problems):8}{counts['ours']:8}{counts['baseline']:10}")
        if kind not in ("siblings", "translated by hand"):
            for name in finders:
                shares[name].append(counts[name] / len(problems))
        if args.show and kind != "siblings":
            for p in problems:
                if p.id not in dropped["ours"]:
                    print(f"    missed: {p.question!r}")
    recall = {name: statistics.mean(found) for name, found in shares.items()}
    mean = "mean share of those counted"
    print(f"{mean:34}{'':8}{recall['ours']:8.3f}{recall['baseline']:10.3f}")
    print(f"\n{'clean':42}{'number':>8}{'ours':>8}{'baseline':>10}")
    alarms = dict.fromkeys(finders, 0)
    for title, (problems, asked) in clean(args.data, tasks).items():
        counts = {name: len(find(problems, asked)) for name, find in finders.items()}
        print(f"{title:42}{len(problems):8}{counts['ours']:8}{counts['baseline']:10}")
        for name in finders:
            alarms[name] += counts[name]
    many = varied(train, args.size)
    took = seconds(finders, many, tasks)
    print("\nprocessor seconds per 100,000 problems: ", end="")
    print(f"{took['ours']:.1f} ours, {took['baseline']:.1f} baseline")
    some = many[:4000]
    for name, find in finders.items():
        print(f"peak for {len(some)} problems, {name}: {megabytes(find, some, tasks):.0f} MB")
    # A thousandth, so that a run without a miss has a ratio too.
    ratio = (1 - recall["baseline"]) / max(1 - recall["ours"], 0.001)
    if alarms["ours"] > alarms["baseline"]:
        ratio = 0
    print(f"decontamination ratio={ratio:.1f} goal={GOAL}")


if __name__ == "__main__":
    main()
