"""A comparison of runs as page, Markdown and JSON that carry the same numbers."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.report import charts, markdown, words
from distill.report.page import render
from distill.report.tables import Table
from distill.step import write_atomically

Numbers = Mapping[str, Any]


def write_comparison(numbers: Numbers, folder: Path) -> Path:
    """Write comparison.json, .md and .html into `folder`; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(words.clean(dict(numbers)), ensure_ascii=False, indent=1, allow_nan=False)
    numbers = json.loads(text)
    write_atomically(folder / "comparison.json", text + "\n")
    write_atomically(folder / "comparison.md", as_markdown(numbers))
    page = folder / "comparison.html"
    write_atomically(page, as_page(numbers))
    return page


def as_page(numbers: Numbers) -> str:
    """One HTML document, like a report's: no network, no script."""
    drawn = {
        name: charts.results_chart(
            name,
            [
                {
                    "role": words.shorten(arm["label"], 28),
                    "pass@1": arm["score"],
                    "interval": arm["interval"],
                }
                for arm in task["arms"]
            ],
        )
        for name, task in numbers["tasks"].items()
    }
    return render(
        "comparison.html.j2",
        charts=drawn,
        n=numbers,
        title=title(numbers),
        tasks={
            name: (results_table(task), sentence(name, task))
            for name, task in numbers["tasks"].items()
        },
        recipe=recipe_table(numbers),
        data=data_table(numbers),
        steps=steps_table(numbers),
        command=shlex.join(numbers.get("command") or []),
    )


def as_markdown(numbers: Numbers) -> str:
    """The same as GitHub-flavoured Markdown."""
    parts = [f"# {markdown.escape(title(numbers))}"]
    parts += [f"**{markdown.escape(text)}**" for text in numbers["warnings"]]
    for name, task in numbers["tasks"].items():
        parts += [f"## {markdown.escape(name)}", markdown.escape(sentence(name, task))]
        parts.append(markdown.table(results_table(task)))
    parts += ["## What differs", markdown.table(recipe_table(numbers)) or "The recipes do not."]
    parts += ["## What was trained on", markdown.table(data_table(numbers))]
    parts += ["## Steps", markdown.table(steps_table(numbers))]
    if numbers.get("command"):
        parts += ["## Do it again", markdown.code_block(shlex.join(numbers["command"]))]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_text(numbers: Numbers) -> str:
    """What a terminal shows: the warnings and the results."""
    lines = [f"note: {text}" for text in numbers["warnings"]]
    for name, task in numbers["tasks"].items():
        lines += ["", sentence(name, task), *_aligned(results_table(task))]
    return "\n".join(lines).strip()


def title(numbers: Numbers) -> str:
    """What is compared with what."""
    first, *others = (arm["label"] for arm in numbers["arms"])
    if len(others) == 1:
        return f"{others[0]} against {first}"
    return f"{len(others)} variants against {first}"


def sentence(name: str, task: Numbers) -> str:
    """On how many problems, and which arms are clearly different."""
    text = f"{name}: {words.plural(task['problems'], 'common problem')}"
    out = {run: n for run, n in task["left_out"].items() if n}
    if out:
        told = ", ".join(f"{n:,} of {run}" for run, n in out.items())
        text += f" (left out, because not all runs were asked them: {told})"
    better = [a["label"] for a in task["arms"] if a["clear"] and a["difference"] > 0]
    worse = [a["label"] for a in task["arms"] if a["clear"] and a["difference"] < 0]
    known = [a for a in task["arms"] if a["difference"] is not None]
    reference = task["arms"][0]["label"]
    if better:
        text += f". Clearly better than {reference}: {', '.join(better)}"
    if worse:
        text += f". Clearly worse than {reference}: {', '.join(worse)}"
    if known and not better and not worse:
        text += f". No arm is clearly different from {reference}: every interval includes zero"
    return f"{text}."


def results_table(task: Numbers) -> Table:
    """An arm a row: its score, and its difference from the first."""
    rows = []
    if task["base"] is not None:
        rows.append(["base", words.percent(task["base"]), *[""] * 6])
    for arm in task["arms"]:
        measured = arm["difference"] is not None
        rows.append(
            [
                arm["label"],
                words.percent(arm["score"]),
                words.bounds(arm["interval"]),
                "" if arm["seed_deviation"] is None else f"{100 * arm['seed_deviation']:.1f}",
                words.points(arm["difference"]) if measured else "",
                words.bounds(arm["difference_interval"], signed=True) if measured else "",
                words.p_value(arm["p_adjusted"]) if measured else "",
                f"{100 * arm['detectable']:.1f}" if arm["detectable"] is not None else "",
            ]
        )
    columns = ["arm", "pass@1", "95% interval", "seeds' deviation", "points", "95% interval"]
    columns += ["p, corrected", "detectable"]
    kept = [i for i in range(len(columns)) if i == 0 or any(row[i] for row in rows)]
    return Table(
        [columns[i] for i in kept],
        [[row[i] for i in kept] for row in rows],
        numeric=frozenset(range(1, len(kept))),
        strong=frozenset(i for i, row in enumerate(rows) if row[0] == task["arms"][0]["label"]),
    )


def recipe_table(numbers: Numbers) -> Table | None:
    """The keys of the recipes that differ."""
    rows = [[d["key"], *map(_value, d["values"])] for d in numbers["recipe"]]
    labels = [arm["label"] for arm in numbers["arms"]]
    return Table(["key", *labels], rows) if rows else None


def data_table(numbers: Numbers) -> Table:
    """What each arm was trained on."""
    rows = [
        [
            arm["label"],
            *(
                words.count(arm[key]) if arm[key] is not None else ""
                for key in ("seeds", "examples", "problems", "tokens", "updates")
            ),
            str(arm["method"] or ""),
            words.decimal(arm["loss"]) if arm["loss"] is not None else "",
            words.duration(arm["train_seconds"]) if arm["train_seconds"] is not None else "",
        ]
        for arm in numbers["arms"]
    ]
    columns = ["arm", "seeds", "examples", "problems", "tokens an epoch", "updates", "method"]
    columns += ["final loss", "training"]
    return Table(columns, rows, numeric=frozenset({1, 2, 3, 4, 5, 7, 8}))


def steps_table(numbers: Numbers) -> Table:
    """Which steps all runs share."""
    total = sum(len(arm["runs"]) for arm in numbers["arms"])
    rows = [
        [s["step"], "shared by all" if s["different"] == 1 else f"{s['different']} different"]
        for s in numbers["steps"]
    ]
    return Table(["step", f"in {words.plural(total, 'run')}"], rows)


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return words.shorten(text, 120)


def _aligned(table: Table) -> list[str]:
    lines: list[Sequence[str]] = [table.columns, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    return [
        "  ".join(
            cell.rjust(width) if i in table.numeric else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
