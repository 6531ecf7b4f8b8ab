"""`ls`, `show`, `cp`: look at recipes without running anything."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from distill.commands.common import load_recipe, runs_folder
from distill.errors import UsageError
from distill.recipe import Recipe, find_recipe, shipped_recipes, variants_of


def main(verb: str, options: argparse.Namespace) -> int:
    """Dispatch; every one prints to stdout."""
    {"ls": _ls, "show": _show, "cp": _cp}[verb](options)
    return 0


def _ls(options: argparse.Namespace) -> None:
    if options.runs or options.target == "runs":
        for path in sorted(runs_folder(options).glob("*/run.json")):
            run = json.loads(path.read_text(encoding="utf-8"))
            print(f"{path.parent.name:<40} {run['status']:<12} {run['created']}")
        return
    for name in shipped_recipes():
        recipe = Recipe.load(name)
        variants = ", ".join(variants_of(name))
        print(f"{name:<14} {recipe.about.summary}")
        print(f"{'':<14} {recipe.about.hardware} · {recipe.about.verified} · variants: {variants}")


def _show(options: argparse.Namespace) -> None:
    recipe = load_recipe(options)
    plain = recipe.model_dump(mode="json")
    if options.json:
        print(json.dumps(plain, ensure_ascii=False, indent=1))
        return
    rows = list(_rows(plain))
    width = min(60, max(len(f"{key}: {value}") for key, value in rows))
    for key, value in rows:
        print(f"{f'{key}: {value}':<{width}}  # {recipe.origin(key)}")


def _rows(data: Any, prefix: str = "") -> Any:
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from _rows(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" == "stages" and value:
            for stage in value:  # what each one says, by the name with which it is overridden
                said = {k: v for k, v in stage.items() if k != "name" and v not in (None, {})}
                yield from _rows({stage["name"]: said}, "stages.")
        else:
            yield f"{prefix}{key}", json.dumps(value, ensure_ascii=False)


def _cp(options: argparse.Namespace) -> None:
    if not options.target:
        raise UsageError("distill cp needs a recipe", "distill cp 1.5b mine.yaml")
    source = find_recipe(options.target)
    target = Path(options.out or (options.rest[0] if options.rest else source.name))
    if target.exists():
        raise UsageError(f"{target} exists already", "give another name: distill cp NAME FILE")
    shutil.copyfile(source, target)
    print(target)
