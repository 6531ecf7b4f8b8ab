"""The report's tables, once: the page and the Markdown print the same cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distill.report.words import (
    MISSING,
    bounds,
    count,
    decimal,
    duration,
    money,
    p_value,
    percent,
    plural,
    points,
    role_name,
    short_count,
    shorten,
)

Numbers = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Cells as text. `numeric` are the columns to align right; `bars` shares to draw in a row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()
    bars: Sequence[float] = field(default_factory=list)
    strong: frozenset[int] = frozenset()


def results_table(task: Numbers) -> Table:
    """One row for each model on one task; columns nobody measured are left out."""
    samples = task.get("samples")
    several = samples is None or samples > 1
    wanted = [
        ("pass@1", lambda m: percent(m.get("pass@1"))),
        ("95% interval", lambda m: bounds(m.get("interval"))),
        (f"pass@{samples}", lambda m: percent(m.get("pass@k")) if several else MISSING),
        (f"cons@{samples}", lambda m: percent(m.get("cons@k")) if several else MISSING),
        ("gradable", lambda m: percent(m.get("parsed_rate"))),
        ("right if gradable", lambda m: percent(m.get("accuracy_parsed"))),
        ("cut off", lambda m: percent(m.get("truncated"))),
        ("tokens", lambda m: count(m.get("mean_tokens"))),
    ]
    rows = [[role_name(m["role"]), *(cell(m) for _, cell in wanted)] for m in task["models"]]
    strong = frozenset(i for i, m in enumerate(task["models"]) if m["role"] == "student")
    return _measured(["model", *(title for title, _ in wanted)], rows, strong)


def differences_table(task: Numbers) -> Table | None:
    """Paired differences on the same problems, in points."""
    rows = [
        [
            difference_name(name),
            points(d.get("difference")),
            bounds(d.get("interval"), signed=True),
            p_value(d.get("p")),
            _with_bounds(d.get("format"), d.get("format_interval")),
            _with_bounds(d.get("reasoning"), d.get("reasoning_interval")),
            _with_bounds(d.get("parsed_difference"), d.get("parsed_interval")),
        ]
        for name, d in task["differences"].items()
    ]
    columns = ["difference", "points", "95% interval", "sign-flip test"]
    columns += ["of it format", "of it reasoning", "where both gradable"]
    return _measured(columns, rows) if rows else None


def _measured(
    columns: Sequence[str], rows: Sequence[Sequence[str]], strong: frozenset[int] = frozenset()
) -> Table:
    """A table of figures without the columns in which nothing was measured."""
    keep = [i for i in range(len(columns)) if i == 0 or {row[i] for row in rows} != {MISSING}]
    return Table(
        [columns[i] for i in keep],
        [[row[i] for i in keep] for row in rows],
        numeric=frozenset(range(1, len(keep))),
        strong=strong,
    )


def _with_bounds(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return MISSING
    return f"{points(value)} ({bounds(interval, signed=True)})"


def difference_name(name: str) -> str:
    """`student-base-best` -> student − base at its best."""
    first, _, second = name.partition("-")
    return f"{role_name(first)} − {role_name(second)}"


def groups_table(task: Numbers, kind: str) -> Table | None:
    """Base and student within each source or difficulty."""
    groups = [g for g in task["groups"] if g["kind"] == kind]
    if not groups:
        return None
    rows = [
        [
            str(g["name"]),
            count(g["problems"]),
            percent(g["base"]),
            bounds(g["base_interval"]),
            percent(g["student"]),
            bounds(g["student_interval"]),
            points(g["difference"]),
            bounds(g["interval"], signed=True),
        ]
        for g in groups
    ]
    interval = "95% interval"
    base = role_name(task["against"] or "base")
    columns = [kind, "problems", base, interval, "student", interval, "points", interval]
    return _measured(columns, rows)


def lm_eval_table(evaluation: Numbers) -> Table | None:
    """lm-eval's own tasks, as it scored them, with its standard errors."""
    found = evaluation.get("lm_eval") or []
    roles = list(dict.fromkeys(role for row in found for role in row["values"]))

    def cell(row: Numbers, role: str) -> str:
        value, error = row["values"].get(role), row["stderr"].get(role)
        return decimal(value) + (f" ± {decimal(error)}" if error is not None else "")

    rows = [[row["task"], row["metric"], *(cell(row, role) for role in roles)] for row in found]
    columns = ["task", "metric", *map(role_name, roles)]
    return Table(columns, rows, numeric=frozenset(range(2, len(columns)))) if rows else None


