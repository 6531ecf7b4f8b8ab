"""Languages in Latin letters, told apart: by English's commonest words, then by a detector.

The detector is py3langid (extra `language`): 4.5 MB, 0.06 ms for a segment, and calibrated since
0.4. (lingua takes three times as long and twenty times the space.)
"""

from __future__ import annotations

import copy
import importlib.metadata
import random
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from distill.filter.scripts import LATIN, NAMES, prose

PACKAGE = "py3langid"


def installed() -> str | None:
    """The version of the detector, None without one."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None


# What English prose can hardly do without and other languages in Latin letters do not have, the
# commonest first.
_ENGLISH = (
    " the ", " to ", " and ", " that ", " can ", "But ", "Wait", " be ", " are ", " not ", "So, ",
    " this ", " which ", " with ", "The ", "Let ", " if ", " from ", " then ", " it's ", " there ",
    " when ", " you ", " let's ", "Then ", " what ", "Now ",
)  # fmt: skip
# More of the same, looked for among the words of segments that are left after that.
_ONLY_ENGLISH = frozenset([
    "the", "The", "and", "And", "that", "That", "this", "This", "are", "then", "with", "which",
    "there", "not", "wait", "but", "now", "therefore", "Therefore", "thus", "Thus", "hence",
    "Alternatively", "Similarly", "since", "Since", "because", "each", "these", "first", "First",
    "number", "numbers", "equation", "have", "has", "from", "where", "when", "what", "means",
    "same", "already", "into", "would", "should", "could", "Combine", "Calculate", "Let", "If",
])  # fmt: skip
SURE = 0.9
"""Confidence of the detector that counts. Of 3,616 doubtful segments of published chains, all
English, one was told to be something else with more."""
SEGMENT = 120
"""Characters of a segment, then on to the end of its line: enough for a detector to be sure."""
CALLS = 24
"""At most so many segments of one trace are put to the detector."""
LEAST_WORDS = 10
_RELATIVES = [{"da", "no", "nb", "nn"}, {"hr", "sr", "sl"}, {"cs", "sk"}, {"es", "ca"}]
"""Languages that the detector takes for each other, and that are not told apart here."""


def foreign(codes: set[str], text: str, question: str) -> tuple[int, list[tuple[int, str, str]]]:
    """Foreign words in Latin letters, and the stretches they stand in.

    Segments with two of the commonest English words are English; only what is left is doubtful.
    Where there are more doubtful segments than calls, the share of those asked stands for all.
    """
    english = "en" in codes
    doubtful = []
    asked_words = None
    for segment in _segments(text):
        if english and _is_english(segment):
            continue
        if asked_words is None:
            asked_words = set(_LATIN_WORD.findall(question))
        words = [w for w in _LATIN_WORD.findall(prose(segment)) if w not in asked_words]
        if len(words) < LEAST_WORDS or (english and len(_ONLY_ENGLISH.intersection(words)) > 1):
            continue
        doubtful.append((words, segment))
    if not doubtful:
        return 0, []
    detector = _detector(min(codes))
    if detector is None:
        return 0, []
    chosen = doubtful
    if len(doubtful) > CALLS:
        # Not every n-th one: a chain that changes its language in turns would be met in step.
        chosen = random.Random(len(doubtful)).sample(doubtful, CALLS)
    own = codes.union(*(group for group in _RELATIVES if group & codes))
    asked, found = 0, []
    for words, segment in chosen:
        asked += len(words)
        code, confidence = detector.classify(" ".join(words))
        if confidence >= SURE and code not in own:
            found.append((len(words), NAMES.get(code, code), segment.strip()))
    share = sum(n for n, _, _ in found) / asked
    return round(share * sum(len(words) for words, _ in doubtful)), found


_LATIN_WORD = re.compile(f"[{LATIN}]{{2,}}")


def _is_english(segment: str) -> bool:
    hits = 0
    for word in _ENGLISH:
        if word in segment:
            hits += 1
            if hits == 2:
                return True
    return False


def _segments(text: str) -> Iterator[str]:
    """Stretches of whole lines of about SEGMENT characters; a long line is cut at a space."""
    at, end = 0, len(text)
    while at < end:
        stop = text.find("\n", at + SEGMENT)
        if stop < 0:
            stop = end
        if stop - at > 6 * SEGMENT:
            cut = text.find(" ", at + 4 * SEGMENT, at + 6 * SEGMENT)
            stop = cut if cut > 0 else at + 6 * SEGMENT
        yield text[at:stop]
        at = stop


# Those that teachers write and that a detector tells apart in a few words.
_DETECTED = frozenset(
    ["en", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "no", "fi", "pl", "cs", "sk", "hu", "ro"]
).union(["tr", "id", "vi", "ca", "hr", "sl", "et", "lv", "lt"])


def detect(text: str) -> str:
    """The code of the language that `text`, in Latin letters, is surely in; "" in doubt."""
    code, confidence = _detector("en").classify(text)
    return str(code) if confidence >= SURE else ""


@lru_cache(maxsize=8)
def _detector(code: str) -> Any:
    """The detector over the common languages and this one; None if it does not know it."""
    base = _base()
    if code not in base.labels:
        return None
    made = copy.copy(base)
    made.set_languages(_DETECTED | {code})
    return made


@lru_cache(maxsize=1)
def _base() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
