"""The data card: README.md of a training set, in the form the Hugging Face hub reads.

Made of what the steps say about themselves. It lies in the folder of the select step but is no
part of the step's hash, because it names the run and the command, which several runs may share.
"""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from distill.errors import UsageError
from distill.manifest import hide_argument, hide_secrets
from distill.report import data_tables, words
from distill.report.build import Source, read_run, teacher_of
from distill.report.card import HUB_LICENCES
from distill.report.markdown import code_block, escape, facts, table
from distill.report.tables import Table
from distill.select import SPLITS
from distill.step import DONE, write_atomically

log = logging.getLogger(__name__)

MARK = "<!-- distill: data card -->"
TAGS = ("distill", "reasoning", "chain-of-thought", "sft")
LICENCES = HUB_LICENCES | {"cc0-1.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "odc-by", "bsd-3-clause"}
SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"))
LARGEST = "1M<n<10M"

LOAD = 'from datasets import load_dataset\n\nload_dataset("path/to/this/folder")'

COLUMNS = {
    "messages": "the problem's messages, and the teacher's whole output as the assistant's",
    "conversations": "the same in ShareGPT's form: `from` (human, gpt) and `value`",
    "problem_id": "the problem, by a hash of its text",
    "index": "which sample of the problem it is",
    "source": "where the problem is from",
    "system": "the system prompt",
}


def write_data_card(run_dir: Path, stage: str = "") -> Path:
    """Write README.md beside the training set of a run, or of one of its stages; return its path.

    One that somebody put there instead stays. Raises UsageError for a run that has no training set
    yet.
    """
    source = read_run(run_dir)
    source = source.at(stage) if stage else source
    folder = source.folder("select")
    if folder is None:
        raise UsageError(f"{run_dir.name} has no training set yet", "distill select RECIPE")
    files = {split: f"{name}.parquet" for split, name in SPLITS.items()}
    columns = ("messages", "problem_id", "index", "source")
    try:
        return write_card(source, folder, files, columns)
    except UsageError as error:
        log.warning("%s: it stays as it is", error.message)
        return folder / "README.md"


def write_card(
    source: Source, folder: Path, files: Mapping[str, str], columns: tuple[str, ...]
) -> Path:
    """Write the card of a run's training set into a folder that holds `files` (split -> name).

    Raises UsageError where somebody else's README.md lies there.
    """
    path = card_path(folder)
    there = {split: name for split, name in files.items() if (folder / name).is_file()}
    write_atomically(path, render(source, there, columns))
    return path


def card_path(folder: Path) -> Path:
    """Where the card of a folder goes. Raises UsageError where somebody else's README.md lies."""
    path = folder / "README.md"
    if path.is_file() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        raise UsageError(f"{path} is not a data card of distill", "give an empty folder")
    return path


def render(source: Source, files: Mapping[str, str], columns: tuple[str, ...]) -> str:
    """The card's text. The same run gives the same text."""
    front = yaml.safe_dump(_front(source, files), sort_keys=False, allow_unicode=True)
    selection = source.summary("select")
    parts = [
        f"# {escape(_name(source))}",
        MARK,
        escape(_what(source)),
        table(_splits(selection)),
        "\n".join(f"- `{name}`: {COLUMNS[name]}" for name in columns),
        code_block(LOAD, "py"),
        "## Where it is from",
        table(data_tables.sources_table(source.summary("problems", "import"))),
        escape(_origin(source)),
        "## What was left out",
        table(_left_out(source)),
        "## How it was chosen",
        facts(_chosen(source)),
        table(data_tables.shares_table(selection)),
        "\n".join(f"- {escape(str(note))}" for note in selection.get("notes") or []),
        "## Make it again",
        facts(_identity(source)),
        code_block(shlex.join(hide_argument(str(w)) for w in source.run.get("command") or [])),
    ]
    return f"---\n{front}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _front(source: Source, files: Mapping[str, str]) -> dict[str, Any]:
    examples = int(source.summary("select").get("selected") or 0)
    splits = [{"split": split, "path": name} for split, name in files.items()]
    return {
        "pretty_name": _name(source),
        **_licence(source),
        "task_categories": ["text-generation"],
        "size_categories": [next((name for most, name in SIZES if examples < most), LARGEST)],
        "tags": list(TAGS),
        "configs": [{"config_name": "default", "data_files": splits}],
    }


def _licence(source: Source) -> dict[str, Any]:
    """The licences of the problems' sources where the hub knows them all, else `other`."""
    found = source.summary("problems", "import").get("sources") or {}
    named = sorted({str(s.get("licence") or "").lower() for s in found.values()})
    if not named or not set(named) <= LICENCES:
        return {"license": "other", "license_name": "that-of-each-source"}
    return {"license": named[0] if len(named) == 1 else named}


def _recipe(source: Source) -> Mapping[str, Any]:
    found: Mapping[str, Any] = hide_secrets(source.run.get("recipe") or {})
    return found


def _name(source: Source) -> str:
    name = str(_recipe(source).get("name") or source.run_dir.name)
    return f"{name}, stage {source.stages[0]}" if len(source.stages) == 1 else name


def _what(source: Source) -> str:
    s, teacher = source.summary("select"), teacher_of(source, _recipe(source))
    return (
        f"{words.plural(s.get('selected'), 'reasoning trace')} of "
        f"{words.plural(s.get('problems'), 'problem')} "
        f"({words.count(s.get('tokens'))} tokens) by {teacher or 'an unnamed teacher'}, to train "
        "a student on. Made with distill."
    )


def _splits(selection: Mapping[str, Any]) -> Table:
    found = {n: s for n, s in (selection.get("splits") or {}).items() if s["examples"]}
    keys = ("examples", "problems", "tokens")
    rows = [[name, *(words.count(split[key]) for key in keys)] for name, split in found.items()]
    return Table(["split", *keys], rows, numeric=frozenset({1, 2, 3}))


def _origin(source: Source) -> str:
    recipe, sampled = _recipe(source), source.summary("sample")
    teacher = teacher_of(source, recipe) or "an unnamed teacher"
    if "import" in source.steps:
        text = f"{words.plural(_traces(source), 'published trace')} of {teacher} were imported."
    else:
        asked = recipe.get("sampling") or {}
        text = (
            f"{words.plural(_traces(source), 'trace')} of {teacher} were sampled at temperature "
            f"{asked.get('temperature')}, top-p {asked.get('top_p')}, up to "
            f"{words.count(asked.get('max_tokens'))} tokens each."
        )
        served = ", ".join(str(name) for name in sampled.get("served_models") or {} if name)
        text += f" Served as {served}." if served and served != teacher else ""
    return text + " The terms of use of whoever made the teacher may bind its outputs too."


def _traces(source: Source) -> int:
    return int(source.summary("select").get("traces") or 0)


def _left_out(source: Source) -> Table:
    """From all traces to the examples: what each filter and each rule of the selection dropped."""
    filtered, selection = source.summary("filter"), source.summary("select")
    left = _traces(source)
    rows = [["traces", "", words.count(left), "", ""]]
    for name, dropped in (filtered.get("dropped") or {}).items():
        left -= dropped
        effects = [(filtered.get(key) or {}).get(name) for key in ("solo", "marginal")]
        shown = ["" if effect is None else words.count(effect) for effect in effects]
        rows.append([name, words.count(dropped), words.count(left), *shown])
    for key, dropped in (selection.get("left_out") or {}).items():
        left -= dropped
        rows.append([f"select.{key}", words.count(dropped), words.count(left), "", ""])
    columns = ["left out by", "traces", "left", "it alone would", "only it does"]
    return Table(columns, rows, numeric=frozenset(range(1, 5)))


def _chosen(source: Source) -> list[tuple[str, str]]:
    recipe, grading = _recipe(source), source.summary("grade")
    asked = recipe.get("select") or {}
    outcomes = grading.get("outcomes") or {}
    judged = ", ".join(f"{words.count(n)} {name}" for name, n in outcomes.items() if n)
    judges = ", ".join(str(j.get("model")) for j in grading.get("judges") or [])
    found = [
        ("graded by", str(grading.get("grader") or "") + (f" ({judges})" if judges else "")),
        ("grades", judged),
        ("filters", ", ".join(_part(part) for part in recipe.get("filters") or [])),
        ("traces of each problem", f"at most {asked.get('per_problem')}, {asked.get('by')}"),
    ]
    for key in ("pass_rate", "per_source", "mix", "balance", "fill", "max_examples", "validation"):
        if asked.get(key):
            found.append((f"select.{key}", json.dumps(asked[key])))
    found.append(("order", f"shuffled by the seed {recipe.get('seed')}"))
    if asked.get("validation"):
        found.append(("split", "by a hash of the problem, which keeps its traces together"))
    return [(name, value) for name, value in found if value]


def _part(part: Mapping[str, Any]) -> str:
    params = part.get("params") or {}
    return f"{part.get('name')} {json.dumps(params)}" if params else str(part.get("name"))


def _identity(source: Source) -> list[tuple[str, str]]:
    step, recipe = source.step("select"), _recipe(source)
    assert step is not None, "a card is written of a training set"
    found = [
        ("recipe", f"{_name(source)}, hash {source.run_dir.name.rpartition('-')[2]}"),
        ("seed", str(recipe.get("seed"))),
        ("identity of the training set", step.id),
    ]
    try:
        files = json.loads((step.folder / DONE).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        files = {}
    for name in SPLITS.values():
        described = files.get(f"{name}.jsonl")
        if described:
            found.append((f"{name}.jsonl", f"sha256 {described['sha256']}"))
    return [(name, value) for name, value in found if value]
