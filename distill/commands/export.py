"""`distill export RUN --form F --out PATH`: a run's training set or its student for others."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.commands.common import runs_folder, the_run
from distill.errors import UsageError
from distill.export import FORMS as DATA_FORMS


def main(verb: str, options: argparse.Namespace) -> int:
    """Data: a file by its ending, or a folder for the hub. A model: a folder, or a .gguf file."""
    run = the_run(options)
    if options.form in DATA_FORMS:
        return _data(run, options)
    return _model(run, options)


def _model(run: Path, options: argparse.Namespace) -> int:
    from distill.export_model import export_model

    told, words = _told(options.rest, {"shard_size", "python"})
    target = options.out or next(iter(words), f"{run.name}-{options.form}")
    found = export_model(
        run,
        Path(target),
        options.form,
        dtype=options.dtype or "",
        shard_size=told.get("shard_size", "5GB"),
        python=told.get("python"),
    )
    for note in found.get("notes") or []:
        print(f"note: {note}", file=sys.stderr)
    if options.json:
        print(json.dumps(found))
    else:
        more = ", ".join(
            f"{k} {v}" for k, v in found.items() if k not in ("path", "bytes", "notes")
        )
        print(f"{found['path']}: {found['bytes'] / 1e6:,.1f} MB as {options.form} ({more})")
    return 0


def _told(rest: list[str], known: set[str]) -> tuple[dict[str, str], list[str]]:
    """`shard_size=2GB python=PATH` as a dict, and the words that say nothing of the kind."""
    told = {k: v for k, eq, v in (word.partition("=") for word in rest) if eq}
    if unknown := sorted(told.keys() - known):
        raise UsageError(f"export has no key '{unknown[0]}'", f"keys: {', '.join(sorted(known))}")
    return told, [word for word in rest if "=" not in word]


def _data(run: Path, options: argparse.Namespace) -> int:
    from distill.export import export_splits

    told, words = _told(options.rest, {"stage"})
    steps = json.loads((run / "run.json").read_text(encoding="utf-8"))["steps"]
    stage = told.get("stage", "")
    chosen = _of_stage(run, steps, stage)
    out = Path(options.out or next(iter(words), f"{run.name}.jsonl"))
    if not out.suffix:
        from distill.report.data_card import card_path

        card_path(out)
    written = export_splits(runs_folder(options) / chosen["folder"], out, options.form)
    for path, count in written.items():
        print(f"{path}: {count:,} examples as {options.form}")
    if not out.suffix:
        print(_card(run, out, [*written], stage))
    return 0


def _of_stage(run: Path, steps: Mapping[str, Any], stage: str) -> Mapping[str, Any]:
    """The select step whose data set is meant; with several stages one must be named."""
    sets = {e.get("stage", ""): e for n, e in steps.items() if e.get("step", n) == "select"}
    if not sets:
        raise UsageError(f"{run.name} has no training set yet", "distill select RECIPE makes it")
    if stage not in sets:
        names = ", ".join(f"stage={name}" for name in sets if name) or "no stage"
        raise UsageError(
            f"{run.name} has no stage '{stage}'" if stage else f"{run.name} has several stages",
            f"say which training set: {names}",
        )
    found: Mapping[str, Any] = sets[stage]
    return found


def _card(run: Path, out: Path, files: list[Path], stage: str) -> Path:
    import pyarrow.parquet as pq

    from distill.report.build import read_run
    from distill.report.data_card import write_card

    columns = tuple(pq.read_schema(files[0]).names)
    source = read_run(run).at(stage) if stage else read_run(run)
    return write_card(source, out, {path.stem: path.name for path in files}, columns)
