"""Which of the kept traces are taken: of a problem, of a source or domain, and for which split.

Every draw is a hash of the seed and the thing's own key, so that it depends on nothing else: more
problems or another filter move nothing that is not concerned, and a larger limit only adds.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import islice
from typing import Any

from distill.mix import balance_of, notes_of, quotas
from distill.schema import Selection

SHINGLE = 3
SKETCH = 1024
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
"""A word, or one character of a script that is written without spaces."""

Key = tuple[str, int]
"""(problem id, sample index)."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A kept trace: its key, its length in tokens (estimated where nobody counted them), the byte
    at which its line starts in the file of traces, and the score of its grade.
    """

    problem_id: str
    index: int
    tokens: int
    counted: bool
    offset: int
    source: str = ""
    domain: str = ""
    score: float = 0.0

    @property
    def key(self) -> Key:
        return (self.problem_id, self.index)


Texts = Callable[[Candidate], str]
"""Reads the text of a candidate; called for problems with more candidates than are taken."""


@dataclass
class Choice:
    """What was chosen, why every other candidate was not, and how shares came out."""

    chosen: list[Candidate]
    reasons: dict[Key, str] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    """Key of the recipe (`per_problem`, `mix` ...) -> candidates that it left out."""
    shares: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of `mix` or `balance`: name -> `{wanted, available, selected}`."""
    notes: list[str] = field(default_factory=list)

    def drop(self, candidates: Iterable[Candidate], key: str, reason: str) -> None:
        for candidate in candidates:
            self.reasons[candidate.key] = reason
            self.left_out[key] += 1


def choose(
    candidates: Iterable[Candidate], config: Selection, seed: int, texts: Texts | None = None
) -> Choice:
    """The candidates to use: the best of each problem, then sources, domains and the whole capped.

    The caps keep whole problems in the order of their hash, so that a larger number only adds;
    the last problem of a group may lose some of its traces. `texts` is needed for `different`.
    """
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        groups[candidate.problem_id].append(candidate)
    choice = Choice([])
    for problem in sorted(groups, key=lambda key: draw(seed, "problem", key)):
        best = best_of(groups[problem], config, seed, texts)
        choice.chosen += best
        if len(best) < len(groups[problem]):
            taken = {c.index for c in best}
            rest = (c for c in groups[problem] if c.index not in taken)
            why = f"not among the {config.per_problem} chosen per problem ({config.by})"
            choice.drop(rest, "per_problem", why)
    if config.by == "judge" and choice.left_out and not _told_apart(groups.values()):
        choice.notes.append(
            "select.by is judge, and no problem has traces with different scores: the shortest "
            "were taken"
        )
    _cap_sources(choice, config)
    _share(choice, config)
    if config.max_examples is not None and len(choice.chosen) > config.max_examples:
        why = f"not among the {config.max_examples:,} examples (max_examples)"
        choice.drop(choice.chosen[config.max_examples :], "max_examples", why)
        del choice.chosen[config.max_examples :]
    selected = Counter(_group(c, config) for c in choice.chosen)
    for name, row in choice.shares.items():
        row["selected"] = selected[name]
    return choice


def best_of(
    group: Sequence[Candidate], config: Selection, seed: int, texts: Texts | None = None
) -> list[Candidate]:
    """Up to `per_problem` candidates of one problem; ties go to the smaller sample index."""
    if len(group) <= 1:
        return list(group)
    if config.by == "different":
        if texts is None:
            raise ValueError("by: different compares texts, and there is nothing to read them with")
        return most_different(group, config.per_problem, texts)
    order: Callable[[Candidate], Any] = {
        "shortest": lambda c: (c.tokens, c.index),
        "longest": lambda c: (-c.tokens, c.index),
        "random": lambda c: (draw(seed, "sample", c.problem_id, c.index), c.index),
        "judge": lambda c: (-c.score, c.tokens, c.index),
    }[config.by]
    return sorted(group, key=order)[: config.per_problem]


