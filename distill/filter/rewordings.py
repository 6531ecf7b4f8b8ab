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

from distill.filter.passages import Asked, Hit, cut
from distill.filter.questions import UNSPACED, Parsed, parse, without_diagrams

Features = Mapping[str, int]

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
_STEM = 5
_SMALL = 12
"""Up to here a number may be missing on one side: "two of the three friends"."""
_FULL = 3
"""Numbers that two questions must share to be compared at the plain threshold."""
_FLAT = 1000
"""Questions as if seen before the first, so that in a small corpus all words weigh the same."""


class Rewordings:
    """Finds the evaluation question that a training question says in other words.

    Both must have the same numbers (0 and 1 aside, numbers up to twelve also as words; one small
    number may be missing on one side) and be at least `alike` in the cosine of their words and
    of the pairs of neighbours in their formulas, letters taken for one another, each weighted by
    how rare it is. With fewer than three numbers in common more is asked, up to 1 for none. Of
    questions of fewer than `n` words, and of those without numbers, the formulas must be the
    same but for the names of variables.
    """

    def __init__(self, alike: float, n: int) -> None:
        self.alike, self.n = alike, n
        self._asked: list[tuple[Asked, Features]] = []
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
        self._asked.append((asked, features))
        self._holders.update(features.keys())
        self._questions += 1

    def count(self, question: Parsed) -> bool:
        """Count the words of a training question; whether `find` can find anything."""
        self._questions += 1
        self._holders.update(key for key in features_of(question) if key in self._holders)
        return bool(self._candidates(numbers(question)))

    def find(self, question: Parsed) -> Hit | None:
        """The evaluation question that is most alike, or None if none is alike enough."""
        features, best, found = features_of(question), 0.0, None
        for at, shared in self._candidates(numbers(question)):
            asked, theirs = self._asked[at]
            score = self._cosine(features, theirs)
            asks = 1 - (1 - self.alike) * min(shared, _FULL) / _FULL
            if score > best and score >= asks - 1e-9 and self._admits(question, asked, shared):
                best, found = score, asked
        return _hit(question, found, best) if found else None

    def _candidates(self, held: frozenset[str]) -> list[tuple[int, int]]:
        """(place in `_asked`, numbers in common) of those with the same numbers, or all but one."""
        found = [(at, len(held)) for at in self._by_numbers.get(held, ())]
        if len(held) >= _FULL:
            found += [(at, len(held)) for at in self._by_fewer.get(held, ())]
        for fewer in _without_one(held):
            found += [(at, len(fewer)) for at in self._by_numbers.get(fewer, ())]
        return found

    def _cosine(self, ours: Features, theirs: Features) -> float:
        both = sum(
            math.sqrt(count * theirs[key]) * self._weight(key) ** 2
            for key, count in ours.items()
            if key in theirs
        )
        sizes = self._size(ours) * self._size(theirs)
        return both / math.sqrt(sizes) if sizes else 0.0

    def _size(self, features: Features) -> float:
        return sum(count * self._weight(key) ** 2 for key, count in features.items())

    def _weight(self, key: str) -> float:
        return math.log((self._questions + _FLAT) / (self._holders[key] + 1))

    def _admits(self, question: Parsed, asked: Asked, shared: int) -> bool:
        if shared and min(len(question.words), asked.size) >= self.n:
            return True
        return _formulas(question) == _formulas(parse(asked.text))


def numbers(question: Parsed) -> frozenset[str]:
    """The distinct numbers of a question, spelled ones included, without 0 and 1."""
    found = (_number(token) for token in question.words)
    return frozenset(n for n in found if n[0].isdigit() and n not in _MEANINGLESS)


def features_of(question: Parsed) -> Counter[str]:
    """Stems of words, numbers, and neighbours within formulas, with how often each stands there."""
    found: Counter[str] = Counter()
    before = ""
    for kind, _, token in _kinds(question):
        if kind == "word":
            found[token[:_STEM]] += 1
            before = ""
            continue
        if token[0].isdigit():
            found[token] += 1
        if before:
            found[f"{before} {token}"] += 1
        before = token
    return found


def _kinds(question: Parsed) -> Iterator[tuple[str, str, str]]:
    """("word" or "formula", token, token to compare) for each; letters of formulas are all "?"."""
    commands = set(_COMMAND.findall(without_diagrams(question.text)))
    commands |= {command.lower() for command in commands} | {"frac", "leq", "geq", "neq"}
    for raw in question.tokens:
        token = _number(raw)
        if token[0].isdigit() or not token[0].isalpha() or token in commands:
            yield "formula", raw, token
        elif len(token) == 1 and not _WORDLIKE.match(token):
            yield "formula", raw, "?"
        else:
            yield "word", raw, token


def _formulas(question: Parsed) -> list[str]:
    """The formulas' tokens in order, letters by the order in which they first appear."""
    names: dict[str, str] = {}
    return [
        names.setdefault(raw, f"?{len(names)}") if token == "?" else token
        for kind, raw, token in _kinds(question)
        if kind == "formula"
    ]


def _number(token: str) -> str:
    if token[0].isdigit():
        return token.rstrip("0").rstrip(".") if "." in token else token
    return _SPELLED.get(token, token)


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
