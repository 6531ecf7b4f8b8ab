"""The page's numbers as files to save, inside the page: it has no other place to fetch from."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

Numbers = Mapping[str, Any]
Rows = list[list[Any]]

MODEL = ("k", "pass@k", "cons@k", "parsed_rate", "accuracy_parsed", "truncated", "mean_tokens")
DIFFERENCE = ("p", "p_adjusted", "detectable", "better", "worse", "same", "format", "reasoning")
CURVES = ("task", "model", "tokens", "pass@1")
STAGE = ("filter", "dropped", "left", "solo", "marginal")
CURVE = ("step", "loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu")
LEFT_OUT = ("traces", "manifest")
"""Parts of report.json that are text, not numbers, and would make the page twice as large."""


@dataclass(frozen=True)
class File:
    """A file of the page: its name, what is in it, and a `data:` address that holds it."""

    name: str
    about: str
    href: str


def files(numbers: Numbers) -> list[File]:
    """The tables that the report has as CSV, and all its numbers as JSON."""
    tasks = (numbers["evaluation"] or {}).get("tasks") or {}
    stages = (numbers["funnel"] or {}).get("stages") or []
    curve = (numbers["training"] or {}).get("curve") or []
    ends = ("low", "high")
    tables: list[tuple[str, str, Sequence[str], Rows]] = [
        ("results", "models", ("task", "model", "pass@1", *ends, *MODEL), _models(tasks)),
        (
            "differences",
            "paired differences",
            ("task", "difference", "value", *ends, *DIFFERENCE),
            _differences(tasks),
        ),
        (
            "tokens",
            "accuracy against tokens",
            ("task", "model", "tokens", "pass@1"),
            _curves(tasks),
        ),
        ("funnel", "what each filter did", STAGE, [_cells(row, STAGE) for row in stages]),
        ("training", "what was logged", CURVE, [_cells(row, CURVE) for row in curve]),
    ]
    made = [
        File(f"{name}.csv", about, _address("text/csv", _csv(columns, rows)))
        for name, about, columns, rows in tables
        if rows
    ]
    whole = json.dumps(_without_texts(numbers), ensure_ascii=False, separators=(",", ":"))
    about = "all of report.json but traces and manifest"
    return [*made, File("numbers.json", about, _address("application/json", whole))]


def _models(tasks: Numbers) -> Rows:
    return [
        [task, m["role"], m.get("pass@1"), *_ends(m), *_cells(m, MODEL)]
        for task, found in tasks.items()
        for m in found["models"]
    ]


def _differences(tasks: Numbers) -> Rows:
    return [
        [task, pair, d.get("difference"), *_ends(d), *_cells(d, DIFFERENCE)]
        for task, found in tasks.items()
        for pair, d in found["differences"].items()
    ]


def _curves(tasks: Numbers) -> Rows:
    return [
        [task, m["role"], *point]
        for task, found in tasks.items()
        for m in found["models"]
        for point in m.get("within_tokens") or []
    ]


def _ends(row: Numbers) -> Sequence[float | None]:
    return row.get("interval") or (None, None)


def _cells(row: Numbers, keys: Iterable[str]) -> list[Any]:
    return [row.get(key) for key in keys]


def _csv(columns: Sequence[str], rows: Rows) -> str:
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_harmless(cell) for cell in row] for row in rows])
    return text.getvalue()


def _harmless(cell: Any) -> Any:
    """A name that a spreadsheet would run as a formula becomes text there."""
    risky = isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r")
    return f"'{cell}" if risky else cell


def _without_texts(numbers: Numbers) -> dict[str, Any]:
    kept = {key: value for key, value in numbers.items() if key not in LEFT_OUT}
    if evaluation := numbers["evaluation"]:
        tasks = {
            name: {k: v for k, v in task.items() if k != "pairs"}
            for name, task in evaluation["tasks"].items()
        }
        kept["evaluation"] = {**evaluation, "tasks": tasks}
    return kept


def _address(kind: str, text: str) -> str:
    encoded = base64.b64encode(text.encode("utf-8")).decode("ascii")
    return f"data:{kind};charset=utf-8;base64,{encoded}"
