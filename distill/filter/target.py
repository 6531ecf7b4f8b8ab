"""Which language a trace should be in: that of its problem."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from distill.filter import latin, scripts
from distill.filter.scripts import NAMES, SCRIPTS, language_code, prose, scripts_of


@dataclass(frozen=True, slots=True)
class Target:
    """What a trace may be written in. `codes` is empty where only the script is known."""

    name: str
    codes: frozenset[str]
    scripts: frozenset[str]


# Two of these make a question English. Dutch has "is" and "of", French "a" and "as": not these.
_ASKED = re.compile(
    r"\b(?:the|and|that|this|to|are|be|if|then|from|with|which|there|what|how|many|much|find|each|"
    r"compute|evaluate|solve|let|for|given|determine|calculate|simplify|prove|show|write|number|"
    r"value|when|where|who|why|does|suppose|express|integer|has|have|into|translate|english|"
    r"mean|means|following|answer|your|you)\b",
    re.IGNORECASE,
)
_PLAIN_WORD = re.compile(r"(?<![A-Za-z])[a-z]{3,}(?![A-Za-z])")
_WORD = re.compile(f"[{scripts.LATIN}]{{2,}}")
_FUNCTIONS = frozenset(
    ["sin", "cos", "tan", "cot", "sec", "csc", "log", "lim", "max", "min", "mod", "gcd", "lcm"]
)


@lru_cache(maxsize=4096)
def target_of(question: str, user: str, named: str, allow: frozenset[str], detects: bool) -> Target:
    """The language to expect: as `named`, or that of the question, or of the whole user message.

    The message, with its instruction, is asked where the question is too short to tell. A question
    in two scripts (a translation, say) allows both.
    """
    if named:
        codes = {language_code(named)}
        name = NAMES.get(min(codes), min(codes))
        found = Target(name, frozenset(codes), frozenset(scripts_of(min(codes))))
    else:
        found = _told(question, detects)
        if not found.codes and found.scripts <= {"Latin"}:
            second = _told(user, detects)
            found = second if second.codes or not found.scripts else found
    more = {script for code in allow for script in scripts_of(code)}
    return Target(found.name, found.codes | allow, found.scripts | more)


def _told(text: str, detects: bool) -> Target:
    text = prose(text)
    counts = {}
    for name in () if text.isascii() else SCRIPTS.keys() - {"Latin"}:
        count = len(scripts.word_pattern(frozenset([name])).findall(text))
        # One or two Greek words are products of variables.
        if count >= (3 if name == "Greek" else 1):
            counts[name] = count
    plain = _PLAIN_WORD.findall(text) if counts else _WORD.findall(text)
    words = [word for word in plain if word not in _FUNCTIONS]
    total = sum(counts.values()) + len(words)
    if not total:
        return Target("", frozenset(), frozenset())
    used = {name for name, count in counts.items() if count >= 0.25 * total}
    if "Kana" in counts and used & {"Han", "Kana"}:
        used |= {"Han", "Kana"}
    codes = {"ja"} if "Kana" in used else {scripts.SPOKEN[name] for name in used} - {""}
    english = len({found.lower() for found in _ASKED.findall(text)})
    enough = len(words) >= 0.25 * total and (len(words) >= 3 or not used)
    if words and (enough or english > 1):
        used.add("Latin")
        code = ""
        if detects and not counts and len(words) >= 5:
            code = latin.detect(" ".join(text.split()))
        if not code and english >= (2 if len(words) > 6 or counts else 1):
            code = "en"
        codes |= {code} - {""}
    name = "/".join(sorted(NAMES.get(code, code) for code in codes)) or " and ".join(
        f"in {script} letters" for script in sorted(used)
    )
    return Target(name, frozenset(codes), frozenset(used))
