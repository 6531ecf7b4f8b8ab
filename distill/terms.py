"""What licences and terms say about training on a teacher's outputs: facts with their source.

No legal advice: this repeats what the catalogs and the licences named here say, so that nobody
finds out after the samples were paid for.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping
from typing import Any

from distill import models
from distill.errors import ModelError

HUB_LICENCES = {
    *("apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "llama3.1", "llama3.2", "llama3.3")
}
"""Words of the hub's `license` field that the catalogs' licences map to."""

_LLAMA = re.compile(r"\bllama[ -]?(3\.[1-3])\b", re.IGNORECASE)
LLAMA_SOURCE = "Llama {version} Community License Agreement, section 1.b, https://www.llama.com/"


@dataclasses.dataclass(frozen=True)
class Terms:
    """What is known about one model's part in a student. `allows_training` is None for a base."""

    model: str
    role: str
    licence: str
    allows_training: bool | str | None = None

    @property
    def llama(self) -> str:
        """The version of a Llama licence (3.1 to 3.3), or empty."""
        found = _LLAMA.search(self.licence)
        return found.group(1) if found else ""


def terms_of(recipe: Mapping[str, Any]) -> list[Terms]:
    """The terms of a recipe's teacher (or the model that published its traces) and of its base."""
    found = []
    teacher = (recipe.get("teacher") or {}).get("model") or ""
    published = recipe.get("traces") or {}
    if published:
        teacher = published.get("teacher") or ""
    if teacher:
        entry = models.teacher_entry(str(teacher))
        found.append(Terms(str(teacher), "teacher", entry.licence, entry.allows_training))
    elif published:
        found.append(Terms("an unnamed teacher", "teacher", "unknown", "unknown"))
    if base := (recipe.get("student") or {}).get("base"):
        found.append(Terms(str(base), "base", base_licence(str(base)) or "unknown"))
    return found


def base_licence(base: str) -> str:
    """The licence of a base's weights where the catalog knows it, else empty."""
    try:
        return str(getattr(models.student_entry(base), "licence", "") or "")
    except ModelError:
        return ""


def hub_licence(licence: str) -> str:
    """The hub's word for a licence, where it has one that we know, else empty."""
    word = licence.lower()
    if version := _LLAMA.search(licence):
        return f"llama{version.group(1)}" if "mit over" not in word else ""
    return word if word in HUB_LICENCES else ""


def warnings(recipe: Mapping[str, Any]) -> list[str]:
    """Where a teacher's terms forbid training on its outputs, or are not known to allow it."""
    found = []
    for terms in terms_of(recipe):
        if terms.allows_training is False:
            found.append(
                f"the terms of {terms.model} ({terms.licence}) forbid training other models on its "
                "outputs, as far as the catalog knows"
            )
        elif terms.role == "teacher" and terms.allows_training is not True:
            found.append(
                f"whether the terms of {terms.model} ({terms.licence}) allow training other models "
                "on its outputs is not known here: read them before you train or publish"
            )
    return found


def duties(recipe: Mapping[str, Any]) -> list[str]:
    """What a licence of teacher or base asks of a student that is given away."""
    found = []
    for terms in terms_of(recipe):
        if not terms.llama:
            continue
        source = LLAMA_SOURCE.format(version=terms.llama)
        found.append(
            f"{terms.model} ({terms.role}) is under the Llama {terms.llama} Community License. "
            "Of a model made of it or of its outputs and given away, it asks: a name that begins "
            'with "Llama"; a copy of the licence with it; "Built with Llama" shown prominently; '
            f'and a Notice file with the text "Llama {terms.llama} is licensed under the Llama '
            f"{terms.llama} Community License, Copyright © Meta Platforms, Inc. All Rights "
            f'Reserved." ({source})'
        )
    return found


def needs_llama_name(recipe: Mapping[str, Any]) -> bool:
    """Whether a licence asks that the student's name begins with Llama."""
    return any(terms.llama for terms in terms_of(recipe))


def warn(recipe: Any) -> None:
    """Print `warnings` of a Recipe to stderr; called before anything is paid for."""
    for line in warnings(recipe.model_dump(mode="json")):
        print(f"warning: {line}", file=sys.stderr)
