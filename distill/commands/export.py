"""`distill export RUN --out FILE or FOLDER`: the training set of a run for other trainers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from distill.commands.common import runs_folder, the_run
from distill.errors import UsageError


def main(verb: str, options: argparse.Namespace) -> int:
    """Write messages or ShareGPT rows: a file by its ending, or a folder for the hub."""
    from distill.export import export_splits

    run = the_run(options)
    steps = json.loads((run / "run.json").read_text(encoding="utf-8"))["steps"]
    if "select" not in steps:
        raise UsageError(f"{run.name} has no training set yet", "distill select RECIPE makes it")
    out = Path(options.out or (options.rest[0] if options.rest else f"{run.name}.jsonl"))
    if not out.suffix:
        from distill.report.data_card import card_path

        card_path(out)
    written = export_splits(runs_folder(options) / steps["select"]["folder"], out, options.form)
    for path, count in written.items():
        print(f"{path}: {count:,} examples as {options.form}")
    if not out.suffix:
        print(_card(run, out, [*written]))
    return 0


def _card(run: Path, out: Path, files: list[Path]) -> Path:
    import pyarrow.parquet as pq

    from distill.report.build import read_run
    from distill.report.data_card import write_card

    columns = tuple(pq.read_schema(files[0]).names)
    return write_card(read_run(run), out, {path.stem: path.name for path in files}, columns)
