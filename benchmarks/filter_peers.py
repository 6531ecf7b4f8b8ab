"""What other tools do to drop repetitive or leaked texts, written anew in their own plain way.

`gopher_repetition` has the rules of Rae et al. 2021 (arXiv 2112.11446, table A1) as datatrove's
`GopherRepetitionFilter` applies them: duplicate lines and paragraphs, the commonest short n-gram,
duplicate long n-grams. `Leaks` has open-r1's `scripts/decontaminate.py`: any word 8-gram of a
problem that stands in an evaluation problem. datatrove splits words with NLTK's tokenizer, which
is far slower than the regular expression here; tables and defaults are theirs.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

TOP = ((2, 0.2), (3, 0.18), (4, 0.16))
DUPLICATE = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
LINES, CHARS = 0.3, 0.2
_PARAGRAPH = re.compile(r"\n{2,}")
_WORD = re.compile(r"\w+|[^\w\s]")


def gopher_repetition(text: str, *, every: bool = False) -> list[str]:
    """The rules that a text breaks: the first, or with `every` all of them."""
    broken = []
    for rule in _broken(text) if text.strip() else ():
        broken.append(rule)
        if not every:
            break
    return broken


def _broken(text: str) -> Iterator[str]:
    for name, pieces in (
        ("paragraphs", _PARAGRAPH.split(text.strip())),
        ("lines", text.splitlines()),
    ):
        seen: set[str] = set()
        count = size = 0
        for piece in pieces:
            if piece in seen:
                count += 1
                size += len(piece)
            seen.add(piece)
        if count / len(pieces) > LINES or size / len(text) > CHARS:
            yield f"duplicate {name}"
    words = _WORD.findall(text)
    for n, limit in TOP:
        runs = [" ".join(words[at : at + n]) for at in range(len(words) - n + 1)]
        if runs:
            run, count = Counter(runs).most_common(1)[0]
            if len(run) * count / len(text) > limit:
                yield f"top {n}-gram"
    for n, limit in DUPLICATE:
        if _duplicate_chars(words, n) / len(text) > limit:
            yield f"duplicate {n}-grams"


def _duplicate_chars(words: list[str], n: int) -> int:
    seen: set[str] = set()
    size = at = 0
    while at < len(words) - n + 1:
        run = " ".join(words[at : at + n])
        if run in seen:
            size += len(run)
            at += n
        else:
            seen.add(run)
            at += 1
    return size


class Leaks:
    """Evaluation problems by their word n-grams, in lower case."""

    def __init__(self, tasks: Iterable[str], n: int = 8) -> None:
        self.n = n
        self.seen: dict[str, set[int]] = defaultdict(set)
        for number, text in enumerate(tasks):
            for run in self._runs(text):
                self.seen[run].add(number)

    def __call__(self, problem: str) -> bool:
        """True if a problem shares an n-gram with any evaluation problem."""
        return any(run in self.seen for run in set(self._runs(problem)))

    def _runs(self, text: str) -> list[str]:
        words = text.lower().split()
        return [" ".join(words[at : at + self.n]) for at in range(len(words) - self.n + 1)]
