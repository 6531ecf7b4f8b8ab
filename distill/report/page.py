"""The page: one HTML file with everything inside and no network.

All text from models, recipes and files is hostile: jinja2 escapes it, and the page's policy
allows neither scripts nor requests. Only the charts and the style sheet are inserted as markup.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from importlib import resources
from typing import Any

from distill.report import charts, say, tables, words
from distill.report.tables import Table


def render_page(numbers: Mapping[str, Any]) -> str:
    """The whole report as one HTML document."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("distill.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(say=say, tables=tables, words=words)
    style = resources.files("distill.report").joinpath("style.css").read_text(encoding="utf-8")
    return environment.get_template("page.html.j2").render(
        n=numbers,
        style=Markup(style),
        charts={name: Markup(svg) for name, svg in draw(numbers).items()},
        command=shlex.join(numbers["command"]),
        recipe=recipe_text(numbers["recipe"]),
        manifest=manifest_table(numbers["manifest"]),
    )


def draw(numbers: Mapping[str, Any]) -> dict[str, str]:
    """The charts of a report by name; a chart without data is the empty string."""
    lead, training = numbers["headline"], numbers["training"] or {}
    return {
        "results": charts.results_chart(lead["task"], lead["rows"]) if lead else "",
        "rates": charts.pass_rate_chart(numbers["pass_rates"]) if numbers["pass_rates"] else "",
        "lengths": charts.lengths_chart(numbers["lengths"]) if numbers["lengths"] else "",
        "loss": charts.loss_chart(training.get("curve") or []),
    }


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """The resolved recipe as YAML, as it may be saved and run again."""
    import yaml

    return str(yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)).strip()


def manifest_table(manifest: Mapping[str, Any] | None) -> Table | None:
    """What the run depended on, one line each; the recipe and file hashes stay in the JSON."""
    if not manifest:
        return None
    rows = [[key, value] for key, value in _flat(manifest, ("recipe", "steps", "command"))]
    return Table(["what", "value"], rows)


def _flat(data: Mapping[str, Any], without: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    rows = []
    for key, value in data.items():
        if key in without or value in (None, "", [], {}):
            continue
        if isinstance(value, Mapping):
            rows += [(f"{key} {inner}".strip(), text) for inner, text in _flat(value)]
        elif isinstance(value, list):
            inner = [
                ", ".join(f"{k} {v}" for k, v in item.items())
                if isinstance(item, Mapping)
                else str(item)
                for item in value
            ]
            rows.append((str(key), "; ".join(inner)))
        else:
            rows.append((str(key), str(value)))
    return rows
