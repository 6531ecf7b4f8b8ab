"""The models of a plan, offline: from the catalogs, a folder's config.json, or the hub's cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill import models
from distill.errors import DistillError
from distill.recipe import Recipe

QUANTISED = {"fp8": 1.0, "int8": 1.0, "awq": 0.55, "gptq": 0.55, "bitsandbytes": 0.55, "nf4": 0.55}
"""Bytes of a weight by what `teacher.quantization` begins with: 4 bits with their scales."""


@dataclass(frozen=True, slots=True)
class Student:
    """The base that is trained. `arch` is a `distill.students.catalog.Arch`, or None with `why`."""

    name: str
    arch: Any = None
    why: str = ""

    @property
    def params(self) -> int | None:
        """Its weights, by number."""
        return int(self.arch.params) if self.arch is not None else None


@dataclass(frozen=True, slots=True)
class Served:
    """What serving a model takes: numbers of parameters, bytes of all weights, and bytes that a
    token leaves in the KV cache (bf16). `cache_shares` GPUs at most can divide that cache."""

    name: str
    params: float
    active: float
    weights: float
    cache: float
    cache_shares: int


def student(recipe: Recipe) -> Student:
    """The base of a recipe; what is unknown says what to do about it. Never asks the hub."""
    base = recipe.student.base
    if not base:
        return Student("(object)", why="the student is an object of yours: its size is unknown")
    try:
        entry = _entry(recipe)
    except DistillError as error:
        return Student(base, why=f"{error.message}; {error.hint}" if error.hint else error.message)
    if entry is None:
        return Student(base, why=_fetch(base))
    if entry.arch is None:
        return Student(base, why=f"the config.json of {base} has an architecture unknown here")
    return Student(base, entry.arch)


def new_tokens(recipe: Recipe) -> int:
    """Rows of the embedding that LoRA has to train: tokens that the base never saw."""
    added = 2 if recipe.student.think_tokens == "tokens" else 0
    try:
        entry = _entry(recipe) if recipe.student.base else None
    except DistillError:
        entry = None
    return added + len(entry.untrained if entry is not None else ())


def _entry(recipe: Recipe) -> Any:
    """The base's entry of the students' catalog; None for a model that is not on this machine."""
    name = models.local(recipe.student.base, recipe.folder)
    if name not in models.of_students("catalog:bases")() and not Path(name).is_dir():
        cached = _cached(name, recipe.student.revision)
        if cached is None:
            return None
        name = cached
    return models.student_entry(name)


def teacher(recipe: Recipe) -> Served | str:
    """What serving the recipe's teacher takes, or in words why that is unknown."""
    spec = recipe.teacher
    if not spec.model:
        return "the teacher is not a model of the catalog: its speed is unknown"
    if spec.engine == "replay":
        return "recorded traces are replayed: nothing is sampled"
    name = models.local(spec.model, recipe.folder)
    entry = models.teacher_entry(name)
    width = next(
        (n for word, n in QUANTISED.items() if (spec.quantization or "").lower().startswith(word)),
        entry.weight_bytes,
    )
    if entry.params and entry.cache:
        params = entry.params * 1e9
        per_token, shares = _cache_of(entry.cache)
        active = (entry.active or entry.params) * 1e9
        return Served(spec.model, params, active, params * width, per_token, shares)
    if "/" not in entry.model and not Path(entry.model).is_dir():
        return f"{spec.model} is served by its maker: its speed is unknown"
    folder = entry.model if Path(entry.model).is_dir() else _cached(entry.model, spec.revision)
    if folder is None:
        return f"the size of {spec.model} is not in the catalog; {_fetch(entry.model)}"
    try:
        arch = models.student_entry(folder).arch
    except DistillError as error:
        return error.message
    if arch is None:
        return f"the config.json of {spec.model} has an architecture unknown here"
    return served(spec.model, arch, width)


def served(name: str, arch: Any, weight_bytes: float = 2) -> Served:
    """What serving a dense model takes."""
    heads = {"layers": arch.layers, "kv_heads": arch.kv_heads}
    per_token, shares = _cache_of({**heads, "head_dim": arch.head_dim or arch.hidden // arch.heads})
    params = float(arch.params)
    return Served(name, params, params, params * weight_bytes, per_token, shares)


def _cache_of(shape: Mapping[str, int]) -> tuple[float, int]:
    """Bytes of a token in the KV cache, and how many GPUs can divide them.

    Latent attention keeps one vector for all heads, of which every GPU needs a copy
    (DeepSeek-V2, arXiv 2405.04434, 2.1).
    """
    if "latent" in shape:
        return 2.0 * shape["layers"] * shape["latent"], 1
    return 2.0 * 2 * shape["layers"] * shape["kv_heads"] * shape["head_dim"], shape["kv_heads"]


def _cached(model: str, revision: str | None) -> str | None:
    """The folder of the local hub cache with this model's config.json."""
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json", revision=revision)
    except HFValidationError:
        return None
    return str(Path(found).parent) if isinstance(found, str) else None


def _fetch(model: str) -> str:
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        return f"a plan needs its config.json (a few kB): hf download {model} config.json"
    return f"no folder with a config.json at '{model}'"
