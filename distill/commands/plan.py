"""`plan`: what a recipe will ask for, before anything runs: offline, without a model."""

from __future__ import annotations

import argparse
import dataclasses
import json

from distill.commands.common import load_recipe, the_run
from distill.errors import UsageError
from distill.plan import plan_lines
from distill.plan_sampling import Basis, default_basis, expected, not_honoured, problem_count


def main(verb: str, options: argparse.Namespace) -> int:
    """Print the plan of a recipe; with `--json` its figures."""
    recipe = load_recipe(options)
    speed = options.tokens_per_second
    if speed is not None and speed <= 0:
        raise UsageError(f"--tokens-per-second is {speed:g}", "give the speed of all GPUs together")
    basis = default_basis(recipe)
    if options.source:
        basis = Basis.of_run(the_run(argparse.Namespace(target=options.source, runs=options.runs)))
    if not options.json:
        print("\n".join(plan_lines(recipe, basis=basis, tokens_per_second=speed)))
        return 0
    count = problem_count(recipe)
    figures = None
    if count is not None and recipe.traces is None:
        figures = dataclasses.asdict(expected(recipe, count, basis))
        figures["hours"] = figures["tokens"] / speed / 3600 if speed else None
    plan = {
        "recipe": recipe.name,
        "variant": recipe.variant,
        "sampling": figures,
        "basis": dataclasses.asdict(basis),
        "ignored": not_honoured(recipe),
    }
    print(json.dumps(plan, ensure_ascii=False, indent=1))
    return 0
