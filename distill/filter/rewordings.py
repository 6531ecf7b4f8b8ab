"""Evaluation questions by their numbers: who has the same and says nearly the same rewords one.

R1's rule finds who copied ten words in a row. It does not find "How many eggs are left over?"
written for "What is the number of eggs that remain?". Words alone cannot tell a rewording from
another problem of its kind, and mathematics has many of a kind; numbers can. On real problems
(see docs/decontamination.md) different ones with the same numbers hardly ever have half of their
words and formulas in common, and reworded ones have two thirds.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from functools import lru_cache

from distill.filter.passages import Asked, Hit, cut
from distill.filter.questions import UNSPACED, Parsed, parse

Features = Mapping[str, int]
Vector = dict[str, float]

_COMMAND = re.compile(r"\\([a-zA-Z]+)")
_WORDLIKE = re.compile(rf"[{UNSPACED}]")
_SPELLED_IN_ORDER = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
)
_SPELLED = {word: str(number) for number, word in enumerate(_SPELLED_IN_ORDER.split())} | {
    "twice": "2",
    "double": "2",
    "doubled": "2",
    "half": "2",
}
_MEANINGLESS = ("0", "1")
"""They come and go with the wording: "one of them", "f(x) = 0"."""
_RENAMED = {"frac", "leq", "geq", "neq"}
"""What `questions.tokens` calls several commands."""
_STEM = 5
_SMALL = 12
"""Up to here a number may be missing on one side: "two of the three friends"."""
_FULL = 3
"""Numbers that two questions must share to be compared at the plain threshold."""
_STEP = 0.1
"""What is asked beyond it for each number that is wanting."""
_FLAT = 1000
"""Questions as if seen before the first, so that in a small corpus all words weigh the same."""


class Rewordings:
    """Finds the evaluation question that a training question says in other words.

    `add` all evaluation questions, `count` every training question, `settle`; then `find`.

    Both must have the same numbers (0 and 1 aside, numbers up to twelve also as words; one small
    number may be missing on one side) and be at least `alike` in the cosine of their words and
    of the pairs of neighbours in their formulas, letters taken for one another, each weighted by
    how rare it is. For each number fewer than three that they have in common 0.1 more is asked.
    Of questions of fewer than `n` words, and of those without numbers, the formulas must be the
    same but for the names of variables.
    """

    def __init__(self, alike: float, n: int) -> None:
        self.alike, self.n = alike, n
        self._asked: list[Asked] = []
        self._features: list[Features] = []
        self._vectors: list[Vector] = []
        self._by_numbers: dict[frozenset[str], list[int]] = defaultdict(list)
        self._by_fewer: dict[frozenset[str], list[int]] = defaultdict(list)
        self._holders: Counter[str] = Counter()
        self._questions = 0

    def add(self, asked: Asked) -> None:
        """Enter an evaluation question."""
        question = parse(asked.text)
        held, features = numbers(question), features_of(question)
        at = len(self._asked)
        self._by_numbers[held].append(at)
        for fewer in _without_one(held):
            self._by_fewer[fewer].append(at)
        self._asked.append(asked)
        self._features.append(features)
        self._holders.update(features.keys())
        self._questions += 1

    def count(self, question: Parsed) -> bool:
        """Count the words of a training question; whether `find` can find anything."""
        self._questions += 1
        self._holders.update(self._holders.keys() & features_of(question).keys())
        return bool(self._candidates(numbers(question)))

    def settle(self) -> None:
        """Weigh the words by how rare they are among all questions counted."""
        self._vectors = [self._unit(features) for features in self._features]

    def find(self, question: Parsed) -> Hit | None:
        """The evaluation question that is most alike, or None if none is alike enough."""
        ours, best, found = self._unit(features_of(question)), 0.0, None
        for at, shared in self._candidates(numbers(question)):
            asked, theirs = self._asked[at], self._vectors[at]
            score = sum(value * theirs[key] for key, value in ours.items() if key in theirs)
            asks = min(self.alike + _STEP * max(_FULL - shared, 0), 1 - 1e-9)
            if score > best and score >= asks and self._admits(question, asked, shared):
                best, found = score, asked
        return _hit(question, found, best) if found else None

    def _candidates(self, held: frozenset[str]) -> list[tuple[int, int]]:
        """(place in `_asked`, numbers in common less those that one of the two lacks)."""
        found = [(at, len(held)) for at in self._by_numbers.get(held, ())]
        if len(held) >= _FULL:
            found += [(at, len(held) - 1) for at in self._by_fewer.get(held, ())]
        for fewer in _without_one(held):
            found += [(at, len(fewer) - 1) for at in self._by_numbers.get(fewer, ())]
        return found

    def _unit(self, features: Features) -> Vector:
        """Root counts by rarity, of length 1."""
        weighted = {key: math.sqrt(count) * self._weight(key) for key, count in features.items()}
        size = math.sqrt(sum(value * value for value in weighted.values()))
        return {key: value / size for key, value in weighted.items()} if size else {}

    def _weight(self, key: str) -> float:
        return math.log((self._questions + _FLAT) / (self._holders[key] + 1))

    def _admits(self, question: Parsed, asked: Asked, shared: int) -> bool:
        if shared and min(len(question.words), asked.size) >= self.n:
            return True
        return _formulas(question) == _formulas(parse(asked.text))


def numbers(question: Parsed) -> frozenset[str]:
    """The distinct numbers of a question, spelled ones included, without 0 and 1."""
    found = (_kind(token) for token in question.words)
    return frozenset(key for kind, key in found if kind == "number" and key not in _MEANINGLESS)


def features_of(question: Parsed) -> Counter[str]:
    """Stems of words, numbers, and neighbours within formulas, with how often each stands there."""
    commands, found, before = _commands(question), [], ""
    for token in question.tokens:
        kind, key = _kind(token)
        if kind == "word" and token not in commands:
            found.append(key)
            before = ""
            continue
        if kind == "number":
            found.append(key)
        if before:
            found.append(f"{before} {key}")
        before = key
    return Counter(found)


def _formulas(question: Parsed) -> list[str]:
    """The formulas' tokens in order, letters by the order in which they first appear."""
    commands, names, found = _commands(question), dict[str, str](), []
    for token in question.tokens:
        kind, key = _kind(token)
        if kind == "letter":
            found.append(names.setdefault(token, f"?{len(names)}"))
        elif kind != "word" or token in commands:
            found.append(key)
    return found


