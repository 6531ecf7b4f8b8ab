"""Published results beside our own, and what is known to differ between the two protocols.

The figures are in `distill/tasks/published.yaml`, each with its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import yaml

from distill.report.words import count, plural

SETTINGS = (("temperature", "temperature"), ("top_p", "top-p"), ("max_tokens", "token limit"))
"""Key of a source and of the evaluation's settings, and its name in a sentence."""
FALLBACK = "r1"
"""Whose students are shown where nobody published one of this base."""


@cache
def published() -> dict[str, Any]:
    """The file: `sources` by name, and `results`."""
    text = resources.files("distill.tasks").joinpath("published.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def beside(
    name: str, task: Mapping[str, Any], settings: Mapping[str, Any], recipe: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Published students on our task `name`: those of the same base, or else R1's own.

    `task` and `settings` are parts of results.json. Shares are between 0 and 1; `differs` names
    every part of the protocol that is not the same or that the source does not state.
    """
    base = _family(str((recipe.get("student") or {}).get("base") or ""))
    on_task = [row for row in published()["results"] if name in row["scores"]]
    same = [row for row in on_task if _family(row["base"]) == base]
    rows = []
    for row in same or [row for row in on_task if row["source"] == FALLBACK]:
        source, scores = published()["sources"][row["source"]], row["scores"][name]
        differs = [] if same else [f"base {row['base'].split('/')[-1]}"]
        differs += _differs(name, source, task, settings, recipe)
        rows.append(
            {
                "student": row["student"],
                "base": row["base"],
                "same_base": bool(same),
                "pass@1": scores["pass@1"] / 100,
                "cons@64": scores["cons@64"] / 100 if "cons@64" in scores else None,
                "differs": differs,
                "source": source["title"],
                "url": source["url"],
            }
        )
    return rows


def _family(base: str) -> str:
    """A base by the last part of its name, so that a local copy of it is recognised."""
    return base.rstrip("/").split("/")[-1].lower()


def _differs(
    name: str,
    source: Mapping[str, Any],
    task: Mapping[str, Any],
    settings: Mapping[str, Any],
    recipe: Mapping[str, Any],
) -> list[str]:
    theirs, found = source["tasks"].get(name) or {}, []
    ours = {**settings, "max_tokens": task.get("max_tokens") or settings.get("max_tokens")}
    for key, word in SETTINGS:
        if key not in source:
            found.append(f"{word} not stated")
        elif source[key] != ours.get(key):
            found.append(f"{word} {_plain(source[key])}, here {_plain(ours.get(key))}")
    if "samples" not in theirs:
        found.append("k not stated")
    elif theirs["samples"] != task.get("samples"):
        found.append(f"k = {theirs['samples']}, here {_plain(task.get('samples'))}")
    if "problems" in theirs and theirs["problems"] != task.get("problems"):
        found.append(f"{plural(theirs['problems'], 'problem')}, here {_plain(task['problems'])}")
    return found + _problems(name, theirs, recipe)


def _problems(name: str, theirs: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[str]:
    """Whether the problems are others: of another time, or from a place of the recipe's own."""
    asked = (recipe.get("evaluate") or {}).get("tasks") or []
    spec = next((t for t in asked if isinstance(t, Mapping) and t.get("name") == name), {})
    found = []
    if "since" in theirs:
        window = tuple(str(theirs[key]) for key in ("since", "until"))
        own = tuple(str(spec.get(key) or "any time") for key in ("since", "until"))
        if window != own:
            found.append(f"problems of {' to '.join(window)}, here {' to '.join(own)}")
    if any(spec.get(key) for key in ("file", "dataset", "task")):
        found.append("problems here from the recipe's own copy")
    return found


def _plain(value: Any) -> str:
    if value is None:
        return "not recorded"
    return count(value) if isinstance(value, int) and value >= 1000 else str(value)
