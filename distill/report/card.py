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

BEGIN, END = "<!-- distill: results -->", "<!-- distill: end -->"
TAGS = ("distill", "reasoning", "distillation", "sft")
HUB_LICENCES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "llama3.1", "llama3.3"}

_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
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
    licence = base_licence(numbers["base"])
    if licence.lower() in HUB_LICENCES:
        front["license"] = licence.lower()
    else:
        # The student inherits the terms of its base; the hub asks for a word all the same.
        front["license"] = "other"
        front["license_name"] = licence or "as-the-base-model"
    return front


def base_licence(base: str) -> str:
    """The licence of a base's weights where the catalog knows it, else empty."""
    from distill.models import student_entry

    try:
        return str(getattr(student_entry(base), "licence", "") or "")
    except ModelError:
        return ""


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
    parts = [
        "## Results",
        escape(say.headline(numbers)),
        escape(say.against_others(numbers["headline"])),
        *_results(numbers),
        "## Data",
        *_data(numbers),
        "## Training",
        facts(tables.training_facts(numbers["training"])) or "Not recorded.",
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(numbers)),
        "## Make it again",
        code_block(shlex.join(numbers["command"])),
    ]
    return "\n\n".join(part for part in parts if part)


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
