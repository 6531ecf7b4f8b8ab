"""The model card: what the student is, what it was made of, what it can do and what not.

The trainer leaves a first card in the student's folder (base, method, how to prompt). This adds
results, data, limits and the way to reproduce it, between two marks, so that writing it again
replaces it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from distill.errors import ModelError, StoreError
from distill.report import data_tables, say, tables, words
from distill.report.markdown import code_block, escape, facts, table
from distill.report.write import Report
from distill.step import DONE, write_atomically
from distill.terms import HUB_LICENCES as HUB_LICENCES  # the data card takes it from here
from distill.terms import base_licence, duties, hub_licence, terms_of, warnings

BEGIN, END = "<!-- distill: results -->", "<!-- distill: end -->"
TRAINING = {"true": "allowed", "false": "forbidden"}
TAGS = ("distill", "reasoning", "distillation", "sft")

_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_OURS = re.compile(rf"\n*{re.escape(BEGIN)}.*?{re.escape(END)}\n*", re.DOTALL)


def write_model_card(student_dir: Path, report: Report) -> Path:
    """Extend (or write) README.md in a student's folder, and return its path.

    Raises ModelError where the folder is not there, and StoreError where README.md belongs to
    the hashed result of a finished step, which a change would make run again.
    """
    student_dir = Path(student_dir)
    if not student_dir.is_dir():
        raise ModelError(f"no model folder {student_dir}", "train the student first")
    path = student_dir / "README.md"
    _refuse_if_hashed(path)
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    write_atomically(path, render_card(report.numbers, old))
    return path


def render_card(numbers: Mapping[str, Any], old: str = "") -> str:
    """The card's text: the old card's front matter and body, with ours added or replaced."""
    front, body = _split(old)
    front = {**_front_matter(numbers), **{k: v for k, v in front.items() if k != "model-index"}}
    front["tags"] = list(dict.fromkeys([*_as_list(front.get("tags")), *TAGS]))
    front["model-index"] = _model_index(numbers)
    if not front["model-index"]:
        del front["model-index"]
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    body = _OURS.sub("\n", body).strip() or f"# {escape(numbers['name'])}\n\n{_first(numbers)}"
    return f"---\n{head}---\n\n{body}\n\n{BEGIN}\n\n{_sections(numbers)}\n\n{END}\n"


def _refuse_if_hashed(path: Path) -> None:
    step = path.parent.parent
    try:
        files = json.loads((step / DONE).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if path.relative_to(step).as_posix() in files:
        raise StoreError(
            f"{path} is part of a finished step and must stay as it is",
            f"copy {path.parent} somewhere and write the card there",
        )


def _split(text: str) -> tuple[dict[str, Any], str]:
    found = _FRONT.match(text)
    if not found:
        return {}, text
    try:
        front = yaml.safe_load(found.group(1))
    except yaml.YAMLError:
        front = None
    return (front if isinstance(front, dict) else {}), text[found.end() :]


def _as_list(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _front_matter(numbers: Mapping[str, Any]) -> dict[str, Any]:
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": numbers["base"],
    }
    if found := hub_datasets(numbers["recipe"]):
        front["datasets"] = found
    licence = base_licence(numbers["base"])
    if word := hub_licence(licence):
        front["license"] = word
    else:
        # The student inherits the terms of its base; the hub asks for a word all the same.
        front["license"] = "other"
        front["license_name"] = licence or "as-the-base-model"
    return front


def hub_datasets(recipe: Mapping[str, Any]) -> list[str]:
    """Hub names of the data sets that problems or traces are from."""
    sources = [*((recipe.get("problems") or {}).get("sources") or []), recipe.get("traces") or {}]
    names = [str(source.get("dataset") or "") for source in sources]
    return [name for name in dict.fromkeys(names) if _HUB_NAME.fullmatch(name)]


def _model_index(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    results = []
    for name, task in ((numbers["evaluation"] or {}).get("tasks") or {}).items():
        student = next((m for m in task["models"] if m["role"] == "student"), None)
        if student is None or student.get("pass@1") is None:
            continue
        metric = {
            "type": "pass@1",
            "value": round(100 * student["pass@1"], 2),
            "name": f"pass@1, mean of {task['samples']}",
            "verified": False,
        }
        results.append(
            {
                "task": {"type": "text-generation"},
                "dataset": {"name": name, "type": name},
                "metrics": [metric],
            }
        )
    return [{"name": numbers["name"], "results": results}] if results else []


def _first(numbers: Mapping[str, Any]) -> str:
    return escape(f"{say.title(numbers)}. Made with distill.")


def _sections(numbers: Mapping[str, Any]) -> str:
    recipe = numbers["recipe"]
    parts = [
        *(f"> **WARNING**: {escape(line)}." for line in warnings(recipe)),
        "## Results",
        escape(say.headline(numbers)),
        escape(say.against_others(numbers["headline"])),
        *_results(numbers),
        "## Data",
        *_data(numbers),
        "## Training",
        table(tables.stages_table(numbers["training"])),
        facts(tables.training_facts(numbers["training"])) or "Not recorded.",
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(numbers)),
        "## Licences and terms",
        facts(_terms(recipe)),
        *(escape(line) for line in duties(recipe)),
        "## Make it again",
        code_block(shlex.join(numbers["command"])),
        _whole(recipe),
    ]
    return "\n\n".join(part for part in parts if part)


def _terms(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for terms in terms_of(recipe):
        said = f"{terms.model}: {terms.licence}"
        if terms.role == "teacher":
            known = TRAINING.get(str(terms.allows_training).lower(), "not known")
            said += f"; training other models on its outputs: {known}"
        rows.append((terms.role, said))
    return rows


def _whole(recipe: Mapping[str, Any]) -> str:
    """The resolved recipe, folded away: what the command line alone does not pin down."""
    # JSON is YAML too, and lets what a page would take for a tag be written as an escape.
    text = json.dumps(recipe, ensure_ascii=False, indent=1).replace("<", "\\u003c")
    block = code_block(text, "json")
    return f"<details><summary>The recipe, with every key</summary>\n\n{block}\n\n</details>"


def _results(numbers: Mapping[str, Any]) -> list[str]:
    evaluation = numbers["evaluation"]
    if not evaluation:
        return []
    parts = [escape(f"Settings: {say.settings(evaluation)}.")]
    for name, task in evaluation["tasks"].items():
        parts.append(f"**{escape(name)}**, {words.plural(task['problems'], 'problem')}")
        parts.append(table(tables.results_table(task)))
    return parts


def _data(numbers: Mapping[str, Any]) -> list[str]:
    made = "imported" if numbers["origin"] == "imported" else "sampled"
    parts = [escape(f"Traces {made} from {numbers['teacher'] or 'an unnamed teacher'}.")]
    if numbers["funnel"]:
        dropping = [s["filter"] for s in numbers["funnel"]["stages"] if s["dropped"]]
        parts.append(escape(say.funnel(numbers)))
        parts.append(escape(f"Filters that dropped traces: {', '.join(dropping) or 'none'}."))
    parts.append(table(data_tables.sources_table(numbers["problems"])))
    return parts


def _limits(numbers: Mapping[str, Any]) -> list[str]:
    """What a reader must not conclude; every line is true of every distilled student."""
    tasks = list((numbers["evaluation"] or {}).get("tasks") or {})
    limits = []
    if tasks:
        limits.append(
            f"Measured on {escape(', '.join(tasks))} only; nothing is claimed for other tasks."
        )
    else:
        limits.append("Not evaluated.")
    lead = numbers["headline"]
    if lead:
        limits.append(
            f"{words.plural(lead['problems'], 'problem')} decided the headline; "
            f"{words.count(lead['worse'])} of them got worse by training."
        )
    limits += [
        "Trained on a teacher's outputs: the teacher's errors and terms of use come with them.",
        "No safety training was done; the base's behaviour outside the training data may change.",
    ]
    return limits
