"""`distill push RUN NAME`: a run's student or training set to the Hugging Face hub."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from distill.commands.common import the_run
from distill.errors import UsageError

if TYPE_CHECKING:
    from distill.push import Parcel


def main(verb: str, options: argparse.Namespace) -> int:
    """Upload, or with --dry-run say what would be uploaded; the latter needs no network."""
    from distill.push import pack, send

    run = the_run(options)
    if len(options.rest) != 1:
        raise UsageError(
            "distill push needs a RUN and a NAME", f"distill push {run.name} owner/name --dry-run"
        )
    with tempfile.TemporaryDirectory(prefix="distill-push-") as scratch:
        folder = Path(options.out) if options.out else None
        if options.what == "data" and folder is None:
            folder = _data(run, Path(scratch) / "data")
        parcel = pack(run, options.rest[0], options.what, folder, options.public)
        for line in parcel.warnings:
            print(f"warning: {line}", file=sys.stderr)
        if not options.dry_run:
            print(send(parcel))
            return 0
        _tell(parcel, options.json)
    return 0


def _tell(parcel: Parcel, as_json: bool) -> None:
    seen = "private" if parcel.private else "public"
    if as_json:
        told = {
            "repo": parcel.repo,
            "kind": parcel.kind,
            "visibility": seen,
            "files": dict(parcel.files),
            "bytes": parcel.bytes,
            "card": parcel.card,
            "warnings": parcel.warnings,
        }
        print(json.dumps(told, ensure_ascii=False, default=str))
        return
    owner = "" if "/" in parcel.repo else " (in your own account)"
    print(f"{parcel.kind} {parcel.repo}{owner}, {seen}; nothing was uploaded")
    for name, size in parcel.files:
        print(f"  {size:>15,}  {name}")
    print(f"  {parcel.bytes:>15,}  bytes in {len(parcel.files)} files")
    for key, value in parcel.card.items():
        print(f"  {key}: {json.dumps(value, ensure_ascii=False, default=str)}")


def _data(run: Path, out: Path) -> Path:
    """The training set and its card, as `distill export RUN --out FOLDER` writes them."""
    import pyarrow.parquet as pq

    from distill.export import export_splits
    from distill.report.build import read_run
    from distill.report.data_card import write_card

    source = read_run(run)
    selected = source.folder("select")
    if selected is None:
        raise UsageError(f"{run.name} has no training set yet", "distill select RECIPE makes it")
    out.mkdir()
    written = [*export_splits(selected, out)]
    columns = tuple(pq.read_schema(written[0]).names)
    write_card(source, out, {path.stem: path.name for path in written}, columns)
    return out
