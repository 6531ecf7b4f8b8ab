"""`distill grade RECIPE` runs a recipe up to its grades; `distill grade --file` grades a file.

    distill grade --file FILE.jsonl [RECIPE] [grading.key=value ...] [--out FILE] [--json]

Each row is `{gold, response}`, with `tests`, `metadata`, `source` and `finish_reason` where they
matter. Every row comes back, in order, with `outcome, score, extracted, grader, version, detail`
added: on stdout or in `--out`. A row that cannot be used is an `error` that says why. Counts go to
stderr; `--json` prints them to stdout, instead of the rows where there is no `--out`.

Exit code 0: graded, whatever the grades; 1: no row could be used; 2: no such file, wrong grader.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.errors import DataError, UsageError

KEYS = ("gold", "response", "tests", "metadata", "source", "finish_reason")
"""What is read of a row."""


def main(verb: str, options: argparse.Namespace) -> int:
    """Grade a file's rows, or hand over to the recipe's run."""
    if options.file is None:
        from distill.commands.run import main as run

        return run(verb, options)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return _grade_file(options)
    except KeyboardInterrupt:
        print("distill: interrupted", file=sys.stderr)
        return 130


def _grade_file(options: argparse.Namespace) -> int:
    from distill.grade.service import Judge

    path = Path(options.file)
    if not path.is_file():
        raise UsageError(f"no file '{path}'", "--file names a JSONL file of {gold, response} rows")
    config, folder = _grading(options)
    counts = _Counts()
    started = time.monotonic()
    with Judge(config, folder) as judge:
        # Rows that run over the terminal are progress enough.
        shown = bool(options.out or options.json) or not sys.stdout.isatty()
        rows = counts.over(graded_rows(_lines(path, options.limit, shown=shown), judge))
        if options.out:
            _write(Path(options.out), rows)
        else:
            for row in rows:
                if not options.json:
                    sys.stdout.write(_dumped(row, sys.stdout.encoding) + "\n")
        summary = counts.summary(time.monotonic() - started, judge.pool.killed)
    sys.stdout.flush()
    if options.json:
        print(json.dumps(summary, ensure_ascii=False))
    elif not options.quiet:
        print("\n".join(_table(summary)), file=sys.stderr)
    if counts.rows == counts.bad:
        first = f"first: {counts.first_bad}" if counts.bad else "the file is empty"
        raise DataError(f"no row of {path} could be used", first)
    return 0


def _grading(options: argparse.Namespace) -> tuple[Any, Path]:
    """The grading section of the recipe that is named, or of none, with the overrides."""
    from distill.recipe import Recipe

    words = [word for word in (options.target, *options.rest) if word]
    overrides = [word for word in words if "=" in word]
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise UsageError(f"distill grade --file takes one recipe; found {', '.join(names)}")
    if names:
        recipe = Recipe.load(names[0], overrides=overrides)
        if any(part.name == "judge" for part in recipe.grading.graders):
            print("judge models are not asked about a file: rules only", file=sys.stderr)
        return recipe.grading, recipe.folder
    import yaml

    section: dict[str, Any] = {}
    for word in overrides:
        key, _, value = word.partition("=")
        scope, _, name = key.partition(".")
        if scope != "grading" or not name:
            raise UsageError(f"'{word}' is no key of grading", "e.g. grading.graders=[math]")
        section[name] = yaml.safe_load(value)
    recipe = Recipe.from_dict({"name": "command line", "grading": section})
    return recipe.grading, Path.cwd()


def _lines(path: Path, limit: int | None, *, shown: bool) -> Iterator[tuple[int, bytes]]:
    """The numbered lines of a file that hold something; `shown` with progress."""
    from distill.progress import Progress

    with path.open("rb") as file:
        total = sum(1 for line in file if line.strip())
        file.seek(0)
        most = total if limit is None else min(limit, total)
        with contextlib.ExitStack() as stack:
            progress = stack.enter_context(Progress("grade", most, "rows")) if shown else None
            numbered = ((n, line) for n, line in enumerate(file, 1) if line.strip())
            for _, line in zip(range(most), numbered, strict=False):
                yield line
                if progress is not None:
                    progress.update(1)


def graded_rows(lines: Iterable[tuple[int, bytes]], judge: Any) -> Iterator[dict[str, Any]]:
    """Every row with its grade, in order; `lines` are numbered lines of JSON.

    A bounded number is held: a line that cannot be used goes through the judge too, as a row
    without anything to judge.
    """
    from distill.records import Grade, Problem, Trace, to_row

    ahead: deque[tuple[dict[str, Any], str]] = deque()
    nothing = (Problem(messages=(), id="bad"), Trace(problem_id="bad", index=0))

    def pairs() -> Iterator[tuple[Any, Any]]:
        for number, raw in lines:
            row, why = _parsed(number, raw)
            pair = nothing
            if not why:
                try:
                    pair = _pair(number, row)
                except (TypeError, ValueError) as error:
                    why = str(error)
            ahead.append((row, why))
            yield pair

    for grade in judge.grade_many(pairs()):
        row, why = ahead.popleft()
        yield {**row, **to_row(Grade(outcome="error", detail=why) if why else grade)}


def _parsed(number: int, raw: bytes) -> tuple[dict[str, Any], str]:
    try:
        row = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return {"line": number}, f"not JSON: {error}"[:200]
    if not isinstance(row, dict):
        return {"line": number}, f"expected an object, found {type(row).__name__}"
    return row, ""


def _pair(number: int, row: Mapping[str, Any]) -> tuple[Any, Any]:
    from distill.records import Problem, Trace
    from distill.sources import gold_text

    response, metadata = row.get("response"), row.get("metadata") or {}
    if not isinstance(response, str):
        found = "missing" if "response" not in row else f"a {type(response).__name__}"
        raise ValueError(f"'response' is {found}; keys: {', '.join(map(str, row))}"[:200])
    if not isinstance(metadata, dict):
        raise ValueError(f"'metadata' is a {type(metadata).__name__}, expected an object")
    if "tests" in row:
        metadata = {**metadata, "tests": row["tests"]}
    name = f"row {number}"
    problem = Problem(
        messages=(),
        gold=gold_text(row.get("gold")),
        source=str(row.get("source") or ""),
        metadata=metadata,
        id=name,
    )
    reason = str(row.get("finish_reason") or "stop")
    return problem, Trace(problem_id=name, index=0, text=response, finish_reason=reason)


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """All rows or, where it is interrupted, no file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(_dumped(row, "utf-8") + "\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _dumped(row: Mapping[str, Any], encoding: str) -> str:
    from distill.records import dumps

    text = dumps(row)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(row, separators=(",", ":"))  # half a character: JSON can escape it
    return text


class _Counts:
    """What is said about the rows, counted while they pass."""

    def __init__(self) -> None:
        self.rows = self.bad = 0
        self.first_bad = self.first_error = ""
        self.outcomes: Counter[str] = Counter()
        self.by_source: dict[str, Counter[str]] = {}

    def over(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for row in rows:
            self.rows += 1
            outcome = row["outcome"]
            self.outcomes[outcome] += 1
            source = str(row.get("source") or "")
            self.by_source.setdefault(source, Counter())[outcome] += 1
            if outcome == "error":
                if row["grader"]:
                    self.first_error = self.first_error or f"{row['grader']}: {row['detail']}"
                else:
                    self.bad += 1
                    self.first_bad = self.first_bad or f"row {self.rows}: {row['detail']}"
            yield row

    def summary(self, seconds: float, killed: int) -> dict[str, Any]:
        from distill.records import OUTCOMES

        def named(counts: Counter[str]) -> dict[str, int]:
            return {name: counts[name] for name in OUTCOMES}

        return {
            "rows": self.rows,
            "outcomes": named(self.outcomes),
            "by_source": {source: named(c) for source, c in sorted(self.by_source.items())},
            "unusable": self.bad,
            "first_unusable": self.first_bad,
            "first_error": self.first_error,
            "workers_killed": killed,
            "seconds": round(seconds, 3),
        }


def _table(summary: Mapping[str, Any]) -> list[str]:
    """Outcomes with their shares, by source where there are several; then what went wrong."""
    total = summary["rows"] or 1
    columns = [outcome for outcome, count in summary["outcomes"].items() if count]
    counts = {"all": summary["outcomes"]}
    if len(summary["by_source"]) > 1:
        counts |= {source[:40] or "(none)": c for source, c in summary["by_source"].items()}
    width = max(len(name) for name in counts) + 2

    def line(name: str, cells: Iterable[str]) -> str:
        return f"{name:<{width}}" + "".join(f"{cell:>11}" for cell in cells)

    lines = [line("", columns)]
    lines += [line(name, (f"{c[column]:,}" for column in columns)) for name, c in counts.items()]
    lines.insert(2, line("", (f"{summary['outcomes'][column] / total:.1%}" for column in columns)))
    rate = summary["rows"] / max(summary["seconds"], 1e-9)
    lines.append(f"{summary['rows']:,} rows in {summary['seconds']:.1f} s ({rate:,.0f} rows/s)")
    if summary["unusable"]:
        lines.append(
            f"{summary['unusable']:,} rows could not be used; first: {summary['first_unusable']}"
        )
    if summary["first_error"]:
        lines.append(f"could not be judged, first: {summary['first_error']}")
    return lines
