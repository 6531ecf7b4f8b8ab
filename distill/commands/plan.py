"""`plan`: what a recipe will ask for, before anything runs: offline, without a model."""

from __future__ import annotations

import argparse
import json
import os
import sys

from distill.commands.common import load_recipe, the_run
from distill.errors import UsageError
from distill.plan import make_plan
from distill.plan_json import as_json
from distill.plan_machines import DEFAULT, machines
from distill.plan_sampling import Basis
from distill.plan_table import table

COLOURS = {"good": "32", "bad": "31", "dim": "2"}


def main(verb: str, options: argparse.Namespace) -> int:
    """Print the plan of a recipe; with `--json` all of its figures."""
    on = machines(options.on or DEFAULT)
    speed, mfu = options.tokens_per_second, options.mfu
    if speed is not None and speed <= 0:
        raise UsageError(f"--tokens-per-second is {speed:g}", "give the speed of all GPUs together")
    if mfu is not None and not 0 < mfu <= 1:
        raise UsageError(f"--mfu is {mfu:g}", "a share of the GPU's peak: 0.4 means 40%")
    recipe = load_recipe(options)
    basis = None
    if options.source:
        basis = Basis.of_run(the_run(argparse.Namespace(target=options.source, runs=options.runs)))
    plan = make_plan(recipe, on, basis=basis, tokens_per_second=speed, mfu=mfu)
    if options.json:
        print(json.dumps(as_json(plan), ensure_ascii=False, indent=1))
    else:
        print(table(plan, _paint))
    return 0


def _paint(kind: str, text: str) -> str:
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{COLOURS[kind]}m{text}\x1b[0m"
