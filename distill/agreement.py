"""Whether the sections of a recipe agree, found out before anything is paid for.

Problems without reference answers need a judge, a grader of one's own or a filter that lets
ungraded traces pass, or all their traces are bought for nothing; a mix must name sources.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from distill.errors import UsageError
from distill.filter.outcome import Correct
from distill.filter.parts import build
from distill.grade.judge import JudgeSpec
from distill.grade.parts import KNOWN, build_all, judges_of, nearest, specs_of
from distill.mix import balance_of
from distill.recipe import Recipe
from distill.stages import stages_of

IN_CHILDREN = ("sample", "train", "merge", "evaluate")


def check_agreement(recipe: Recipe) -> None:
    """Raise UsageError where one section asks for what another makes impossible."""
    for part in judges_of(recipe.grading):
        JudgeSpec.of(part)
    _check_interpreters(recipe)
    _check_open_problems(recipe)
    build_all(specs_of(recipe.grading, recipe.folder))
    _check_sources(recipe, "grading.by_source", recipe.grading.by_source)
    _check_sources(recipe, "select.mix", recipe.select.mix)
    capped = recipe.select.per_source
    _check_sources(recipe, "select.per_source", capped if isinstance(capped, dict) else ())
    _check_domains(recipe)
    for stage in stages_of(recipe):
        _check_training(stage.recipe)


def _check_interpreters(recipe: Recipe) -> None:
    for stage, python in recipe.interpreters.items():
        if stage not in IN_CHILDREN:
            raise UsageError(
                f"interpreters names a step '{stage}' that has no process of its own",
                f"steps that have one: {', '.join(IN_CHILDREN)}",
            )
        if shutil.which(python) is None:
            raise UsageError(
                f"interpreters.{stage} is {python}, and there is no such program",
                "give the path of a Python that has distill installed",
            )


def _check_training(recipe: Recipe) -> None:
    """What decides which weights are kept, and what can be sharded."""
    train = recipe.train
    measured = bool(recipe.select.validation or train.development)
    if train.development:
        development_of(recipe)
    if not measured and (train.keep == "best" or train.early_stop is not None):
        key = "keep: best" if train.keep == "best" else f"early_stop: {train.early_stop}"
        raise UsageError(
            f"train.{key} goes by the validation loss, and there are no examples to measure it on",
            "keep some from training with select.validation (0.02, say), or name a file of rows "
            '{"messages": [...]} in train.development',
        )
    if train.keep == "best" and train.average > 1:
        raise UsageError(
            f"train.keep: best and train.average: {train.average} both say which weights the "
            "student gets",
            "choose one of them",
        )
    if train.shard == "fsdp" and recipe.student.method == "qlora":
        raise UsageError(
            "train.shard: fsdp cannot shard weights of 4 bits (student.method: qlora)",
            "leave shard out (each process holds the base in 4 bits), or train with method: lora",
        )


def development_of(recipe: Recipe) -> Path:
    """The file of `train.development`, which is relative to the recipe's folder."""
    path = recipe.folder / Path(str(recipe.train.development)).expanduser()
    if not path.is_file():
        raise UsageError(
            f"train.development is {recipe.train.development}, and there is no file {path}",
            'give a JSONL file of rows {"messages": [...]}',
        )
    return path


def open_sources(recipe: Recipe) -> list[str]:
    """Sources of the recipe that say `gold: null`."""
    if recipe.traces is not None:
        traces = recipe.traces
        return [traces.dataset or traces.file or "traces"] if traces.gold is None else []
    return [source.label for source in recipe.problems.sources if source.without_gold]


def keeps_ungraded(recipe: Recipe) -> bool:
    """Whether traces of problems without reference answers get past the filter `correct`."""
    chain = [part.call for part in build(recipe.filters, recipe.folder)]
    corrects = [call for call in chain if isinstance(call, Correct)]
    return all(call.keeps_ungraded or "ungraded" in call.allow for call in corrects)


def _check_open_problems(recipe: Recipe) -> None:
    sources = open_sources(recipe)
    if not sources or not recipe.problems.require_gold or keeps_ungraded(recipe):
        return
    parts = [*recipe.grading.graders, *recipe.grading.by_source.get(sources[0], ())]
    judged = any(part.name == "judge" or part.name not in KNOWN for part in parts)
    if not judged:
        raise UsageError(
            f"source '{sources[0]}' has no gold answers, so none of its traces would be kept: "
            "nothing grades them, and the filter 'correct' drops what is ungraded",
            "add a judge to grading.graders, or keep them with {correct: {ungraded: keep}}",
        )
    if recipe.sampling.want is not None and recipe.traces is None:
        raise UsageError(
            f"sampling.want counts accepted traces while it samples, and those of source "
            f"'{sources[0]}' are judged only afterwards",
            "let them count with {correct: {ungraded: keep}} (what the judge finds wrong is "
            "dropped all the same), or sample a fixed n",
        )


def _check_sources(recipe: Recipe, key: str, names: Iterable[str]) -> None:
    if recipe.traces is not None:
        return
    if any(source.call for source in recipe.problems.sources):
        return  # its problems may carry sources of their own
    known = list(dict.fromkeys(source.label for source in recipe.problems.sources))
    for name in names:
        if name not in known:
            raise UsageError(
                f"{key} names a source '{name}' that there is not{nearest(name, known)}",
                f"sources: {', '.join(known) or 'none'}; give one a name with `name:`",
            )


def _check_domains(recipe: Recipe) -> None:
    """Names in `select.balance` that no source says, where no problem can say its own."""
    select, sources = recipe.select, recipe.problems.sources
    own = any(source.call or source.domain.startswith("=") for source in sources)
    preset = isinstance(select.balance, str)
    if not select.balance or own or recipe.traces is not None or (preset and select.fill):
        return
    known = list(dict.fromkeys(s.domain.strip().lower() for s in sources if s.domain))
    for name in balance_of(select.balance):
        if name not in known:
            raise UsageError(
                f"select.balance wants a domain '{name}' that no source has{nearest(name, known)}",
                f"domains: {', '.join(known) or 'none'}; give a source one with `domain:`"
                + ("; select.fill goes without what is missing" if preset else ""),
            )
