"""`compare` and `ablate`: what a change did to the results, over runs that exist or are made."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from distill.commands.common import runs_folder, the_run
from distill.errors import UsageError


def main(verb: str, options: argparse.Namespace) -> int:
    """Print the results' table and the page's path; with `--json` all numbers."""
    return _ablate(options) if verb == "ablate" else _compare(options)


def _compare(options: argparse.Namespace) -> int:
    from distill.compare import Arm, compare

    names = [name for name in [options.target, *options.rest] if name]
    if len(names) < 2:
        raise UsageError("distill compare needs two runs or more", "distill ls --runs names them")
    runs = [
        the_run(argparse.Namespace(target=name, runs=options.runs)) for name in dict.fromkeys(names)
    ]
    if len(runs) < 2:
        raise UsageError("this is one run", "give another one to compare it with")
    numbers = compare([Arm(run.name, [run]) for run in runs])
    named = hashlib.sha256("\n".join(run.name for run in runs).encode()).hexdigest()[:12]
    _show(numbers, Path(options.out or runs_folder(options) / f"compare-{named}"), options)
    return 0


def _ablate(options: argparse.Namespace) -> int:
    from distill.ablate import name_of, run_trials, trials
    from distill.compare import compare
    from distill.pipeline import run, say

    if not options.target:
        raise UsageError("distill ablate needs a recipe", "distill ls names them")
    words = list(options.rest)
    if options.limit is not None:
        words += [f"problems.limit={options.limit}", f"evaluate.limit={options.limit}"]
    found = trials(options.target, words, options.seeds)
    command: Sequence[str] = options.command

    arms, failed = run_trials(
        found,
        lambda recipe: run(recipe, runs=options.runs, command=command).path.parent,
        say,
    )
    if len(arms) < 2:
        raise UsageError(f"no variant could be run: {'; '.join(failed.values())}")
    numbers = compare(arms)
    numbers["command"] = list(command)
    numbers["warnings"] += [f"{label} could not be run: {why}" for label, why in failed.items()]
    _show(numbers, Path(options.out or runs_folder(options) / name_of(found)), options)
    return 1 if failed else 0


def _show(numbers: dict[str, object], folder: Path, options: argparse.Namespace) -> None:
    from distill.report.comparison import as_text, write_comparison

    page = write_comparison(numbers, folder)
    if options.json:
        print(json.dumps(numbers, ensure_ascii=False, indent=1))
        return
    print(as_text(numbers))
    print(f"page     {page}")
