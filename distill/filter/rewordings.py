"""Evaluation questions by their numbers: who has the same and says nearly the same rewords one.

R1's rule finds who copied ten words in a row. It does not find "How many eggs are left over?"
written for "What is the number of eggs that remain?". Words alone cannot tell a rewording from
another problem of its kind, and mathematics has many of a kind; numbers can. On real problems
(docs/decontamination.md) different ones with the same numbers hardly ever have half of their
words and formulas in common, and reworded ones have two thirds.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache

from distill.filter.passages import Asked, Hit, cut
from distill.filter.questions import UNSPACED, Parsed, parse

Features = dict[str, float]
Vector = dict[str, float]

_COMMAND = re.compile(r"\\([a-zA-Z]+)")
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+")
"""A capital within a sentence: people, months and places, which are the first to be exchanged."""
_ARTICLES = ("a", "i")
"""Letters that are words where words stand around them."""
_OF_A_NAME = 0.25
"""What a name counts as, next to a word that stands there once."""
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
_FRAMES = {"begin", "end", "pmatrix", "bmatrix", "vmatrix", "matrix", "array", "align", "cases"}
"""What stands around every matrix makes no two problems alike."""
_STEM = 5
_SMALL = 12
"""Up to here a number may be missing on one side: "two of the three friends"."""
_FULL = 3
"""Numbers that two questions must share to be compared at the plain threshold."""
_STEP = 0.1
"""What is asked beyond it for each number that is wanting."""
_BEFORE = 1000
"""Questions as if seen before the first, so that few of them do not make every word a rare one."""
_COMMON = {
    70: "the|of",
    50: "and|how|2",
    38: "is|in|to|many|3",
    27: "if|for|what|1",
    20: "that|are|each|has|4|5",
    14: "as|he|on|at|have|does|much|find|numbe|6|10",
    11: "with|she|than|all|be|his|did|will|by|total|8|20|? +",
    8: "her|more|there|it|an|can|from|per|then|value|integ|7|^ 2|? ^|? =|? ?|( ?|+ ?|? -|? )",
    6: "they|every|when|was|them|this|such|your|which|their|had|after|first|let|left|day|hours|"
    "money|cost|sum|posit|expre|answe|remai|0|9|12|15|30|50|2 ?|2 +|2 -",
}
"""Percent of the 4,000 training questions of GSM8K and MATH that hold them."""
_SEEN = {key: share * _BEFORE / 100 for share, keys in _COMMON.items() for key in keys.split("|")}
_PARALLEL = 0.8
"""From here on two questions say the same things in the same order, numbers aside."""
_FORMULAS = 0.75
_NOTHING = frozenset({""})
"""The key of a question that has nothing to be told by."""
_LONG = 12
"""Signs, numbers and letters that formulas must have to stand for a problem by themselves."""


class Rewordings:
    """Finds the evaluation question that a training question says in other words.

    `add` all evaluation questions, `count` every training question, `settle`; then `find`.

    Both must have the same numbers (0 and 1 aside, numbers up to twenty also as words; one up to
    twelve may be missing on one side). Then they overlap if they are at least `alike`, in the
    cosine of their words and of the pairs of neighbours in their formulas, letters taken for one
    another, each weighted by how rare it is, names the least. For each number fewer than three
    that they have in common 0.1 more is asked. Where the words stand in the same order the
    numbers must too, or it is a template filled in another way. Of questions of fewer than `n`
    words the formulas must be the same but for the names of variables; of those without numbers
    also all words that are not very common, in their order.

    A translation has no words in common. It is found by its formulas if they are long, and
    their numbers and most of their signs are the same in the same order.
    """

    def __init__(self, alike: float, n: int) -> None:
        self.alike, self.n = alike, n
        self._asked: list[tuple[Asked, Anatomy]] = []
        self._by_key: dict[frozenset[str], list[int]] = defaultdict(list)
        self._by_fewer: dict[frozenset[str], list[int]] = defaultdict(list)
        self._holders: Counter[str] = Counter()
        self._questions = 0
        self._vectors: list[Vector] = []

    def add(self, asked: Asked) -> None:
        """Enter an evaluation question."""
        anatomy = dissect(parse(asked.text))
        at = len(self._asked)
        self._by_key[anatomy.key].append(at)
        for fewer in _without_one(anatomy.numbers):
            self._by_fewer[fewer].append(at)
        self._asked.append((asked, anatomy))
        self._holders.update(anatomy.features.keys())
        self._questions += 1

    def count(self, question: Parsed) -> bool:
        """Count the words of a training question; whether `find` can find anything."""
        anatomy = dissect(question)
        self._questions += 1
        self._holders.update(self._holders.keys() & anatomy.features.keys())
        return bool(self._candidates(anatomy))

    def settle(self) -> None:
        """Weigh the words by how rare they are among all questions counted."""
        self._vectors = [self._unit(anatomy.features) for _, anatomy in self._asked]

    def find(self, question: Parsed) -> Hit | None:
        """The evaluation question that is most alike, or None if none is alike enough."""
        ours = dissect(question)
        vector, best, found, rule = self._unit(ours.features), 0.0, None, ""
        for at, shared in self._candidates(ours):
            asked, theirs = self._asked[at]
            other = self._vectors[at]
            score = sum(value * other[key] for key, value in vector.items() if key in other)
            asks = min(self.alike + _STEP * max(_FULL - shared, 0), 1 - 1e-9)
            if score > best and score >= asks and self._admits(ours, theirs, shared):
                best, found, rule = score, asked, "rewording"
            elif score < asks and shared and (score := _same_formulas(ours, theirs)) > best:
                best, found, rule = score, asked, "formulas"
        return _hit(question, ours, found, best, rule) if found else None

    def _candidates(self, ours: Anatomy) -> list[tuple[int, int]]:
        """(place in `_asked`, numbers in common less those that one of the two lacks)."""
        held, key = ours.numbers, ours.key
        if key is _NOTHING:
            return []
        found = [(at, len(held)) for at in self._by_key.get(key, ())]
        if len(held) >= _FULL:
            found += [(at, len(held) - 1) for at in self._by_fewer.get(held, ())]
        for fewer in _without_one(held):
            found += [(at, len(fewer) - 1) for at in self._by_key.get(fewer, ())]
        return found

    def _unit(self, features: Features) -> Vector:
        """Root counts by rarity, of length 1."""
        weighted = {key: math.sqrt(count) * self._weight(key) for key, count in features.items()}
        size = math.sqrt(sum(value * value for value in weighted.values()))
        return {key: value / size for key, value in weighted.items()} if size else {}

    def _weight(self, key: str) -> float:
        seen = self._holders[key] + _SEEN.get(key, 0)
        return math.log((self._questions + _BEFORE) / (seen + 1))

    def _admits(self, ours: Anatomy, theirs: Anatomy, shared: int) -> bool:
        if not shared:
            return True
        if min(ours.size, theirs.size) < self.n:
            return ours.formulas == theirs.formulas
        if _within(ours.order, theirs.order) or _within(theirs.order, ours.order):
            return True
        return _ratio(ours.words, theirs.words) < _PARALLEL


@dataclass(frozen=True, slots=True)
class Anatomy:
    """The parts of a question that rewordings are told by."""

    size: int
    """In words, numbers included."""
    order: list[str]
    """The numbers in order, spelled ones included, without 0 and 1."""
    numbers: frozenset[str]
    words: list[str]
    """Its words in order; numbers, formulas and names aside."""
    formulas: list[str]
    """The formulas' tokens, letters by the order in which they appear."""
    features: Features
    """Stems, numbers, and neighbours within formulas, with how often each stands there."""

    @property
    def key(self) -> frozenset[str]:
        """The numbers; of a question without any its formulas and uncommon words in order."""
        if self.numbers:
            return self.numbers
        rare = [word for word in self.words if word[:_STEM] not in _SEEN]
        return frozenset([" ".join([*rare, "|", *self.formulas])]) if len(rare) > 1 else _NOTHING


