"""A recipe's filter list as callables: look-up, parameters, labels and versions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from distill.errors import DistillError, UsageError
from distill.filter import KNOWN
from distill.records import Grade, Problem, Trace
from distill.resolve import code_version, resolve
from distill.schema import PartSpec
from distill.thinking import sanitise

Item = tuple[Problem, Trace, Grade]
Call = Callable[[Problem, Trace, Grade], str | None]

MAX_REASON = 1000
"""Characters of a reason that are kept."""


@dataclass(frozen=True)
class Part:
    """One filter of a recipe, ready to be called. `label` is its name in verdicts and report."""

    label: str
    call: Call
    own: bool = False
    """True for a filter that is not one of ours: it may hang, or end its process."""

    @property
    def needs_corpus(self) -> bool:
        """True if it wants to see all traces before it judges the first."""
        return hasattr(self.call, "prepare")

    @property
    def sees_all(self) -> bool:
        """True if it is prepared with all traces, not only with those that reached it."""
        return bool(getattr(self.call, "sees_all", False))

    @property
    def has_state(self) -> bool:
        """True if it was shown something before it judges the first trace."""
        return self.needs_corpus or hasattr(self.call, "begin")

    @property
    def sketches(self) -> bool:
        """True if it compares sketches of traces, which are made where the traces are read."""
        return self.needs_corpus and hasattr(self.call, "sketch")

    @property
    def measures(self) -> bool:
        """True if it has numbers of each trace to tell."""
        return hasattr(self.call, "measure")

    def measure(self, item: Item) -> Mapping[str, float]:
        """The numbers of one trace, by name."""
        found: Mapping[str, float] = self.call.measure(*item[:2])  # type: ignore[attr-defined]
        return found

    def judge(self, item: Item) -> str | None:
        """None, or the reason. Raises TypeError for anything that is neither."""
        return _checked(self.call(*item))

    def judge_sketch(self, problem_id: str, index: int, sketch: bytes) -> str | None:
        """The same of a trace by its sketch."""
        return _checked(self.call.judge_sketch(problem_id, index, sketch))  # type: ignore[attr-defined]


def _checked(reason: object) -> str | None:
    if reason is None:
        return None
    if isinstance(reason, str):
        return sanitise(reason[:MAX_REASON])[0]
    raise TypeError(
        f"a filter returns None to keep a trace or a reason (str), not {type(reason).__name__}"
    )


def build(filters: Sequence[PartSpec], folder: Path) -> list[Part]:
    """The filters of a recipe in order; a name that is used again gets a number.

    A spec may name a function `(problem, trace, grade) -> str | None` (the recipe's parameters
    become keyword arguments), or a class or factory that returns such a callable. Raises
    UsageError for an unknown name or parameters that do not fit.
    """
    parts: list[Part] = []
    for spec in filters:
        used = sum(part.label.partition("#")[0] == spec.name for part in parts)
        label = f"{spec.name}#{used + 1}" if used else spec.name
        found = resolve(spec.name, KNOWN, what="filter", folder=folder)
        made = _with_params(found, spec.name, spec.params)
        parts.append(Part(label, made, spec.name not in KNOWN))
    return parts


def filters_identity(filters: Sequence[PartSpec], folder: Path) -> list[dict[str, Any]]:
    """Name, parameters and code version of each filter: their part of the step's identity.

    A class may say with a classmethod `identity(params)` what stands for its parameters: the hash
    of a file instead of its path.
    """
    identities = []
    for spec in filters:
        found = resolve(spec.name, KNOWN, what="filter", folder=folder)
        params = found.identity(spec.params) if hasattr(found, "identity") else dict(spec.params)
        identities.append({"name": spec.name, "params": params, "version": code_version(found)})
    return identities


def _with_params(found: Any, name: str, params: Mapping[str, Any]) -> Call:
    if not callable(found):
        raise UsageError(f"filter '{name}' is {type(found).__name__}, not something to call")
    if _judges(found):
        _check_keywords(found, name, params)
        # partial() would hide `prepare` and `begin` of an object.
        return partial(found, **params) if params else found
    try:
        made = found(**params)
    except DistillError:
        raise
    except TypeError as error:
        raise UsageError(
            f"filter '{name}' does not take {dict(params) or 'no parameters'}: {error}",
            f"its parameters: {', '.join(_keywords(found)) or 'none'}",
        ) from error
    if not callable(made):
        raise UsageError(
            f"filter '{name}' made {type(made).__name__}, which cannot be called",
            "a class needs __call__(self, problem, trace, grade), a factory returns a function",
        )
    return made  # type: ignore[no-any-return]


def _judges(found: Any) -> bool:
    """True for a function that takes a problem, a trace and a grade itself."""
    if inspect.isclass(found):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(found).parameters.values()
    return sum(p.kind in kinds and p.default is p.empty for p in parameters) == 3


def _keywords(found: Any) -> list[str]:
    return [name for name in inspect.signature(found).parameters if name != "self"]


def _check_keywords(found: Any, name: str, params: Mapping[str, Any]) -> None:
    known = _keywords(found)[3:]
    unknown = [key for key in params if key not in known]
    if unknown:
        raise UsageError(
            f"filter '{name}' has no parameter '{unknown[0]}'",
            f"its parameters: {', '.join(known) or 'none'}",
        )
