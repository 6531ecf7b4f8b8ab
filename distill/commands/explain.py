"""`distill filter RECIPE --explain`: what each filter dropped, why, and what a change moved."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.commands.common import load_recipe, runs_folder
from distill.errors import UsageError
from distill.report.explain import explain_filters
from distill.report.words import count, percent, plural, shorten

NARROWEST, WIDEST = 60, 100
MARK = "\x00"
"""Stands around the quoted place until the lines are broken; `printable` lets none through."""

Explained = Mapping[str, Any]


def explain(verb: str, options: argparse.Namespace) -> int:
    """Filter a recipe's traces (or take a RUN as it is), and print what the filters did.

    Traces and grades that are there are not made again: with another threshold only the filters
    run. Raises UsageError for another verb.
    """
    if verb != "filter":
        raise UsageError(f"--explain says what filters did, not {verb}", "distill filter RECIPE")
    run = _given_run(options)
    if run is None:
        from distill.pipeline import run as distil

        report = distil(
            load_recipe(options), until="filter", runs=options.runs, command=options.command
        )
        run = report.path.parent
    found = explain_filters(run)
    if options.json:
        print(json.dumps(found, ensure_ascii=False, indent=1))
        return 0
    paint = Paint(sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    columns = shutil.get_terminal_size((WIDEST, 24)).columns
    width = max(NARROWEST, min(WIDEST, columns))
    for line in lines(found, paint, width):
        print(line)
    return 0


def _given_run(options: argparse.Namespace) -> Path | None:
    """The run's folder where the target is one: its path, or its name in full."""
    for path in (Path(options.target or ""), runs_folder(options) / (options.target or "")):
        if options.target and not options.rest and (path / "run.json").is_file():
            return path.resolve()
    return None


class Paint:
    """Bold and faint text on a terminal that wants it; the text alone elsewhere."""

    def __init__(self, on: bool) -> None:
        self.on = on

    def bold(self, text: str) -> str:
        return f"\033[1m{text}\033[0m" if self.on and text else text

    def faint(self, text: str) -> str:
        return f"\033[2m{text}\033[0m" if self.on and text else text


def lines(found: Explained, paint: Paint, width: int = WIDEST) -> Iterator[str]:
    """The explanation as lines of at most `width` columns."""
    traces, kept = found["traces"], found["kept"]
    share = percent(kept / traces) if traces else percent(0.0)
    yield paint.bold(f"{found['run']}: {count(kept)} of {plural(traces, 'trace')} kept ({share})")
    bought = found["bought"]
    how = f"{plural(bought, 'trace')} bought now" if bought else "nothing was sampled for this"
    yield paint.faint(f"{found['folder']}; {how}")
    yield ""
    yield from _table(found, paint, width)
    if found["changes"]:
        yield ""
        yield from _changes(found["changes"], paint, width)
    for entry in found["filters"]:
        if entry["dropped"] or entry["measured"]:
            yield ""
            yield from _section(entry, paint, width)
    if found["kept_samples"]:
        yield ""
        yield paint.bold(f"kept  {count(kept)}")
        for sample in found["kept_samples"]:
            yield from _sample(sample, paint, width)
    for note in found["notes"]:
        yield ""
        yield from textwrap.wrap(f"note: {printable(note)}", width)


def _table(found: Explained, paint: Paint, width: int) -> Iterator[str]:
    entries = found["filters"]
    name = max([len(e["filter"]) for e in entries] + [len("filter")])
    columns = [key for key in ("solo", "marginal") if any(e[key] is not None for e in entries)]
    titles = {"solo": "alone", "marginal": "only it"}
    head = "".join(f"{titles[key]:>10}" for key in columns)
    yield paint.faint(f"  {'filter':<{name}}{'dropped':>10}{'left':>10}{head}")
    for e in entries:
        more = "".join(f"{'' if e[key] is None else count(e[key]):>10}" for key in columns)
        line = f"  {e['filter']:<{name}}{count(e['dropped']):>10}{count(e['left']):>10}{more}"
        yield line if e["dropped"] else paint.faint(line)
    if columns:
        told = "alone: what it would drop by itself; only it: what no other filter drops"
        yield from _indented("; ".join(told.split("; ")[: len(columns)]), width, paint)


