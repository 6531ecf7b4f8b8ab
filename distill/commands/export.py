"""`distill export RUN --out FILE`: the training set of a run for other trainers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from distill.commands.common import runs_folder, the_run
from distill.errors import UsageError


def main(verb: str, options: argparse.Namespace) -> int:
    """Write messages or ShareGPT rows, JSONL or Parquet by the file's ending."""
    from distill.export import export

    run = the_run(options)
    steps = json.loads((run / "run.json").read_text(encoding="utf-8"))["steps"]
    if "select" not in steps:
        raise UsageError(f"{run.name} has no training set yet", "distill select RECIPE makes it")
    dataset = runs_folder(options) / steps["select"]["folder"] / "dataset.jsonl"
    out = Path(options.out or (options.rest[0] if options.rest else f"{run.name}.jsonl"))
    count = export(dataset, out, options.form)
    print(f"{out}: {count:,} examples as {options.form}")
    return 0