def dissect(question: Parsed) -> Anatomy:
    """Take a question apart into words, numbers and formulas."""
    commands = {found.casefold() for found in _COMMAND.findall(question.text)} | _RENAMED
    names = {found.casefold() for found in _NAME.findall(question.text)}
    order: list[str] = []
    words: list[str] = []
    formulas: list[str] = []
    pairs: list[str] = []
    stems: list[str] = []
    named: list[str] = []
    letters: dict[str, str] = {}
    before = ""
    for at, token in enumerate(question.tokens):
        kind, key = _kind(token)
        if token in _FRAMES and "begin" in commands:
            continue
        if token in _ARTICLES and not before and _is_word(question.tokens[at + 1 : at + 2]):
            continue
        if kind == "word" and token not in commands:
            if token in names:
                named.append(key)
            else:
                words.append(token)
                stems.append(key)
            before = ""
            continue
        if kind == "letter":
            formulas.append(letters.setdefault(token, f"?{len(letters)}"))
        else:
            formulas.append(key)
        if kind == "number":
            order.append(key)
        if before:
            pairs.append(f"{before} {key}")
        before = key
    features: Features = dict(Counter([*stems, *order, *pairs]))
    for key in named:
        features[key] = features.get(key, 0) + _OF_A_NAME
    order = [number for number in order if number not in _MEANINGLESS]
    return Anatomy(len(question.words), order, frozenset(order), words, formulas, features)