def _commands(question: Parsed) -> set[str]:
    """LaTeX's commands in a question, which are parts of its formulas."""
    return {command.casefold() for command in _COMMAND.findall(question.text)} | _RENAMED


@lru_cache(100_000)
def _kind(token: str) -> tuple[str, str]:
    """What a token is ("number", "letter", "sign" or "word"), and what it is compared by."""
    token = _SPELLED.get(token, token)
    if token[0].isdigit():
        return "number", token.rstrip("0").rstrip(".") if "." in token else token
    if not token[0].isalpha():
        return "sign", token
    if len(token) == 1 and not _WORDLIKE.match(token):
        return "letter", "?"
    return "word", token[:_STEM]


def _without_one(held: frozenset[str]) -> Iterator[frozenset[str]]:
    """The numbers without one of the small ones, where enough are left."""
    if len(held) > _FULL:
        for number in held:
            if number.isdecimal() and len(number) <= 2 and int(number) <= _SMALL:
                yield held - {number}


def _hit(question: Parsed, asked: Asked, score: float) -> Hit:
    theirs = parse(asked.text).words
    blocks = SequenceMatcher(None, question.words, theirs, autojunk=False).get_matching_blocks()
    parts = [" ".join(question.words[b.a : b.a + b.size]) for b in blocks if b.size]
    held = sorted(numbers(question), key=lambda n: (len(n), n))
    same = f" with the same numbers ({cut(', '.join(held), 30)})" if held else ""
    reason = (
        f"rewords problem {asked.problem_id} of '{asked.task}', {score:.0%} alike{same}: "
        f"'{cut(' '.join(question.text.split()))}'"
    )
    return Hit(asked, "rewording", score, " … ".join(parts), reason)
