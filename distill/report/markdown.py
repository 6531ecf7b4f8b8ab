"""The report as GitHub-flavoured Markdown: the page's tables and sentences, without charts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from distill.report import data_tables, result_tables, say, tables, words
from distill.report.results import KINDS
from distill.report.tables import Table


def render_markdown(numbers: Mapping[str, Any]) -> str:
    """The whole report as one Markdown document."""
    parts = [
        *_head(numbers),
        *_results(numbers),
        *_data(numbers),
        *_training(numbers),
        *_end(numbers),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(t: Table | None) -> str:
    """A pipe table; empty for no table."""
    if t is None:
        return ""
    rule = ["---:" if i in t.numeric else "---" for i in range(len(t.columns))]
    lines = [t.columns, rule, *t.rows]
    first, *rest = ["| " + " | ".join(line) + " |" for line in _cells(lines)]
    return "\n".join([first, "| " + " | ".join(rule) + " |", *rest[1:]])


def escape(text: str) -> str:
    """Text that GitHub prints as it is: on one line, no markup, no HTML, no mention."""
    line = " ".join(text.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", line)
    return line.replace("@", "&#64;") if re.search(r"(^|\s)@\w", line) else line


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names and values."""
    return "\n".join(f"- {escape(name)}: {escape(value)}" for name, value in pairs)


def code_block(text: str, language: str = "sh") -> str:
    """A fenced block that its own text cannot close; empty for no text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}" if text else ""


def _cells(lines: Iterable[Iterable[str]]) -> list[list[str]]:
    return [[escape(cell) for cell in line] for line in lines]


def _head(n: Mapping[str, Any]) -> list[str]:
    return [
        f"# {escape(say.title(n))}",
        escape(say.partial(n)),
        f"**{escape(say.headline(n))}**",
        escape(say.against_others(n["headline"])),
        escape(say.other_tasks(n)),
        escape(say.trained_on(n)),
        facts(tables.headline_facts(n)),
    ]


def _results(n: Mapping[str, Any]) -> list[str]:
    evaluation = n["evaluation"]
    if not evaluation or not evaluation["tasks"]:
        return ["## Results", "Nothing was evaluated in this run."]
    parts = ["## Results"]
    if say.settings(evaluation):
        text = f"Settings of all models: {say.settings(evaluation)}."
        parts.append(escape(text))
    if say.asked(evaluation):
        parts.append(escape(f"How they were asked: {say.asked(evaluation)}."))
    parts.append(table(result_tables.tasks_table(evaluation)))
    for name, task in evaluation["tasks"].items():
        parts.append(f"### {escape(name)} ({words.plural(task['problems'], 'problem')})")
        parts += _task(name, task)
    parts.append(table(result_tables.lm_eval_table(evaluation)))
    return parts


def _task(name: str, task: Mapping[str, Any]) -> list[str]:
    parts = [table(tables.results_table(task)), escape(say.unjudged(task))]
    parts += [escape(say.overlap(task)), table(result_tables.clean_table(task))]
    parts += [table(result_tables.differences_table(task)), escape(say.seen(task))]
    parts.append(table(result_tables.parts_table(task)))
    if found := result_tables.answers_table(task):
        parts += ["What the answers look like (lengths in tokens):", table(found)]
    if found := result_tables.tokens_table(task):
        parts += ["pass@1 if every answer had to end within so many tokens:", table(found)]
    parts += [table(result_tables.groups_table(task, kind)) for kind in KINDS]
    if found := result_tables.published_table(task):
        parts += [f"**Published on {escape(name)}, for orientation**", say.ORIENTATION]
        parts.append(table(found))
    if task["changes"]:
        against = task["against"]
        parts.append(escape(say.changes(task["changes"], against, task["samples"])))
        for side, title in (("gained", "Largest gains"), ("lost", "Largest losses")):
            rows = table(result_tables.changes_table(task["changes"][side], against))
            parts += [f"**{title}**", rows or "None."]
    return parts


def _data(n: Mapping[str, Any]) -> list[str]:
    parts = ["## Data", table(data_tables.sources_table(n["problems"]))]
    parts += [escape(say.adaptive(n)), table(data_tables.stops_table(n["sampling"]))]
    parts.append(table(data_tables.limits_table(n["sampling"])))
    if n["funnel"]:
        parts += [escape(say.funnel(n)), table(data_tables.funnel_table(n["funnel"], n["origin"]))]
    else:
        parts.append("No trace was filtered in this run.")
    rates = n["pass_rates"]
    if rates:
        rows = zip(rates["labels"], rates["before"], rates["after"], strict=True)
        cells = [[label, words.count(b), words.count(a)] for label, b, a in rows]
        columns = [rates["axis"], "problems", "with a selected trace"]
        parts.append(table(Table(columns, cells, numeric=frozenset({1, 2}))))
    if n["lengths"]:
        parts.append(f"Lengths in {n['lengths']['unit']}:")
        parts.append(table(data_tables.lengths_table(n["lengths"], n["origin"])))
    parts.append(table(data_tables.outcomes_table(n["grading"])))
    parts.append(table(data_tables.judges_table(n["grading"])))
    parts.append(table(data_tables.measured_table(n["filtering"])))
    parts.append(facts(data_tables.selection_facts(n["selection"], n["recipe"])))
    parts.append(table(data_tables.shares_table(n["selection"])))
    parts.append(table(data_tables.kept_table(n["selection"])))
    parts.append(facts(data_tables.sampling_facts(n["sampling"])))
    return parts


def _training(n: Mapping[str, Any]) -> list[str]:
    if not n["training"]:
        return ["## Training", "Nothing was trained in this run."]
    stages = table(tables.stages_table(n["training"]))
    return ["## Training", stages, facts(tables.training_facts(n["training"]))]


def _end(n: Mapping[str, Any]) -> list[str]:
    notes = [f"- **{escape(x['step'])}**: {escape(x['note'])}" for x in n["notes"]]
    return [
        "## Notes",
        "\n".join(notes) or "No step degraded anything.",
        "## Do it again",
        code_block(shlex.join(n["command"])) or "The command was not recorded.",
        table(tables.steps_table(n)),
        f"Run `{n['run']}`. All numbers are in `report.json`.",
    ]
