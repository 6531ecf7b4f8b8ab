"""What runs in a child process: build the parts that a payload names, then do one arrow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill import models
from distill.errors import UsageError
from distill.recipe import Recipe
from distill.resolve import resolve
from distill.schema import PartSpec

if TYPE_CHECKING:
    from distill.accept import Acceptance

TRAINERS = {"sft": "distill.students.sft:SFT"}


def engines() -> dict[str, str]:
    """Engine name -> where its teacher class is."""
    return dict(resolve("distill.teachers.catalog:engines", {}, what="catalog"))


def build_teacher(recipe: Recipe, folder: Path) -> Any:
    """The teacher that the recipe names: one of ours by its spec, a user's by its options."""
    spec = recipe.teacher
    known = engines()
    engine = spec.engine or str(models.teacher_entry(spec.model).engine)
    kind = resolve(engine, known, what="teacher engine", folder=folder)
    if hasattr(kind, "from_spec"):
        plain = spec.model_dump(mode="json")
        plain["timeout_s"] = recipe.sampling.timeout_s
        plain["silence_s"] = recipe.sampling.silence_s
        plain["model"] = models.local(spec.model, folder)
        plain["folder"] = str(folder)
        return kind.from_spec(plain)
    try:
        return kind(**spec.options)
    except TypeError as error:
        raise UsageError(
            f"teacher '{engine}' cannot be made with the options {spec.options}: {error}"
        ) from error


def build_acceptance(recipe: Recipe, folder: Path) -> Acceptance | None:
    """The recipe's graders and filters for traces that arrive; None where n is fixed."""
    if recipe.sampling.want is None:
        return None
    from distill.accept import Acceptance

    return Acceptance(recipe.grading, filters_of(recipe, folder), folder)


def filters_of(recipe: Recipe, folder: Path) -> list[PartSpec]:
    """The recipe's filters, told what they need of its other sections.

    The student's tokenizer is found for those that count with it; `difficulty` is told how the
    problems were sampled, because correct traces out of all are too many where sampling stopped
    at enough of them.
    """
    from distill.filter.length import with_tokenizers

    def base() -> str:
        if not recipe.student.base:
            raise UsageError(
                f"recipe '{recipe.name}' has a filter that counts with the tokenizer of the "
                "student, and names no student.base"
            )
        return str(models.student_entry(models.local(recipe.student.base, folder)).path)

    told = with_tokenizers(recipe.filters, folder, base, recipe.train.max_length)
    stops = stops_of(recipe)
    return [
        part.model_copy(update={"params": {**stops, **part.params}})
        if part.name == "difficulty"
        else part
        for part in told
    ]


def stops_of(recipe: Recipe) -> dict[str, int]:
    """`want` and `most` of adaptive sampling, by which pass rates are estimated; else empty."""
    want, sampled = recipe.sampling.want, recipe.traces is None
    return {"want": want, "most": recipe.sampling.max} if want is not None and sampled else {}


def build_student(trainer: str, folder: Path) -> Any:
    """The trainer that a recipe names, `sft` or a user's class."""
    kind = resolve(trainer, TRAINERS, what="trainer", folder=folder)
    return kind() if isinstance(kind, type) else kind


def sample(payload: Mapping[str, Any]) -> None:
    """The sample step with an embedded engine."""
    _quiet()
    from distill.sample import run_sample

    recipe, folder = Recipe.from_dict(payload["recipe"]), Path(payload["folder"])
    run_sample(
        Path(payload["problems"]),
        build_teacher(recipe, folder),
        recipe.sampling,
        seed=recipe.seed,
        pool_root=Path(payload["pool"]),
        prices=(recipe.teacher.price_in, recipe.teacher.price_out),
        out=Path(payload["out"]),
        accept=build_acceptance(recipe, folder),
    )


def train(payload: Mapping[str, Any]) -> str:
    """The train step; returns the student's folder."""
    _quiet()
    student = build_student(payload["trainer"], Path(payload["folder"]))
    return str(student.train(Path(payload["dataset"]), Path(payload["out"]), payload["config"]))


def merge(payload: Mapping[str, Any]) -> None:
    """The merge step: the student's weights with other models'."""
    _quiet()
    merging = resolve("distill.students.merging:merge", {}, what="students")
    summary = json.dumps(merging(payload), ensure_ascii=False, indent=1)
    (Path(payload["out"]) / "summary.json").write_text(summary, encoding="utf-8")


def evaluate(payload: Mapping[str, Any]) -> None:
    """The evaluate step: all models one after another in this process."""
    _quiet()
    from distill.evaluate import main

    main(dict(payload))


def _quiet() -> None:
    # Bars for loading weights would tear our own progress line; downloads keep theirs.
    from transformers.utils import logging

    logging.disable_progress_bar()
