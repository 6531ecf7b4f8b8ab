"""reasoning-gym problems, judged by their task's own scorer.

`correct` means a score of 1.0: scorers give partial credit for near misses, which is kept in
`score` and is no proof of a correct chain of thought.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from distill.grade.base import Check, StagedGrader, version_of
from distill.grade.extract import answer_text, final_answer, was_cut, without_answer
from distill.records import Grade, Problem, Trace

KEY = GYM = "reasoning_gym"
"""Where a problem's metadata holds `{task, config, entry}`."""

TESTS, SCHEMA = "tests", "schema"
INSTRUCTIONS = ("instructions", "instruction_id_list")

CARRIED = (GYM, TESTS, *INSTRUCTIONS, SCHEMA)
"""Keys of a problem's metadata, each of which is enough for a rule to grade answers to it.

Choices are not: without a gold answer nobody knows the right one.
"""

_TAGS = ("__tuple__", "__set__", "__dict__", "__fraction__")
_scorers: dict[tuple[str, str], Any] = {}


def gradable(problem: Problem) -> bool:
    """Whether a rule can grade answers to it: by a reference answer, or by what it carries."""
    return problem.gold is not None or bool(carried(problem))


def carried(problem: Problem) -> str:
    """The first key of CARRIED in its metadata, in a form that a grader may read; '' for none.

    Text under such a name ("CREATE TABLE ..." as a schema, "Be brief." as instructions) is
    something else.
    """
    for key in CARRIED:
        held = problem.metadata.get(key)
        if isinstance(held, str) and key in (SCHEMA, *INSTRUCTIONS):
            held = held.lstrip().startswith("{" if key == SCHEMA else "[")
        if held:
            return key
    return ""


def pack(value: Any) -> Any:
    """A JSON-safe copy of an entry; tuples, sets, fractions and non-text keys are tagged.

    Some scorers (arc_agi, rearc) compare tuples, which JSON would turn into lists, and some entries
    (gsm_symbolic) hold fractions. Raises TypeError for anything else that JSON cannot hold.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Fraction):
        return {"__fraction__": str(value)}
    if isinstance(value, tuple):
        return {"__tuple__": [pack(v) for v in value]}
    if isinstance(value, set | frozenset):
        return {"__set__": sorted((pack(v) for v in value), key=json.dumps)}
    if isinstance(value, list):
        return [pack(v) for v in value]
    if isinstance(value, Mapping):
        if all(isinstance(k, str) for k in value) and not set(_TAGS) & set(value):
            return {k: pack(v) for k, v in value.items()}
        return {"__dict__": [[pack(k), pack(v)] for k, v in value.items()]}
    if hasattr(value, "tolist"):
        return pack(value.tolist())
    raise TypeError(f"cannot store {type(value).__name__} in JSON")


def unpack(value: Any) -> Any:
    """The inverse of `pack`."""
    if isinstance(value, list):
        return [unpack(v) for v in value]
    if isinstance(value, Mapping):
        if len(value) == 1:
            ((tag, held),) = value.items()
            if tag == "__tuple__":
                return tuple(unpack(v) for v in held)
            if tag == "__set__":
                return {unpack(v) for v in held}
            if tag == "__fraction__":
                return Fraction(held)
            if tag == "__dict__":
                return {unpack(k): unpack(v) for k, v in held}
        return {k: unpack(v) for k, v in value.items()}
    return value


def scorer(task: str, config: Mapping[str, Any]) -> Any:
    """The task's data set object, of which only `score_answer` is used; made once per task."""
    key = (task, json.dumps(config, sort_keys=True, default=str))
    if key not in _scorers:
        import reasoning_gym

        _scorers[key] = reasoning_gym.create_dataset(task, **{**config, "size": 1, "seed": 0})
    return _scorers[key]


def readings(answer: str) -> list[str]:
    r"""The answer as written, and without the LaTeX that `\boxed{}` tempts models to add."""
    plain = re.sub(r"\\(?:text|mathrm|texttt|textbf)\s{0,8}\{([^{}]*)\}", r"\1", answer)
    plain = re.sub(r"\\([_{}%#&$])", r"\1", plain)
    plain = re.sub(r"\\[,;!]|\\ ", " ", plain).strip().strip("$`").strip()
    numeric = re.sub(r"(?<=\d),(?=\d{3}\b)", "", plain)
    return list(dict.fromkeys((answer, plain, numeric)))


class ReasoningGym(StagedGrader):
    """The best score of the answer's readings; 1.0 is `correct`, anything less `wrong`."""

    name = "reasoning_gym"

    def __init__(self) -> None:
        self.version = f"1, {version_of('reasoning-gym')}"

    def warm(self, part: str) -> None:
        import reasoning_gym  # noqa: F401

    def quick(self, problem: Problem, trace: Trace) -> Grade | Check:
        held = problem.metadata.get(KEY)
        if not held:
            return self.grade("ungraded", detail="not a reasoning-gym problem")
        text = answer_text(trace)
        answer = final_answer(text, cut=was_cut(trace))
        if answer is None and (was_cut(trace) or not text):
            return without_answer(trace, self.name, self.version)
        task, config, entry = held["task"], held.get("config") or {}, held["entry"]
        judged = text if answer is None else answer
        args = (task, config, entry, judged, answer is not None)
        return Check(args, (problem.id, judged, answer is not None))

    def check(self, *args: Any) -> Grade:
        task, config, entry, answer, marked = args
        task_scorer, whole = scorer(task, config), unpack(entry)
        scores = [float(task_scorer.score_answer(text, whole)) for text in readings(answer)]
        score = min(1.0, max(0.0, *scores))
        if score == 1.0:
            return self.grade("correct", answer, score=score)
        if not marked:
            # The whole text was tried for want of a marked answer: nothing was found to be wrong.
            return self.grade("unparsed", None, score=score, detail="no final answer found")
        return self.grade("wrong", answer, score=score)