def most_different(group: Sequence[Candidate], number: int, texts: Texts) -> list[Candidate]:
    """The shortest, then always the one that is least like its nearest among those taken.

    Greedy max-min (Gonzalez 1985) over the Jaccard distance of the texts' word shingles. Only the
    sketches of one problem's texts are in memory at a time.
    """
    order = sorted(group, key=lambda c: (c.tokens, c.index))
    if len(order) <= number:
        return order
    sets = [shingles(texts(candidate)) for candidate in order]
    taken = [0]
    nearest = [distance(sets[0], other) for other in sets]
    while len(taken) < number:
        free = (i for i in range(len(order)) if i not in taken)
        farthest = max(free, key=lambda i: (nearest[i], -i))
        taken.append(farthest)
        nearest = [min(d, distance(sets[farthest], s)) for d, s in zip(nearest, sets, strict=True)]
    return [order[i] for i in taken]


def shingles(text: str) -> set[int]:
    """The SKETCH smallest hashes of all runs of three words, in lower case; all of a short text.

    Of a text of fewer words, the one run that there is.
    """
    words = _WORD.findall(text.lower())
    runs = zip(*(islice(words, i, None) for i in range(SHINGLE)), strict=False)
    found = {zlib.crc32(" ".join(run).encode("utf-8", "replace")) for run in runs}
    if words and not found:
        found = {zlib.crc32(" ".join(words).encode("utf-8", "replace"))}
    return set(nsmallest(SKETCH, found)) if len(found) > SKETCH else found


def distance(one: set[int], other: set[int]) -> float:
    """Jaccard distance in [0, 1] of two sketches (bottom-k; Broder 1997); 0 between empty ones.

    Exact where both texts together have at most SKETCH different runs, else an estimate.
    """
    union = one | other
    seen = nsmallest(SKETCH, union) if len(union) > SKETCH else union
    return 1 - sum(x in one and x in other for x in seen) / len(seen) if seen else 0.0


def draw(seed: int, *what: object) -> bytes:
    """A reproducible random number for one thing, independent of all others."""
    return hashlib.sha256("\0".join(map(str, (seed, *what))).encode()).digest()


def for_validation(problems: Iterable[str], wanted: float) -> set[str]:
    """Problems to keep from training: a share of them by hash, or (1 and more) so many.

    The side of a problem depends on its id alone, not on the seed, so that runs with other seeds
    or filters do not train on each other's validation problems; a larger share only adds.
    """
    if not wanted:
        return set()
    rank = {p: hashlib.sha256(f"validation:{p}".encode()).digest()[:8] for p in problems}
    if wanted < 1:
        return {p for p, digest in rank.items() if int.from_bytes(digest) < wanted * 2**64}
    return set(sorted(rank, key=lambda p: (rank[p], p))[: int(wanted)])


def _told_apart(groups: Iterable[Sequence[Candidate]]) -> bool:
    return any(len({c.score for c in group}) > 1 for group in groups)


def _cap_sources(choice: Choice, config: Selection) -> None:
    cap = config.per_source
    if cap is not None:
        sources = {c.source for c in choice.chosen}
        room = cap if isinstance(cap, dict) else dict.fromkeys(sources, cap)
        _keep(choice, room, lambda c: c.source, "per_source", "of source")


def _group(candidate: Candidate, config: Selection) -> str:
    return candidate.source if config.mix else candidate.domain


def _share(choice: Choice, config: Selection) -> None:
    """Apply `mix` (by source) or `balance` (by domain): the same rule for both."""
    if not config.mix and not config.balance:
        return
    key, what = ("mix", "source") if config.mix else ("balance", "domain")
    wanted = config.mix or balance_of(config.balance)
    available = Counter(_group(c, config) for c in choice.chosen)
    room = quotas(available, wanted, config.max_examples, fill=config.fill, what=what)
    choice.shares = {
        name: {
            "wanted": wanted.get(name),
            "available": available[name],
            "selected": room.get(name, 0),
        }
        for name in [*wanted, *sorted(available.keys() - wanted.keys())]
    }
    choice.notes += notes_of(choice.shares, wanted, what, fill=config.fill)
    _keep(choice, room, lambda c: _group(c, config), key, f"of {what}")


def _keep(
    choice: Choice,
    room: Mapping[str, int],
    group: Callable[[Candidate], str],
    key: str,
    of: str,
) -> None:
    """The first `room` candidates of each group; a group without a number keeps all."""
    why = {n: f"not among the {most:,} examples {of} '{n}' ({key})" for n, most in room.items()}
    taken: Counter[str] = Counter()
    kept = []
    for candidate in choice.chosen:
        name = group(candidate)
        taken[name] += 1
        if taken[name] <= room.get(name, taken[name]):
            kept.append(candidate)
        else:
            choice.drop([candidate], key, why[name])
    choice.chosen = kept
