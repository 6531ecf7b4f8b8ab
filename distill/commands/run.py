"""`distill run` and the stage verbs: a recipe up to some stage, or the report of a run again."""

from __future__ import annotations

import argparse
import logging
import sys

from distill import nodes
from distill.commands.common import find_run, load_recipe


def main(verb: str, options: argparse.Namespace) -> int:
    """Run, print the report's path and the next command."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if verb == "report" and options.target and not options.rest:
        run = find_run(options)
        if run is not None:
            from distill.report import write_report

            print(write_report(run))
            return 0
    from distill.pipeline import run as distil

    if options.explain:
        from distill.commands.explain import explain

        return explain(verb, options)
    recipe = load_recipe(options)
    until = "report" if verb in ("run", "report") else verb
    if options.rehearse:
        from distill.commands.rehearse import rehearse

        return rehearse(recipe, until=until, runs=options.runs)
    if until in ("train", "evaluate", "report") and nodes.follows(recipe):
        nodes.follow(recipe)
        return 0
    report = distil(recipe, until=until, runs=options.runs, command=options.command)
    if options.json:
        print((report.path.parent / "report.json").read_text(encoding="utf-8"))
        return 0
    print(report)
    sys.stdout.flush()
    return 0
