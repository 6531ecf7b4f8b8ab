"""What the verbs share: a recipe from the options, a run from its name."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from distill.errors import UsageError
from distill.recipe import Recipe


def runs_folder(options: argparse.Namespace) -> Path:
    """Where runs are: the flag, the environment, or ./runs."""
    return Path(options.runs or os.environ.get("DISTILL_RUNS") or "runs").resolve()


def load_recipe(options: argparse.Namespace) -> Recipe:
    """The recipe that the command names, with its overrides."""
    if not options.target:
        raise UsageError(f"distill {options.verb} needs a recipe", "distill ls names them")
    overrides = list(options.rest)
    if options.limit is not None:
        overrides.append(f"problems.limit={options.limit}")
        overrides.append(f"evaluate.limit={options.limit}")
    return Recipe.load(options.target, overrides=overrides)


def find_run(options: argparse.Namespace) -> Path | None:
    """The folder of a run given by path, name, or the unique beginning of its name."""
    target = options.target or ""
    if (Path(target) / "run.json").is_file():
        return Path(target).resolve()
    found = sorted(path.parent for path in runs_folder(options).glob(f"{target}*/run.json"))
    exact = [path for path in found if path.name == target]
    if exact or len(found) == 1:
        return (exact or found)[0]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UsageError(f"'{target}' names several runs: {names}", "give one of them in full")
    return None


def the_run(options: argparse.Namespace) -> Path:
    """As `find_run`, but a missing run is an error."""
    run = find_run(options)
    if run is None:
        folder = runs_folder(options)
        known = ", ".join(sorted(p.parent.name for p in folder.glob("*/run.json"))) or "none"
        raise UsageError(f"no run '{options.target}' in {folder}", f"runs there: {known}")
    return run
