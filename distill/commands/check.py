"""`distill check RECIPE`: what the recipe needs and whether it is here; offline, without torch.

One line a need. Exit code 0 if everything is here, 1 if something is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from distill import interpreters, models
from distill.commands.common import load_recipe
from distill.errors import DistillError, UsageError
from distill.names import check_name, named_parts
from distill.recipe import Recipe

EXTRAS = {"vllm": ("vllm", "vllm"), "bitsandbytes": ("bitsandbytes", "qlora")}
CORE = ("torch", "transformers", "trl", "peft", "lm_eval", "math_verify", "reasoning_gym")


@dataclass(frozen=True)
class Need:
    """Something the recipe needs: whether it is here, and otherwise what to do."""

    what: str
    found: bool
    detail: str
    way_out: str = ""


def main(verb: str, options: argparse.Namespace) -> int:
    """Print every need; the missing ones with the way out."""
    recipe = load_recipe(options)
    needs = list(check(recipe))
    if options.json:
        print(json.dumps([asdict(need) for need in needs], indent=1))
    else:
        for need in needs:
            print(f"{'ok     ' if need.found else 'MISSING'} {need.what:<10} {need.detail}")
            if not need.found and need.way_out:
                print(f"{'':<18} {need.way_out}")
    return 0 if all(need.found for need in needs) else 1


def check(recipe: Recipe) -> Iterator[Need]:
    """Everything that a run of the recipe would look for, in the order in which it would."""
    yield from _packages(recipe)
    yield from _interpreters(recipe)
    yield from _data(recipe)
    if recipe.traces is None:
        yield from _teacher(recipe)
    yield from _student(recipe)
    yield from _parts(recipe)
    yield from _sections(recipe)


def _packages(recipe: Recipe) -> Iterator[Need]:
    missing = [name for name in CORE if importlib.util.find_spec(name) is None]
    yield Need("packages", not missing, ", ".join(missing or CORE), "pip install distill")
    wanted = []
    if recipe.student.method == "qlora":
        wanted.append("bitsandbytes")
    if _vllm_here(recipe):
        wanted.append("vllm")
    for package in wanted:
        extra = EXTRAS[package][1]
        there = importlib.util.find_spec(package) is not None
        yield Need("extra", there, package, f"pip install 'distill[{extra}]'")


def _interpreters(recipe: Recipe) -> Iterator[Need]:
    """Whether each Python that the recipe names can run its step."""
    for stage, python in recipe.interpreters.items():
        try:
            interpreters.check(recipe, [stage])
        except UsageError as error:
            yield Need("python", False, f"{stage}: {error.message}", error.hint)
        else:
            yield Need("python", True, f"{stage}: {python}")


def _vllm_here(recipe: Recipe) -> bool:
    """Whether a step needs vLLM in this interpreter, and not in one that the recipe names."""
    asked = []
    spec, evaluate = recipe.teacher, recipe.evaluate
    if recipe.traces is None:
        engine = spec.engine or (models.teacher_entry(spec.model).engine if spec.model else "")
        asked.append(("sample", engine, "python" in spec.options and spec.replicas))
    asked.append(("evaluate", evaluate.engine, "python" in evaluate.options and evaluate.replicas))
    return any(
        engine == "vllm" and stage not in recipe.interpreters and not elsewhere
        for stage, engine, elsewhere in asked
    )


def _data(recipe: Recipe) -> Iterator[Need]:
    from distill.tables import fingerprint

    sources = recipe.problems.sources if recipe.traces is None else [recipe.traces]
    for source in sources:
        name = source.dataset or source.file
        if not name:
            continue
        try:
            found = fingerprint(
                dataset=source.dataset,
                subset=source.subset,
                revision=source.revision,
                file=source.file,
                folder=recipe.folder,
            )
        except DistillError as error:
            yield Need("data", False, error.message, error.hint)
        else:
            yield Need("data", True, f"{name} {found}")


def _teacher(recipe: Recipe) -> Iterator[Need]:
    spec = recipe.teacher
    try:
        model = models.local(spec.model, recipe.folder)
        entry = models.teacher_entry(model) if model else None
    except DistillError as error:
        yield Need("teacher", False, error.message, error.hint)
        return
    engine = spec.engine or (entry.engine if entry else "")
    if engine == "openai":
        known = spec.base_urls or list(entry.base_urls if entry else ())
        there = bool(known)
        urls = ", ".join(known)
        yield Need(
            "teacher",
            there,
            f"{spec.model} at {urls or 'no address'}",
            "teacher.base_urls=[http://HOST:8000/v1]",
        )
        key = bool(os.environ.get(spec.api_key_env))
        state = "is set" if key else "is not set (local servers need none)"
        yield Need("key", True, f"{spec.api_key_env} {state}")
    elif entry is not None and engine in ("transformers", "vllm"):
        yield _model("teacher", str(entry.model), spec.revision)


def _student(recipe: Recipe) -> Iterator[Need]:
    if not recipe.student.base:
        return
    try:
        model = models.student_entry(models.local(recipe.student.base, recipe.folder)).path
    except DistillError as error:
        yield Need("student", False, error.message, error.hint)
        return
    yield _model("student", str(model), recipe.student.revision)


def _model(what: str, model: str, revision: str | None) -> Need:
    cache = Path(os.environ.get("DISTILL_RUNS") or "runs") / "hashes.json"
    try:
        pinned = models.fingerprint(model, revision, cache)
    except DistillError as error:
        return Need(what, False, error.message, error.hint)
    name = Path(model).name if Path(model).is_dir() else model
    return Need(what, True, f"{name} {pinned[:23]}")


def _parts(recipe: Recipe) -> Iterator[Need]:
    for what, known, name in named_parts(recipe):
        try:
            check_name(recipe, what, known, name)
        except DistillError as error:
            yield Need(what, False, error.message, error.hint)
        else:
            if name not in known:
                yield Need(what, True, name)


def _sections(recipe: Recipe) -> Iterator[Need]:
    from distill.agreement import check_agreement
    from distill.grade.judge import EMBEDDED, JudgeSpec, engine_of
    from distill.grade.parts import judges_of

    try:
        check_agreement(recipe)
        specs = [JudgeSpec.of(part) for part in judges_of(recipe.grading)]
    except DistillError as error:
        yield Need("recipe", False, error.message, error.hint)
        return
    for spec in specs:
        if engine_of(spec) in EMBEDDED:
            entry = models.teacher_entry(models.local(spec.model, recipe.folder))
            yield _model("judge", str(entry.model), spec.revision)
        else:
            urls = ", ".join(spec.base_urls)
            yield Need("judge", True, f"{spec.model or spec.engine} at {urls or 'its own address'}")
