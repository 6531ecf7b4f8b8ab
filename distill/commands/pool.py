"""`distill pool [RUN, FOLDER or KEY]`: what a trace pool holds; `--parquet FILE` compacts it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.commands.common import find_run, runs_folder
from distill.errors import UsageError


def main(verb: str, options: argparse.Namespace) -> int:
    """List pools; with `--parquet`, write the one that is meant to a file."""
    wanted = _wanted(options.rest)
    folders = _folders(options)
    if options.parquet:
        if len(folders) != 1:
            names = ", ".join(folder.name for folder in folders) or "none"
            raise UsageError(
                f"--parquet needs one pool, and '{options.target or 'runs'}' means {names}",
                "distill pool KEY --parquet FILE",
            )
        from distill.store_parquet import compact

        done = compact(folders[0], Path(options.parquet), **wanted)
        if options.json:
            print(json.dumps(dataclasses.asdict(done)))
            return 0
        print(f"{options.parquet}: {done.traces:,} traces, {_size(done.bytes)}")
        for what in ("skipped", "bad", "torn", "duplicates"):
            if count := getattr(done, what):
                print(f"  left out: {count:,} {what}")
        return 0
    if wanted:
        raise UsageError(f"{', '.join(wanted)} is of use with --parquet only", "add --parquet FILE")
    rows = [_describe(folder) for folder in folders]
    if options.json:
        print(json.dumps(rows, ensure_ascii=False, indent=1))
        return 0
    if not rows:
        print(f"no trace pools in {runs_folder(options) / 'pool'}")
    for row in rows:
        _show(row)
    return 0


def _wanted(rest: list[str]) -> dict[str, Any]:
    """`token_ids=true` and `last=N`, as arguments of `compact`."""
    wanted: dict[str, Any] = {}
    for item in rest:
        name, _, value = item.partition("=")
        if name == "token_ids" and value in ("true", "false"):
            wanted[name] = value == "true"
        elif name == "last" and value.isdecimal():
            wanted[name] = int(value)
        else:
            raise UsageError(
                f"'{item}' is no option of distill pool", "known: token_ids=true, last=N"
            )
    return wanted


def _folders(options: argparse.Namespace) -> list[Path]:
    """The pools that are meant: a folder, a key (or its beginning), those of a run, or all."""
    from distill.store import is_pool

    root = runs_folder(options) / "pool"
    target = options.target
    if not target:
        return sorted(filter(is_pool, root.glob("*")))
    if is_pool(Path(target)):
        return [Path(target)]
    found = sorted(path for path in root.glob("*") if path.name.startswith(target))
    if found:
        return found
    run = find_run(options)
    if run is None:
        raise UsageError(
            f"'{target}' is no trace pool, and no run in {runs_folder(options)}",
            "distill pool lists the pools; give a key, a folder or a run",
        )
    runs = run.parent  # a run named by its path may lie in another folder
    folders = [runs / "pool" / key for key in dict.fromkeys(_keys(run, runs))]
    if not any(map(is_pool, folders)):
        raise UsageError(f"{run.name} has sampled nothing yet", "distill sample RECIPE does")
    return [folder for folder in folders if is_pool(folder)]


def _keys(run: Path, runs: Path) -> Iterator[str]:
    """The generation keys that the summaries of a run's steps name."""
    steps = json.loads((run / "run.json").read_text(encoding="utf-8"))["steps"]
    for step in steps.values():
        summary = runs / step["folder"] / "summary.json"
        if summary.is_file():
            yield from _named(json.loads(summary.read_text(encoding="utf-8")))


def _named(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        key = value.get("generation_key")
        if isinstance(key, str):
            yield key
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _named(part)


def _describe(folder: Path) -> dict[str, Any]:
    from distill.store import TracePool

    content = folder / "pool.json"
    segments = list(folder.glob("[0-9]*-*.jsonl"))
    with TracePool.open(folder, write=False) as pool:
        return {
            "pool": folder.name,
            "folder": str(folder),
            "content": _content(content),
            "traces": len(pool),
            "segments": len(segments),
            "bytes": sum(path.stat().st_size for path in segments),
            "bad": pool.bad,
            "torn": pool.torn,
            "duplicates": pool.duplicates,
        }


def _content(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _show(row: dict[str, Any]) -> None:
    content = row["content"] if isinstance(row["content"], dict) else {}
    print(
        f"{row['pool']}  {row['traces']:,} traces in {row['segments']:,} files,"
        f" {_size(row['bytes'])}; {row['bad']:,} bad, {row['torn']:,} torn,"
        f" {row['duplicates']:,} duplicates"
    )
    for name, value in content.items():
        print(f"  {name}: {value if isinstance(value, str) else json.dumps(value)}")


def _size(count: int) -> str:
    size, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