def changes_table(rows: Sequence[Numbers], against: str | None) -> Table | None:
    """Problems with the share of right answers of base and student."""
    if not rows:
        return None
    cells = [
        [
            shorten(r["question"], 90) or r["problem_id"],
            percent(r["base"], 0),
            percent(r["student"], 0),
        ]
        for r in rows
    ]
    columns = ["problem", role_name(against or "base"), "student"]
    return Table(columns, cells, numeric=frozenset({1, 2}))


def funnel_table(funnel: Numbers, origin: str) -> Table:
    """From the sampled traces to the selected ones; `left` of the last row is the data set."""
    start = max(funnel["start"], 1)
    rows = [[origin, "", count(funnel["start"]), "", ""]]
    bars = [1.0]
    for stage in funnel["stages"]:
        alone = "" if stage["solo"] is None else count(stage["solo"])
        example = shorten(stage.get("example", ""), 110)
        rows.append(
            [stage["filter"], count(stage["dropped"]), count(stage["left"]), alone, example]
        )
        bars.append(stage["left"] / start)
    columns = ["filter", "dropped", "left", "would drop alone", "reason, of one example"]
    if all(not row[3] for row in rows):
        columns.pop(3)
        rows = [row[:3] + row[4:] for row in rows]
    return Table(columns, rows, numeric=frozenset(range(1, len(columns) - 1)), bars=bars)


def sources_table(problems: Numbers | None) -> Table | None:
    """Where the problems came from and what was lost on the way in."""
    sources = (problems or {}).get("sources") or {}
    if not isinstance(sources, Mapping) or not sources:
        return None
    keys = ["rows", "problems", "duplicates", "without_gold", "bad", "heldout"]
    titles = ["rows", "problems", "duplicates", "without answer", "unreadable", "held out"]
    rows = [
        [str(label), *(count(s.get(k)) for k in keys), s.get("licence") or "not stated"]
        for label, s in sources.items()
    ]
    return Table(["source", *titles, "licence"], rows, numeric=frozenset(range(1, 7)))


def outcomes_table(grading: Numbers | None) -> Table | None:
    """How the grader judged the traces."""
    outcomes = (grading or {}).get("outcomes") or {}
    total = sum(outcomes.values())
    if not total:
        return None
    rows = [[name, count(n), percent(n / total)] for name, n in outcomes.items() if n]
    rows.sort(key=lambda row: -outcomes[row[0]])
    return Table(["outcome", "traces", "share"], rows, numeric=frozenset({1, 2}))


def lengths_table(lengths: Numbers, origin: str) -> Table:
    """Quantiles of the lengths."""
    rows = []
    for name, title in (("before", origin), ("after", "trained on")):
        q = lengths[name]["quantiles"]
        if q:
            keys = ("n", "mean", "p5", "p50", "p95", "max")
            rows.append([title, *(count(q[k]) for k in keys)])
    columns = ["traces", "number", "mean", "5%", "median", "95%", "longest"]
    return Table(columns, rows, numeric=frozenset(range(1, 7)))


def sampling_facts(sampling: Numbers | None) -> list[tuple[str, str]]:
    """What the sampler did, or what was imported."""
    s = sampling or {}
    facts = [
        ("teacher", str(s.get("teacher") or "")),
        ("served as", ", ".join(str(name) for name in s.get("served_models") or [] if name)),
        ("traces wanted", _count(s, "wanted")),
        ("bought", _count(s, "bought")),
        ("reused from the pool", _count(s, "reused")),
        ("failed requests", _count(s, "failed")),
        ("cut off at the limit", _count(s, "truncated")),
        ("tokens written", _tokens(s, "completion_tokens")),
        ("tokens bought", _tokens(s, "tokens_bought")),
        ("tokens per second", _count(s, "tokens_per_second")),
        ("cost", money(s["cost"]) if s.get("cost") else ""),
        ("equal text on a repeat", _promise(s.get("deterministic"))),
        ("generation key", str(s.get("generation_key") or "")),
    ]
    return [(name, value) for name, value in facts if value]


STOPS = {
    "enough": "has the accepted traces that were wanted",
    "most": "was sampled as often as allowed",
    "hopeless": "given up: going on is not worth the tokens",
    "failed": "its requests failed",
    "budget": "the shared budget was spent",
}
"""Why adaptive sampling was done with a problem (`stopped` of the step's summary), in words."""


