"""What is known about models, read from catalog.yaml; and which engines there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from distill.thinking import DEFAULT_TAGS, ThinkTags

engines: dict[str, str] = {
    "transformers": "distill.teachers.transformers:TransformersTeacher",
    "vllm": "distill.teachers.vllm:VLLMTeacher",
    "openai": "distill.teachers.openai:OpenAITeacher",
    "replay": "distill.teachers.replay:ReplayTeacher",
}
"""Engine name -> where its class is, for `distill.resolve.resolve`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Facts about one model; None or "unknown" where they are not known.

    `model` is a hub name or an absolute folder, `params` and `active` are in billions,
    `context` and `mean_tokens` (length of a trace, for plans) in tokens, `price_in` and `price_out`
    in money per million tokens. `weight_bytes` are the bytes of a weight as published, `cache` is
    what a token leaves in the KV cache (see catalog.yaml).
    """

    name: str
    model: str
    engine: str = "transformers"
    tags: ThinkTags = DEFAULT_TAGS
    prompt_opens: bool | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    context: int | None = None
    mean_tokens: float | None = None
    params: float | None = None
    active: float | None = None
    weight_bytes: float = 2
    cache: Mapping[str, int] = field(default_factory=dict)
    licence: str = "unknown"
    allows_training: bool | str = "unknown"
    capabilities: Mapping[str, bool] = field(default_factory=dict)
    base_urls: tuple[str, ...] = ()
    price_in: float | None = None
    price_out: float | None = None
    note: str = ""
    known: bool = True


def find(name: str) -> Entry:
    """The entry of a catalog name or of its hub name.

    A model that is not in the catalog gets an entry with the usual tags, the transformers
    engine and `known` false.
    """
    entries = load()
    if name in entries:
        return entries[name]
    for entry in entries.values():
        if entry.model == name:
            return entry
    return Entry(name=name, model=name, known=False)


@cache
def load() -> Mapping[str, Entry]:
    """All entries of catalog.yaml by name."""
    import yaml

    path = Path(__file__).with_name("catalog.yaml")
    rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: _entry(name, row, path.parent) for name, row in rows.items()}


def _entry(name: str, row: Mapping[str, Any], folder: Path) -> Entry:
    facts = dict(row)
    if facts.pop("folder", False):
        facts["model"] = str(folder / facts["model"])
    if "tags" in facts:
        facts["tags"] = ThinkTags(**facts["tags"])
    facts["base_urls"] = tuple(facts.get("base_urls", ()))
    return Entry(name=name, **facts)