def _changes(changes: Explained, paint: Paint, width: int) -> Iterator[str]:
    kept, dropped = changes["now_kept"], changes["now_dropped"]
    total = [f"now kept: {count(sum(kept.values()))}"]
    total += [
        f"now dropped: {count(sum(dropped.values()))}",
        f"as before: {count(changes['same'])}",
    ]
    if changes["new"]:
        total.append(f"not there before: {count(changes['new'])}")
    yield paint.bold(f"against {changes['against']}:")
    yield from _indented(", ".join(total), width)
    for sign, specs in (("-", changes["removed"]), ("+", changes["added"])):
        for spec in specs:
            yield f"  {sign} {shorten(printable(spec), width - 4)}"
    if changes["new_code"]:
        yield from _indented(f"new code: {', '.join(changes['new_code'])}", width)
    elif not changes["removed"] and not changes["added"]:
        yield "  the same filters on other grades or evaluation tasks, or in another order"
    for said, by in (("kept again, dropped before by", kept), ("dropped now by", dropped)):
        if by:
            told = ", ".join(f"{name} {count(n)}" for name, n in by.items())
            yield from _indented(f"{said}: {told}", width)


def _section(entry: Explained, paint: Paint, width: int) -> Iterator[str]:
    yield paint.bold(f"{entry['filter']}  {count(entry['dropped'])} dropped")
    if entry["overlaps"]:
        told = ", ".join(f"{name} {count(n)}" for name, n in entry["overlaps"].items())
        yield from _indented(f"of what it would drop, others would drop too: {told}", width, paint)
    for name, values in entry["measured"].items():
        told = ", ".join(f"{key} {value:g}" for key, value in values.items() if value is not None)
        yield from _indented(f"{name} over all traces: {told}", width, paint)
    if entry["errors"]:
        yield f"  it raised on {plural(entry['errors'], 'trace')}, which were dropped"
    for sample in entry["samples"]:
        yield from _sample(sample, paint, width)


def _sample(sample: Explained, paint: Paint, width: int) -> Iterator[str]:
    key = f"{sample['problem_id']} #{sample['index']}"
    question = shorten(printable(sample["question"]), width - len(key) - 4) or "(no question)"
    yield f"  {question:<{width - len(key) - 4}}  {paint.faint(key)}"
    if sample["reason"]:
        yield from _wrapped("why", printable(sample["reason"]), width)
    else:
        graded = f"graded {sample['outcome'] or 'not at all'}"
        gold = f", reference {shorten(printable(sample['gold']), 40)}" if sample["gold"] else ""
        yield from _wrapped("why", graded + gold, width)
    place = sample["excerpt"]
    before, at, after = (_clean(place[key]) for key in ("before", "at", "after"))
    label = {"trace": "where", "problem": "asked", "end": "end"}[place["where"]]
    if before or at:
        marked = f"{before}{MARK}{at}{MARK}{after}" if at else before
        shown = list(_wrapped(label, marked, width))
        yield from _painted(shown, paint)


def _painted(shown: list[str], paint: Paint) -> Iterator[str]:
    inside = False
    for line in shown:
        parts = line.split(MARK)
        painted = ""
        for number, part in enumerate(parts):
            inside = inside != (number > 0)
            painted += paint.bold(part) if inside and part.strip() else part
        yield painted


def _indented(text: str, width: int, paint: Paint | None = None) -> Iterator[str]:
    broken = textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="    ")
    yield from (paint.faint(line) if paint else line for line in broken)


def _wrapped(label: str, text: str, width: int) -> Iterator[str]:
    for number, line in enumerate(textwrap.wrap(text.strip(), width - 10) or [""]):
        yield f"    {label if number == 0 else '':<5} {line}"


def printable(text: str) -> str:
    """Text that a terminal shows and does not obey: on one line, without control characters."""
    return _clean(text).strip()


def _clean(text: str) -> str:
    return re.sub(r" +", " ", "".join(c if c.isprintable() else " " for c in text))
