"""How an engine is built from a recipe's teacher section: one rule for all engines."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from distill.errors import RecipeError

T = TypeVar("T")


def build(engine: type[T], arguments: Mapping[str, Any], options: Mapping[str, Any]) -> T:
    """`engine(**arguments, **options)`, refusing an option that the engine does not have.

    An engine that takes any keyword (`**kwargs`) has to look at them itself.
    """
    parameters = inspect.signature(engine).parameters
    known = [name for name in parameters if name not in arguments]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in options:
        if key in arguments:
            raise RecipeError(f"teacher.options.{key} is no option", f"set teacher.{key} instead")
        if key not in known and not open_ended:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            nearest = f"; did you mean '{close[0]}'?" if close else ""
            raise RecipeError(
                f"teacher.options: {engine.__name__} has no option '{key}'{nearest}",
                f"its options: {', '.join(known)}",
            )
    return engine(**arguments, **options)
