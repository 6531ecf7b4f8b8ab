"""Writing systems: which characters are whose, which languages use them, what a word is in each."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from distill.errors import UsageError

LATIN = "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u1e00-\u1eff"
"""Letters of the Latin script; full-width ones and those of mathematics are left out."""

SCRIPTS: dict[str, str] = {
    "Latin": LATIN,
    "Greek": "\u0370-\u03ff\u1f00-\u1fff",
    "Cyrillic": "\u0400-\u052f\u1c80-\u1c8f\u2de0-\u2dff\ua640-\ua69f",
    "Armenian": "\u0531-\u0587",
    "Hebrew": "\u05d0-\u05f4",
    "Arabic": "\u0620-\u065f\u066e-\u06d3\u06fa-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufefc",
    "Devanagari": "\u0900-\u0963\u0970-\u097f",
    "Bengali": "\u0980-\u09e3\u09f0-\u09ff",
    "Gurmukhi": "\u0a01-\u0a5e\u0a70-\u0a76",
    "Gujarati": "\u0a81-\u0ae3",
    "Tamil": "\u0b82-\u0bd7",
    "Telugu": "\u0c00-\u0c63",
    "Kannada": "\u0c80-\u0ce3",
    "Malayalam": "\u0d00-\u0d63",
    "Sinhala": "\u0d81-\u0ddf",
    "Thai": "\u0e01-\u0e3a\u0e40-\u0e4e",
    "Lao": "\u0e81-\u0ece",
    "Tibetan": "\u0f40-\u0fbc",
    "Myanmar": "\u1000-\u103f\u1050-\u108f",
    "Georgian": "\u10a0-\u10ff",
    "Hangul": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "Ethiopic": "\u1200-\u135a",
    "Khmer": "\u1780-\u17d3",
    "Kana": "\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\uff66-\uff9f",
    "Han": "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f",
}
"""Script -> its letters, as the inside of a character class; blocks after Unicode's Scripts.txt."""

# Characters that count as one word where nothing parts words: Chinese is read character by
# character, as elsewhere in the filters; for the others the mean length of a word.
UNSPACED = {"Han": 1, "Kana": 3, "Thai": 4, "Lao": 4, "Tibetan": 4, "Myanmar": 4, "Khmer": 4}

WRITTEN_IN: dict[str, tuple[str, ...]] = {
    "zh": ("Han",),
    "ja": ("Han", "Kana"),
    "ko": ("Hangul",),
    **dict.fromkeys(("ru", "uk", "be", "bg", "mk", "kk", "ky", "tg", "mn"), ("Cyrillic",)),
    "sr": ("Cyrillic", "Latin"),
    **dict.fromkeys(("ar", "fa", "ur", "ps"), ("Arabic",)),
    **dict.fromkeys(("hi", "mr", "ne"), ("Devanagari",)),
    "bn": ("Bengali",),
    "pa": ("Gurmukhi",),
    "gu": ("Gujarati",),
    "ta": ("Tamil",),
    "te": ("Telugu",),
    "kn": ("Kannada",),
    "ml": ("Malayalam",),
    "si": ("Sinhala",),
    "th": ("Thai",),
    "lo": ("Lao",),
    "bo": ("Tibetan",),
    "my": ("Myanmar",),
    "ka": ("Georgian",),
    "am": ("Ethiopic",),
    "km": ("Khmer",),
    "el": ("Greek",),
    "hy": ("Armenian",),
    "he": ("Hebrew",),
}
"""ISO 639-1 code -> scripts; a language that is not here is written in Latin letters."""

SPOKEN = {
    "Latin": "",
    "Greek": "el",
    "Cyrillic": "",
    "Armenian": "hy",
    "Hebrew": "he",
    "Arabic": "",
    "Devanagari": "",
    **{
        scripts[0]: code
        for code, scripts in WRITTEN_IN.items()
        if scripts[0]
        not in ("Latin", "Greek", "Cyrillic", "Armenian", "Hebrew", "Arabic", "Devanagari")
    },
    "Kana": "ja",
    "Han": "zh",
}
"""Script -> the one language that it stands for, "" where several share it."""

