"""The report's tables on problems, traces and the training set."""

from __future__ import annotations

from collections.abc import Mapping

from distill.report.tables import Numbers, Table, count_of, tokens_of
from distill.report.words import (
    MISSING,
    count,
    money,
    percent,
    plural,
    short_count,
    shorten,
)


def funnel_table(funnel: Numbers, origin: str) -> Table:
    """From the sampled traces to those trained on; `left` of the last row is the training set."""
    start = max(funnel["start"], 1)
    rows = [[origin, "", count(funnel["start"]), "", "", _came_in(funnel)]]
    bars: list[float | None] = [1.0]
    graded = [f"{count(n)} {name}" for name, n in funnel["outcomes"].items() if n]
    if graded:
        rows.append(
            ["graded", "", count(sum(funnel["outcomes"].values())), "", "", ", ".join(graded)]
        )
        bars.append(1.0)
    for stage in funnel["stages"]:
        effects = ["" if stage[key] is None else count(stage[key]) for key in ("solo", "marginal")]
        example = shorten(stage.get("example", ""), 110)
        rows.append(
            [stage["filter"], count(stage["dropped"]), count(stage["left"]), *effects, example]
        )
        bars.append(stage["left"] / start)
    rows.append(["training set", "", count(funnel["end"]), "", "", ""])
    bars.append(funnel["end"] / start)
    columns = ["stage", "dropped", "left", "would drop alone", "only it drops"]
    columns.append("reason, of one example")
    keep = [i for i in range(6) if i not in (3, 4) or any(row[i] for row in rows)]
    return Table(
        [columns[i] for i in keep],
        [[row[i] for i in keep] for row in rows],
        numeric=frozenset(range(1, len(keep) - 1)),
        bars=bars,
        strong=frozenset({len(rows) - 1}),
    )


def _came_in(funnel: Numbers) -> str:
    parts = [f"of {plural(funnel['problems'], 'problem')}"] if funnel["problems"] else []
    if funnel["failed"]:
        parts.append(f"{plural(funnel['failed'], 'request')} failed")
    return "; ".join(parts)


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


def measured_table(filtering: Numbers | None) -> Table | None:
    """What filters measured on all traces, such as the share of words in the problem's language."""
    found = (filtering or {}).get("measured") or {}
    keys = ("mean", "p10", "p50", "p90")
    rows = [
        [name, what, *(_figure(values.get(key)) for key in keys)]
        for name, by_what in found.items()
        for what, values in by_what.items()
    ]
    columns = ["filter", "measured", "mean", "10%", "median", "90%"]
    return Table(columns, rows, numeric=frozenset(range(2, 6))) if rows else None


def judges_table(grading: Numbers | None) -> Table | None:
    """What each judge model was asked, and how it decided."""
    judges = (grading or {}).get("judges") or []
    keys = ("questions", "correct", "wrong", "error", "disagreed", "wanted", "failed")
    rows = [
        [
            str(j.get("model") or ""),
            *(count_of(j, key) for key in keys),
            tokens_of(j, "completion_tokens"),
            money(j["cost"]) if j.get("cost") else "",
        ]
        for j in judges
    ]
    columns = ["judge", "answers", "correct", "wrong", "no verdict", "replies disagree"]
    columns += ["replies asked", "failed", "tokens", "cost"]
    return Table(columns, rows, numeric=frozenset(range(1, 10))) if rows else None


def shares_table(selection: Numbers | None) -> Table | None:
    """What `mix` (sources) or `balance` (domains) wanted, what there was, and what was taken."""
    s = selection or {}
    what, found = ("source", s.get("mix")) if s.get("mix") else ("domain", s.get("balance"))
    if not found:
        return None
    whole = sum(row["selected"] for row in found.values())
    shares = any((row["wanted"] or 1) < 1 for row in found.values())
    rows = [
        [
            name or "none",
            "" if row["wanted"] is None else _wanted(row["wanted"]),
            count(row["available"]),
            count(row["selected"]),
            percent(row["selected"] / whole) if whole else "",
        ]
        for name, row in found.items()
    ]
    columns = [what, "share wanted" if shares else "at most", "available", "selected", "share"]
    return Table(columns, rows, numeric=frozenset(range(1, 5)))


def kept_table(selection: Numbers | None) -> Table | None:
    """What became of the traces of each source; None where there is one source only."""
    found = (selection or {}).get("by_source") or {}
    if len(found) < 2:
        return None
    keys = ("traces", "kept", "selected", "problems")
    rows = [[name, *(count(row.get(key) or 0) for key in keys)] for name, row in found.items()]
    columns = ["source", "traces", "past the filters", "selected", "problems with one"]
    return Table(columns, rows, numeric=frozenset(range(1, 5)))


def selection_facts(selection: Numbers | None, recipe: Numbers) -> list[tuple[str, str]]:
    """How the training set was chosen, and what it is."""
    s, asked = selection or {}, recipe.get("select") or {}
    if not s:
        return []
    facts = [("traces per problem", f"{asked['per_problem']}, {asked['by']}")] if asked else []
    for name, split in (s.get("splits") or {}).items():
        if split["examples"]:
            told = (
                f"{plural(split['examples'], 'example')} of {plural(split['problems'], 'problem')}"
            )
            facts.append((name, f"{told}, {short_count(split['tokens'])} tokens"))
    facts.append(("not chosen", left_out(s)))
    return [(name, value) for name, value in facts if value]


def left_out(selection: Numbers) -> str:
    """Kept traces that were not chosen, by the key of the recipe that decided."""
    found = selection.get("left_out") or {}
    return ", ".join(f"{count(n)} by {key}" for key, n in found.items())


def _wanted(value: float) -> str:
    return percent(value, 2 if value < 0.02 else 1) if value < 1 else count(value)


def _figure(value: float | None) -> str:
    if value is None:
        return MISSING
    return count(value) if abs(value) >= 1000 else f"{value:.3g}".replace("-", "−")


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
        ("traces wanted", count_of(s, "wanted")),
        ("bought", count_of(s, "bought")),
        ("reused from the pool", count_of(s, "reused")),
        ("failed requests", count_of(s, "failed")),
        ("cut off at the limit", count_of(s, "truncated")),
        ("tokens written", tokens_of(s, "completion_tokens")),
        ("tokens bought", tokens_of(s, "tokens_bought")),
        ("tokens per second", count_of(s, "tokens_per_second")),
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


def traces_caption(trace: Numbers, unit: str) -> str:
    """One line over a trace that is shown."""
    fate = "" if trace["kept"] else f"by {trace['filter']}: {shorten(trace['reason'], 120)} · "
    return f"{fate}graded {trace['outcome']} · {plural(trace['length'], unit.rstrip('s'))}"


def _promise(deterministic: bool | None) -> str:
    if deterministic is None:
        return ""
    return "promised by the engine" if deterministic else "not promised by the engine"
