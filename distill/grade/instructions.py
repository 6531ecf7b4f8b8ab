"""Instruction following, by the checkers of IFEval as lm-eval holds them (arXiv 2311.07911).

lm-eval downloads NLTK's sentence splitter when its checkers are imported; here nothing is ever
downloaded. Two of the 25 checkers need that data, the others work without it.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata, util
from typing import Any, Literal

from distill.errors import MissingExtra, UsageError
from distill.grade.base import Check, StagedGrader, version_of
from distill.grade.extract import answer_text, was_cut, without_answer
from distill.records import Grade, Problem, Trace

KEY = "instructions"
"""Where a problem's metadata holds `[{id, kwargs}, ...]`."""

COLUMNS = ("instruction_id_list", "kwargs")
"""The same in two columns, as google/IFEval has it."""

EXTRA = "ifeval"
PACKAGES = ("langdetect", "immutabledict", "nltk")
PUNKT = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
"""The instructions whose checkers need NLTK's punkt_tab."""

GET_PUNKT = "python -m nltk.downloader punkt_tab"
Instruction = tuple[str, dict[str, Any]]
_REGISTRY = "lm_eval.tasks.ifeval.instructions_registry"


def instructions_of(problem: Problem) -> list[Instruction]:
    """The instructions that a problem carries, as (id, arguments); none for an empty list.

    Arguments without a value are left out, as data sets fill them up with nulls. Raises ValueError
    for a form that is not understood.
    """
    held: Any = problem.metadata.get(KEY)
    if not held and COLUMNS[0] in problem.metadata:
        ids, kwargs = (_loaded(problem.metadata.get(name) or []) for name in COLUMNS)
        if len(ids) != len(kwargs):
            raise ValueError(f"{len(ids)} instructions with {len(kwargs)} kwargs")
        held = [{"id": one, "kwargs": given} for one, given in zip(ids, kwargs, strict=True)]
    held = _loaded(held or [])
    found = []
    for item in held if isinstance(held, Sequence) else [held]:
        if not isinstance(item, Mapping) or not isinstance(item.get("id"), str):
            raise ValueError(f"an instruction is {{id, kwargs}}, found {item!r:.80}")
        given = _loaded(item.get("kwargs") or {})
        if not isinstance(given, Mapping):
            raise ValueError(f"kwargs of {item['id']!r} are {given!r:.80}, expected an object")
        found.append((item["id"], {k: v for k, v in given.items() if v is not None}))
    return found


def _loaded(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


class Instructions(StagedGrader):
    """`correct` if all of the problem's instructions are followed; `score` is the share that is.

    `mode: loose` also accepts a response whose first or last line, or whose asterisks, are in the
    way, as IFEval's second measure does. A response that was cut off is `truncated`.
    """

    name = KEY
    code = "1"

    def __init__(self, *, mode: Literal["strict", "loose"] = "strict") -> None:
        if mode not in ("strict", "loose"):
            raise UsageError(f"grader '{KEY}': mode = {mode!r}", "it is strict or loose")
        self.mode = mode
        self.version = ", ".join([self.code, *_versions()])

    def ready(self, problems: Iterable[Problem]) -> None:
        """Raises UsageError where what these problems need is not installed."""
        asked = {one for problem in problems for one in _ids(problem)}
        if asked:
            _packages()
        if not asked.isdisjoint(PUNKT) and not has_punkt():
            raise UsageError(
                f"instructions like {sorted(asked & set(PUNKT))[0]!r} need NLTK's punkt_tab, "
                "which is not there",
                f"get it once: {GET_PUNKT} (NLTK_DATA says where it is, if not at home)",
            )

    def warm(self, part: str) -> None:
        _checkers()

    def quick(self, problem: Problem, trace: Trace) -> Grade | Check:
        try:
            asked = instructions_of(problem)
        except (ValueError, TypeError) as error:
            return self.grade("error", detail=f"metadata.{KEY}: {error}"[:300])
        if not asked:
            return self.grade("ungraded", detail=f"the problem has no metadata.{KEY}")
        text = answer_text(trace)
        if not text:
            return without_answer(trace, self.name, self.version)
        if was_cut(trace):
            return self.grade("truncated", detail="the response was cut off at the token limit")
        args = (asked, problem.question, text)
        return Check(args, hashlib.sha256(repr(args).encode()).digest())

    def check(self, *args: Any) -> Grade:
        asked, prompt, text = args
        missed = []
        for one, given in asked:
            try:
                followed = self.followed(one, given, prompt, text)
            except LookupError:
                detail = f"instruction {one!r} needs NLTK's punkt_tab: {GET_PUNKT}"
                return self.grade("error", detail=detail)
            except (ValueError, TypeError, UsageError) as error:
                return self.grade("error", detail=f"instruction {one!r}: {error}"[:300])
            if not followed:
                missed.append(f"{one} {given}" if given else one)
        share = 1 - len(missed) / len(asked)
        if not missed:
            return self.grade("correct", score=1.0, detail=f"all {len(asked)} followed")
        told = "; ".join(one if len(one) <= 80 else one[:79] + "…" for one in missed)
        detail = f"{len(asked) - len(missed)} of {len(asked)} followed; not: {told}"[:400]
        return self.grade("wrong", score=share, detail=detail)

    def followed(self, one: str, given: Mapping[str, Any], prompt: str, text: str) -> bool:
        """Whether a response follows one instruction. Raises ValueError for what cannot be checked.

        A checker that lacks an argument would draw one at random, so that is refused.
        """
        utils, known = _checkers()
        if one not in known:
            close = difflib.get_close_matches(one, known, n=1)
            raise ValueError(f"unknown{f', did you mean {close[0]!r}?' if close else ''}")
        lacking = [k for k in known[one](one).get_instruction_args_keys() if not given.get(k)]
        if lacking:
            raise ValueError(f"lacks {', '.join(lacking)}")
        told = utils.InputExample(
            key=0, instruction_id_list=[one], prompt=prompt, kwargs=[dict(given)]
        )
        strict = self.mode == "strict"
        follows = (
            utils.test_instruction_following_strict
            if strict
            else utils.test_instruction_following_loose
        )
        return bool(follows(told, text).follow_all_instructions)


def _ids(problem: Problem) -> list[str]:
    try:
        return [one for one, _ in instructions_of(problem)]
    except (ValueError, TypeError):
        return []


def has_punkt() -> bool:
    """Whether NLTK finds its sentence splitter, without importing NLTK's own loaders."""
    from nltk import data

    try:
        data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return False
    return True


def _packages() -> None:
    missing = [name for name in PACKAGES if util.find_spec(name) is None]
    if missing:
        raise MissingExtra(missing[0], EXTRA, f"grader '{KEY}'")


def _checkers() -> tuple[Any, Mapping[str, Any]]:
    """lm-eval's rules and its table of checkers, imported without a download."""
    import importlib

    _packages()
    with _no_download():
        registry = importlib.import_module(_REGISTRY)
        utils = importlib.import_module("lm_eval.tasks.ifeval.utils")
        import langdetect
    # Its profiles are sampled: without a seed a short text has another language each time.
    langdetect.DetectorFactory.seed = 0
    return utils, registry.INSTRUCTION_DICT


@contextlib.contextmanager
def _no_download() -> Iterator[None]:
    # lm-eval downloads NLTK's data on import in the process of rank 0, and only there.
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = before


def _versions() -> list[str]:
    found = []
    for package in ("lm_eval", "langdetect", "nltk"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(version_of(package))
    return found
