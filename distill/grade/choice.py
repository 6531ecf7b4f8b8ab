r"""Multiple choice: which letters an answer names, however they are dressed up.

An answer names its letter alone (`B`, `(B)`, `\text{B}`, `**B.**`), before the option's text
(`B) 3/4`), in words (`option B`, `B is correct`), or it is the text of exactly one option.
An article is no choice: "A dog" and "I think" name none.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from distill.errors import UsageError
from distill.grade.base import Check, StagedGrader
from distill.grade.exact import normalise
from distill.grade.extract import answer_text, final_answer, was_cut, without_answer
from distill.records import Grade, Problem, Trace

KEY = "choices"
"""Where a problem's metadata holds the options: a list of texts, `{letter: text}`, or ARC's
`{"label": [...], "text": [...]}`."""

GoldKind = Literal["auto", "letter", "text", "index", "number"]
GOLD_KINDS: tuple[GoldKind, ...] = ("auto", "letter", "text", "index", "number")

_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|rm|bf)\s{0,8}(?=\{)")
_DRESS = '()[]{}$*_`"“” \t\n\\'
_QUOTED = re.compile(r"['‘](.*)['’]", re.DOTALL)
_NAMED = (
    r"(?:the\s{1,4})?(?:correct\s{1,4})?(?:options?|choices?|answers?|letters?)"
    r"(?:\s{1,4}(?:is|are))?\s{0,4}:?\s{0,4}"
)
_AND = r"\s{0,4}(?:,\s{0,4}and\b|,|;|/|&|\+|\band\b|\bor\b)\s{0,4}"
_ONE = r"[(\[]?[A-Za-z][)\]]?"
_SEVERAL = re.compile(rf"{_ONE}(?:{_AND}{_ONE})+")
_MARKED = re.compile(
    r"(?:\(([A-Za-z])\)|\[([A-Za-z])\]|([A-Za-z])[)\]]|([A-Z])[.:])"
    r"(?=\s|[^A-Za-z0-9'’.]|$)"
)
"""`(B)`, `B)`, `B.`, `B:` before an option's text; never the B of `B.C.` or `B's`."""

_DASHED = re.compile(r"([A-Z])\s{0,4}[-–—]\s")
_GLUED = re.compile(r"([A-Z])[).:](?![A-Z]\.)(?=[A-Z0-9])")
_REASONED = re.compile(r"([A-Z])\s{1,4}(?:is|as|since|because|due)\b")
_LISTED = re.compile(r"([A-HJ-Z]),\s{1,4}(?![A-Z]\b)")
_WRAPPED = re.compile(
    r"[\s$({]*\\(?:text|textbf|textrm|mathrm|mathbf|boxed)\s?\{\s?\(?([A-Z])[).:]{0,2}\s?\}"
)
_SPACED = re.compile(r"([B-HJ-Z])\s{1,4}[a-z]")
"""A capital that is no English word, before a word: "B because ..."."""

_LETTER = r"[*($]{0,6}(?P<%s>[A-Z])(?![\w'’])"
_CHOSEN = re.compile(
    r"(?:\b(?i:answer|(?:correct|right|best)\s{1,4}(?:option|choice))s?"
    r"(?:\s{0,4}:|\s{1,4}(?:is|are|would\s{1,4}be))\s{0,4}"
    + (_LETTER % "called")
    + r"|\b(?i:choose|select|pick)\s{1,4}(?:(?:option|choice)\s{1,4})?"
    + (_LETTER % "chosen")
    + r"|\b(?P<praised>[A-Z])[)*]{0,4}\s{1,4}(?:is|seems)\s{1,4}(?:the\s{1,4})?"
    r"(?:correct|right|best|true|answer)\b)"
)
_MENTIONED = re.compile(r"\b(?i:option|choice|answer)\s{1,4}" + _LETTER % "mentioned")
_DENIED = re.compile(r"(?:\bnot|n['’]t|\bnor)\s{1,4}(?:the\s{1,4})?[*($]{0,6}$")
_ARTICLE = re.compile(r"\s{1,4}[a-z]")
_CORRECT = re.compile(r"\s{1,4}(?:is|as|since|because|for|and|or|due)\b")


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a question by their letters; none are known where there are no texts."""

    letters: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, problem: Problem) -> Options:
        """Raises ValueError for options in a form that is not understood."""
        held = problem.metadata.get(KEY)
        if isinstance(held, str) and held.lstrip()[:1] in ("[", "{"):
            held = json.loads(held)
        if not held:
            return cls()
        if isinstance(held, Mapping) and set(held) >= {"text", "label"}:
            labels, texts = [str(v).strip() for v in held["label"]], held["text"]
            if not all(len(label) == 1 and label.isalpha() for label in labels):
                labels = list(string.ascii_uppercase[: len(texts)])
        elif isinstance(held, Mapping):
            labels, texts = [str(k).strip() for k in held], list(held.values())
        elif isinstance(held, Sequence) and not isinstance(held, str):
            labels, texts = list(string.ascii_uppercase[: len(held)]), list(held)
        else:
            raise ValueError(f"metadata.{KEY} is a {type(held).__name__}, expected a list of texts")
        letters = tuple(label.upper() for label in labels)
        if len(letters) != len(texts) or not all(re.fullmatch("[A-Z]", x) for x in letters):
            raise ValueError(f"metadata.{KEY} has {len(texts)} options with the letters {labels}")
        return cls(
            letters, tuple(_without_letter(str(t), x) for t, x in zip(texts, letters, strict=True))
        )

    def allow(self, letters: str) -> bool:
        """Whether all these are letters of options."""
        return not self.letters or set(letters) <= set(self.letters)

    def named_by(self, text: str) -> str:
        """The letter of the one option that has this text, else ''."""
        wanted = normalise(text)
        for case in (False, True):
            found = [
                letter
                for letter, option in zip(self.letters, self.texts, strict=True)
                if normalise(option, case=case) == (normalise(text, case=True) if case else wanted)
            ]
            if wanted and len(found) == 1:
                return found[0]
        return ""


NONE = Options()


def _without_letter(text: str, letter: str) -> str:
    """An option's text without the letter that some data sets write before it."""
    return re.sub(rf"^\s*\(?{letter}[).:]\s+", "", text)


def undressed(text: str) -> str:
    r"""Without `\text{}` and the like around it, brackets, dollar signs and stars at both ends."""
    text = _WRAPPER.sub("", text.replace("\\(", " ").replace("\\)", " "))
    text = re.sub(r"\\(?:quad|qquad|[,;:! ])", " ", text)
    if re.match(r"\s*[(\[{*$]*[A-Za-z][)\]]+\s*\S", text):
        return re.sub(r"[{}$*]", "", text).strip()  # `(B) 3/4` keeps its bracket
    return re.sub(r"[{}$*]", "", text).strip(_DRESS)


def letters_of(answer: str, options: Options = NONE, *, several: bool = False) -> str:
    """The letters that a final answer names, in alphabetical order; '' for none.

    Lower case counts where nothing but the letter (and "option", brackets) stands there. With
    `several`, capitals in a row are letters too, as in `ACD`.
    """
    text = undressed(answer)
    quoted = _QUOTED.fullmatch(text)
    text = undressed(quoted[1]) if quoted else text
    named = re.match(_NAMED, text, re.IGNORECASE)
    bare = text[named.end() :] if named else text
    for reading in (text, bare) if named else (text,):
        whole = reading.strip(_DRESS).rstrip(".:,;!").strip(_DRESS)
        if re.fullmatch("[A-Za-z]", whole):
            return _if(whole.upper(), options)
        if _SEVERAL.fullmatch(whole):
            return _if(_joined(_AND_SPLIT.split(whole)), options)
        if several and re.fullmatch("[A-Z]{2,26}", whole) and len(set(whole)) == len(whole):
            return _if("".join(sorted(whole)), options)
    listed = _listed(bare)
    if listed:
        return _if(listed, options)
    for pattern in (_MARKED, _DASHED, _GLUED, _LISTED, _REASONED, _SPACED):
        match = pattern.match(bare)
        if match:
            return _if(next(g for g in match.groups() if g).upper(), options)
    wrapped = _WRAPPED.match(answer)
    return _if(wrapped[1], options) if wrapped else ""


_AND_SPLIT = re.compile(_AND)


def _joined(parts: Sequence[str]) -> str:
    return "".join(sorted({p.strip(_DRESS).upper() for p in parts} - {""}))


def _listed(text: str) -> str:
    """Several options with their texts, one on a line or after commas: `A) 3, C) 5`."""
    found = re.findall(r"(?:^|[,;\n]|\band\b)\s{0,4}\(?([A-Z])[).:]\s", text)
    return _joined(found) if len(set(found)) > 1 else ""


def _if(letters: str, options: Options) -> str:
    return letters if options.allow(letters) else ""


def spoken(text: str, options: Options = NONE) -> str:
    """The letter that a text without a marked answer calls its choice, else ''.

    The last one that is called the answer; else one that is the only one mentioned as an option;
    else the letter that the last line begins with.
    """
    chosen = list(_said(_CHOSEN, text, options))
    if chosen:
        return chosen[-1]
    mentioned = set(_said(_MENTIONED, text, options))
    if mentioned:
        return mentioned.pop() if len(mentioned) == 1 else ""
    lines = [line for line in text.splitlines() if line.strip(_DRESS)]
    last = lines[-1] if lines else ""
    return letters_of(last, options) if len(last) <= 200 else ""


def _said(pattern: re.Pattern[str], text: str, options: Options) -> Iterator[str]:
    """The letters that a pattern finds, without articles and what is denied."""
    for match in pattern.finditer(text):
        group = next(name for name, found in match.groupdict().items() if found)
        letter, rest = match[group], text[match.end() : match.end() + 16]
        before = text[max(0, match.start(group) - 16) : match.start(group)]
        article = group in ("called", "chosen") and letter in "AI" and _ARTICLE.match(rest)
        if article and not _CORRECT.match(rest):
            continue
        if options.allow(letter) and not _DENIED.search(before):
            yield letter


def gold_letters(gold: str, options: Options, kind: GoldKind = "auto") -> str:
    """The letters that the reference answer stands for.

    Raises ValueError where it stands for none, or for another one as text than as index.
    """
    text = gold.strip()
    found = {k: v for k in GOLD_KINDS[1:] if (v := _gold_as(k, text, options))}
    if kind != "auto":
        if kind in found:
            return found[kind]
        raise ValueError(f"the reference answer {text[:60]!r} is no {kind} of an option")
    found.pop("number", None)  # counting from 1 has to be asked for
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    if not found:
        count = f" of the {len(options.letters)} options" if options.letters else ""
        raise ValueError(f"the reference answer {text[:60]!r} names none{count}")
    ways, first = ", ".join(f"{k} {v}" for k, v in found.items()), next(iter(found))
    raise ValueError(
        f"the reference answer {text[:60]!r} may be {ways}: say {{choice: {{gold: {first}}}}}"
    )


def _gold_as(kind: GoldKind, text: str, options: Options) -> str:
    if kind == "letter":
        return _gold_letter(text, options)
    if kind == "text":
        return options.named_by(text)
    if not re.fullmatch(r"\d{1,2}", text):
        return ""
    at = int(text) - (kind == "number")
    known = options.letters or tuple(string.ascii_uppercase)
    return known[at] if 0 <= at < len(known) else ""


def _gold_letter(text: str, options: Options) -> str:
    plain = re.sub(r"[\s\"']", "", text.strip("[]"))
    if re.fullmatch("[A-Z]{2,}", plain) and list(plain) == sorted(set(plain)):
        # `ACD`: several letters in order, which hardly any word is.
        return _if(plain, options)
    if re.fullmatch(r"\(?[A-Za-z]\)?[.:]?", plain):
        return _if(plain.strip("().:").upper(), options)
    if _SEVERAL.fullmatch(text.strip("[]").replace('"', "").replace("'", "").strip()):
        return _if(_joined(re.split(r"[\s,;/&+\"'\[\]()]+|\band\b|\bor\b", text)), options)
    if re.fullmatch(r"\(?[A-Z][).:]\s.*", text, re.DOTALL):
        return _if(text.strip("(")[0], options)
    return ""


class Choice(StagedGrader):
    """`correct` if the answer names exactly the options of the gold.

    With the options in `metadata["choices"]` the text of an option counts too, on both sides.
    `gold` says how the reference is written where it may be read in two ways: as `letter`, `text`,
    `index` (from 0, as MMLU's) or `number` (from 1).
    """

    name = "choice"
    version = "2"

    def __init__(self, *, gold: GoldKind = "auto") -> None:
        if gold not in GOLD_KINDS:
            raise UsageError(
                f"grader 'choice': gold = {gold!r}", f"it is one of {', '.join(GOLD_KINDS)}"
            )
        self.gold = gold

    def quick(self, problem: Problem, trace: Trace) -> Grade | Check:
        if problem.gold is None:
            return self.grade("ungraded", detail="the problem has no reference answer")
        try:
            options = Options.of(problem)
            wanted = gold_letters(problem.gold, options, self.gold)
        except (ValueError, TypeError) as error:
            return self.grade("error", detail=str(error)[:300])
        text, cut = answer_text(trace), was_cut(trace)
        chosen, said = chosen_in(text, options, cut=cut, several=len(wanted) > 1)
        if not chosen:
            grade = without_answer(trace, self.name, self.version)
            if grade.outcome != "unparsed" or not said:
                return grade
            return self.grade("unparsed", detail=f"no choice in {_short(said)}")
        if chosen == wanted:
            return self.grade("correct", chosen)
        hedged = len(chosen) > 1 and len(wanted) == 1
        detail = "several letters where one is right" if hedged else ""
        return self.grade("wrong", chosen, detail=detail)


def chosen_in(
    text: str, options: Options = NONE, *, cut: bool = False, several: bool = False
) -> tuple[str, str]:
    """The letters that a text without thinking chooses, and the answer they were read from."""
    answer = final_answer(text, cut=cut)
    if answer is None:
        said = text.strip()
        return ("", "") if cut else (spoken(text, options) or options.named_by(said), said)
    letters = letters_of(answer, options, several=several)
    by_text = options.named_by(answer)
    # A lone letter is a letter, even where another option's text is that letter.
    alone = len(normalise(answer)) == 1
    return (letters or by_text) if alone else (by_text or letters), answer


def _short(text: str, limit: int = 60) -> str:
    folded = " ".join(text.split())
    return repr(folded if len(folded) <= limit else folded[: limit - 1] + "…")