def numbers(question: Parsed) -> frozenset[str]:
    """The distinct numbers of a question, spelled ones included, without 0 and 1."""
    return dissect(question).numbers


@lru_cache(100_000)
def _kind(token: str) -> tuple[str, str]:
    """What a token is (number, letter, sign or word), and what it is compared by."""
    token = _SPELLED.get(token, token)
    if token[0].isdigit():
        return "number", token.rstrip("0").rstrip(".") if "." in token else token
    if not token[0].isalpha():
        return "sign", token
    if len(token) == 1 and not _WORDLIKE.match(token):
        return "letter", "?"
    return "word", token[:_STEM]


def _is_word(tokens: Sequence[str]) -> bool:
    return all(_kind(token)[0] == "word" for token in tokens)


def _without_one(held: frozenset[str]) -> Iterator[frozenset[str]]:
    """The numbers without one of the small ones, where enough are left."""
    if len(held) > _FULL:
        for number in held:
            if number.isdecimal() and len(number) <= 2 and int(number) <= _SMALL:
                yield held - {number}


def _same_formulas(ours: Anatomy, theirs: Anatomy) -> float:
    """How alike the formulas are, 0 if they are short, differ in numbers or in too much else."""
    if ours.order != theirs.order or min(len(ours.formulas), len(theirs.formulas)) < _LONG:
        return 0.0
    # Brackets belong to the text around them as often as not.
    bare = [[token for token in one.formulas if token not in "()[]"] for one in (ours, theirs)]
    if min(map(len, bare)) < _LONG:
        return 0.0
    ratio = _ratio(*bare)
    return ratio if ratio >= _FORMULAS else 0.0


def _within(few: Sequence[str], many: Sequence[str]) -> bool:
    """True if `few` stand in `many` in their order, with others between them perhaps."""
    rest = iter(many)
    return all(number in rest for number in few)


def _ratio(ours: Sequence[str], theirs: Sequence[str]) -> float:
    return SequenceMatcher(None, ours, theirs, autojunk=False).ratio()


def _hit(question: Parsed, ours: Anatomy, asked: Asked, score: float, rule: str) -> Hit:
    theirs = parse(asked.text).words
    blocks = SequenceMatcher(None, question.words, theirs, autojunk=False).get_matching_blocks()
    parts = [" ".join(question.words[b.a : b.a + b.size]) for b in blocks if b.size]
    held = cut(", ".join(sorted(ours.numbers, key=lambda n: (len(n), n))), 30)
    same = f" with the same numbers ({held})" if held else ""
    does = "rewords" if rule == "rewording" else "has the formulas of"
    reason = (
        f"{does} problem {asked.problem_id} of '{asked.task}', {score:.0%} alike{same}: "
        f"'{cut(' '.join(question.text.split()))}'"
    )
    return Hit(asked, rule, score, " … ".join(parts), reason)