def stops_table(sampling: Numbers | None) -> Table | None:
    """With adaptive sampling: how many problems ended for which reason."""
    stopped = (sampling or {}).get("stopped") or {}
    total = sum(stopped.values())
    if not total:
        return None
    names = [*(name for name in STOPS if name in stopped), *(n for n in stopped if n not in STOPS)]
    rows = [
        [name, STOPS.get(name, ""), count(stopped[name]), percent(stopped[name] / total)]
        for name in names
    ]
    return Table(["stopped", "why", "problems", "share"], rows, numeric=frozenset({2, 3}))


def limits_table(sampling: Numbers | None) -> Table | None:
    """What each growing limit of tokens brought; None where there was one limit only."""
    found = (sampling or {}).get("limits") or []
    if len(found) < 2:
        return None
    keys = ("limit", "asked", "ended", "cut", "tokens")
    rows = [[count(row.get(key)) for key in keys] for row in found]
    columns = ["limit of tokens", "asked", "ended", "cut off", "new tokens"]
    return Table(columns, rows, numeric=frozenset(range(5)))


def training_facts(training: Numbers | None) -> list[tuple[str, str]]:
    """What the trainer did."""
    t = training or {}
    facts = [
        ("method", str(t.get("method") or "")),
        ("parameters", _tokens(t, "params")),
        ("trained parameters", _tokens(t, "trainable_params")),
        ("examples", _count(t, "examples")),
        ("left out as too long", _count(t, "left_out_too_long")),
        ("tokens, an epoch", _tokens(t, "tokens")),
        ("tokens in the loss", _tokens(t, "trained_tokens")),
        ("epochs", _plain(t, "epochs")),
        ("updates", _count(t, "updates")),
        ("final loss", decimal(t["final_loss"]) if t.get("final_loss") is not None else ""),
        ("time", duration(t["seconds"]) if t.get("seconds") is not None else ""),
        ("tokens per second", _count(t, "tokens_per_second")),
        ("device", str(t.get("device") or "")),
        ("precision", str(t.get("precision") or "")),
        ("template", str(t.get("template") or "")),
        ("positions", _plain(t, "positions")),
    ]
    return [(name, value) for name, value in facts if value]


def steps_table(numbers: Numbers) -> Table | None:
    """The steps of the run, where they lie and what they took."""
    if not numbers["steps"]:
        return None
    rows = [
        [
            s["step"],
            duration(s["seconds"]),
            "" if s["tokens"] is None else short_count(s["tokens"]),
            money(s["cost"]) if s["cost"] else "",
            "from an earlier run" if s["reused"] else "in this run",
            s["folder"],
        ]
        for s in numbers["steps"]
    ]
    columns = ["step", "time", "tokens", "cost", "made", "folder"]
    return Table(columns, rows, numeric=frozenset({1, 2, 3}))


def headline_facts(numbers: Numbers) -> list[tuple[str, str]]:
    """The row of figures under the headline."""
    sampling, training = numbers["sampling"] or {}, numbers["training"] or {}
    funnel = numbers["funnel"]
    kept = f"{count(funnel['end'])} of {count(funnel['start'])}" if funnel else MISSING
    facts = [("traces trained on", kept)]
    if numbers["origin"] == "sampled":
        cost = sampling.get("cost")
        facts.append(("teacher's tokens", short_count(sampling.get("completion_tokens"))))
        facts.append(("cost", "no price set" if not cost else money(cost)))
    facts.append(("tokens an epoch", short_count(training.get("tokens"))))
    facts.append(("time, all steps", duration(numbers["seconds"])))
    if training.get("device"):
        facts.append(("trained on", str(training["device"])))
    return facts


def traces_caption(trace: Numbers, unit: str) -> str:
    """One line over a trace that is shown."""
    fate = "" if trace["kept"] else f"by {trace['filter']}: {shorten(trace['reason'], 120)} · "
    return f"{fate}graded {trace['outcome']} · {plural(trace['length'], unit.rstrip('s'))}"


def _count(data: Numbers, key: str) -> str:
    return count(data[key]) if data.get(key) is not None else ""


def _tokens(data: Numbers, key: str) -> str:
    # Published traces come without counts, which the import step writes as zero.
    return short_count(data[key]) if data.get(key) else ""


def _plain(data: Numbers, key: str) -> str:
    return f"{data[key]:g}" if isinstance(data.get(key), int | float) else ""


def _promise(deterministic: bool | None) -> str:
    if deterministic is None:
        return ""
    return "promised by the engine" if deterministic else "not promised by the engine"
