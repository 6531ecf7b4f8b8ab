"""How an engine is built from a recipe's teacher section: one rule for all engines."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from distill.errors import RecipeError

T = TypeVar("T")


def build(engine: type[T], arguments: Mapping[str, Any], options: Mapping[str, Any]) -> T:
    """`engine(**arguments, **options)`, refusing an option that the engine does not have."""
    known = [name for name in inspect.signature(engine).parameters if name not in arguments]
    for key in options:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            nearest = f"; did you mean '{close[0]}'?" if close else ""
            raise RecipeError(
                f"teacher.options: {engine.__name__} has no option '{key}'{nearest}",
                f"its options: {', '.join(known)}",
            )
    return engine(**arguments, **options)
