"""The base of all recipe sections: what is refused, and what counts for a step's identity."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

RUNTIME = "runtime"
"""Marks a field that cannot change the result: it stays out of a step's identity."""


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values are checked on assignment too."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, validate_default=True)

    def identity(self) -> dict[str, Any]:
        """This section without its run-time fields: what a step's identity is made of."""
        plain: dict[str, Any] = {}
        for name, info in type(self).model_fields.items():
            if RUNTIME not in info.metadata:
                plain[name] = _identity_of(getattr(self, name))
        return plain


def _identity_of(value: Any) -> Any:
    if isinstance(value, Section):
        return value.identity()
    if isinstance(value, list | tuple):
        return [_identity_of(item) for item in value]
    if isinstance(value, dict):
        return {key: _identity_of(item) for key, item in value.items()}
    return value
