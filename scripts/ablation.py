"""A table of several runs side by side: one row a run, and the mean over training seeds.

    for seed in 1 2 3; do
      distill run pocket train.seed=$seed
      distill run pocket variant=unfiltered train.seed=$seed
    done
    python scripts/ablation.py runs/pocket-*

Reads each run's report.json; runs of one recipe and variant that differ in the training seed alone
are one group.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any


def rows_of(folders: list[Path]) -> list[dict[str, Any]]:
    """What the table needs of every finished run."""
    rows = []
    for folder in folders:
        path = folder / "report.json"
        report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        headline = report.get("headline")
        if report.get("status") != "done" or not headline:
            print(f"{folder}: no finished report, left out", file=sys.stderr)
            continue
        task = report["evaluation"]["tasks"][headline["task"]]
        student = next(m for m in task["models"] if m["role"] == "student")
        variant = report["variant"] or "(as shipped)"
        rows.append(
            {
                "group": f"{report['recipe']['name']} {variant}",
                "seed": report["manifest"]["seeds"]["train"],
                "examples": report["training"]["examples"],
                "student": headline["student"],
                "base": headline["base"],
                "gain": headline["gain"],
                "interval": headline["interval"],
                "parsed": student.get("accuracy_parsed"),
            }
        )
    return sorted(rows, key=lambda row: (row["group"], row["seed"]))


def points(value: float | None) -> str:
    """A share as percent with one decimal."""
    return "-" if value is None else f"{100 * value:.1f}"


def main(folders: list[str]) -> None:
    """Print the Markdown tables."""
    rows = rows_of([Path(folder) for folder in folders])
    print("| run | seed | examples | base | student | gain, 95% interval | right if parsed |")
    print("|---|---|---|---|---|---|---|")
    groups = defaultdict(list)
    for row in rows:
        low, high = row["interval"]
        groups[row["group"]].append(row["student"])
        print(
            f"| {row['group']} | {row['seed']} | {row['examples']:,} | {points(row['base'])} | "
            f"{points(row['student'])} | {points(row['gain'])} ({points(low)} to {points(high)}) | "
            f"{points(row['parsed'])} |"
        )
    print("\n| run | seeds | student, mean over seeds | standard deviation over seeds |")
    print("|---|---|---|---|")
    for group, found in groups.items():
        spread = points(statistics.stdev(found)) if len(found) > 1 else "-"
        print(f"| {group} | {len(found)} | {points(statistics.mean(found))} | {spread} |")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1:])
