"""Writes the three files of a report and hands back what a caller wants to know of it."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.report import say, tables, words
from distill.report.build import collect
from distill.step import write_atomically


@dataclass(frozen=True)
class Report:
    """A written report. `gain` and `interval` are shares (0.459 is 45.9 points), None if not
    measured; `path` is the page; `numbers` is what report.json holds."""

    path: Path
    headline: dict[str, Any] | None
    student: Path | None
    gain: float | None
    interval: tuple[float, float] | None
    numbers: dict[str, Any] = field(repr=False, compare=False, default_factory=dict)

    def __str__(self) -> str:
        lines = [say.title(self.numbers), say.partial(self.numbers), say.headline(self.numbers)]
        lines.append(say.against_others(self.headline))
        lines += [say.other_tasks(self.numbers), say.trained_on(self.numbers)]
        if self.student:
            lines.append(f"student  {self.student}")
        lines.append(f"report   {self.path}")
        return "\n".join(line for line in lines if line)

    def _repr_html_(self) -> str:
        """The same for a notebook, with the headline's rows as a table."""
        rows = "".join(
            f"<tr><td>{html.escape(words.role_name(row['role']))}</td>"
            f"<td>{words.percent(row['pass@1'])}</td><td>{words.bounds(row['interval'])}</td></tr>"
            for row in (self.headline or {}).get("rows", [])
        )
        head = "<tr><th>model</th><th>pass@1</th><th>95% interval</th></tr>"
        table = f"<table>{head}{rows}</table>" if rows else ""
        facts = " · ".join(f"{k} {v}" for k, v in tables.headline_facts(self.numbers))
        link = html.escape(self.path.resolve().as_uri(), quote=True)
        return (
            f"<div><h3>{html.escape(say.title(self.numbers))}</h3>"
            f"<p>{html.escape(say.partial(self.numbers))}</p>"
            f"<p><b>{html.escape(say.headline(self.numbers))}</b></p>{table}"
            f'<p>{html.escape(facts)}</p><p><a href="{link}">the whole report</a></p></div>'
        )


def write_report(run_dir: Path | str) -> Report:
    """Write report.json, report.md and report.html into a run's folder.

    Made of whatever steps the run has. Raises DataError where run.json is missing or damaged.
    """
    from distill.report.markdown import render_markdown
    from distill.report.page import render_page

    run_dir = Path(run_dir)
    numbers = collect(run_dir)
    text = json.dumps(numbers, ensure_ascii=False, indent=1, allow_nan=False)
    # What is shown is what was written, not what was in memory.
    numbers = json.loads(text)
    write_atomically(run_dir / "report.json", text + "\n")
    write_atomically(run_dir / "report.md", render_markdown(numbers))
    write_atomically(run_dir / "report.html", render_page(numbers))
    return _report(run_dir, numbers)


def _report(run_dir: Path, numbers: dict[str, Any]) -> Report:
    lead = numbers["headline"] or {}
    low, high = lead.get("interval") or (None, None)
    return Report(
        path=run_dir / "report.html",
        headline=numbers["headline"],
        student=run_dir.parent / numbers["student"] if numbers["student"] else None,
        gain=lead.get("gain"),
        interval=(low, high) if low is not None and high is not None else None,
        numbers=numbers,
    )