NAMES = {
    "en": "English", "zh": "Chinese", "ja": "Japanese", "ko": "Korean", "ru": "Russian",
    "fr": "French", "de": "German", "es": "Spanish", "it": "Italian", "pt": "Portuguese",
    "nl": "Dutch", "pl": "Polish", "tr": "Turkish", "vi": "Vietnamese", "id": "Indonesian",
    "ar": "Arabic", "fa": "Persian", "hi": "Hindi", "bn": "Bengali", "th": "Thai",
    "el": "Greek", "he": "Hebrew", "uk": "Ukrainian", "cs": "Czech", "ro": "Romanian",
    "hu": "Hungarian", "sv": "Swedish", "da": "Danish", "no": "Norwegian", "fi": "Finnish",
    "sw": "Swahili", "te": "Telugu", "ta": "Tamil",
}  # fmt: skip
_CODES = {name.lower(): code for code, name in NAMES.items()}
_CODE = re.compile(r"[a-z]{2,3}(?:[-_][A-Za-z0-9]{2,8})*")


def language_code(name: str) -> str:
    """The ISO 639 code of a code or an English name: `zh` for zh, zh-CN and Chinese.

    Raises UsageError for anything that is neither.
    """
    code = _CODES.get(name.strip().lower())
    if code:
        return code
    if _CODE.fullmatch(name.strip()):
        return re.split("[-_]", name.strip())[0]
    raise UsageError(
        f"'{name}' is no language", "use a code such as en, zh, ru or pt-BR, or an English name"
    )


def scripts_of(code: str) -> tuple[str, ...]:
    """The scripts that a language is written in."""
    return WRITTEN_IN.get(code, ("Latin",))


def characters(scripts: Iterable[str]) -> str:
    """The letters of several scripts, as the inside of a character class."""
    wanted = set(scripts)
    return "".join(letters for name, letters in SCRIPTS.items() if name in wanted)


@lru_cache(maxsize=256)
def word_pattern(scripts: frozenset[str]) -> re.Pattern[str]:
    """Matches one word in these scripts.

    A single letter is none where words are spaced: it is a variable or an initial. A syllable of
    Hangul is one.
    """
    spaced = characters(scripts - UNSPACED.keys() - {"Hangul"})
    parts = [
        f"[{SCRIPTS[s]}]{{1,{UNSPACED[s]}}}" for s in SCRIPTS if s in scripts & UNSPACED.keys()
    ]
    if "Hangul" in scripts:
        parts.append(f"[{SCRIPTS['Hangul']}]+")
    if spaced:
        parts.append(f"[{spaced}]{{2,}}")
    return re.compile("|".join(parts))


ALL = frozenset(SCRIPTS)


def count_words(text: str) -> int:
    """Words of `text` in any script."""
    return len(word_pattern(ALL).findall(text))


def script_of(text: str) -> str:
    """The script of the first letter of `text` that has one, "" without."""
    found = _first_letter().search(text)
    return str(found.lastgroup) if found else ""


@lru_cache(maxsize=1)
def _first_letter() -> re.Pattern[str]:
    return re.compile("|".join(f"(?P<{name}>[{chars}])" for name, chars in SCRIPTS.items()))


# Code, mathematics and addresses, which are in no language. Every branch ends at the next mark of
# its own kind, so that time stays linear on text with thousands of marks that never close.
_EXEMPT = re.compile(
    r"```.*?(?:```|\Z)"
    r"|`[^`\n]++`"
    r"|\$\$[^$]++\$\$"
    r"|\$[^$\n]++\$"
    r"|\\\[(?:[^\\]|\\(?![\[\]]))*+\\\]"
    r"|\\\((?:[^\\]|\\(?![()]))*+\\\)"
    r"|\\[A-Za-z]++"
    r"|https?://\S++"
    r"|</?[A-Za-z_]{1,24}>"
    r"|<\|[a-z_]{1,40}\|>",
    re.DOTALL,
)


def prose(text: str) -> str:
    """`text` without code, LaTeX, addresses and tags, each replaced by a space."""
    return _EXEMPT.sub(" ", text)
