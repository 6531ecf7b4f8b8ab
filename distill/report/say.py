"""The report's sentences: what was found, in words that do not claim more than the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill.report.words import bounds, count, p_value, percent, plural, points

Numbers = Mapping[str, Any]


def title(numbers: Numbers) -> str:
    """What was distilled from what into what."""
    base, teacher = short_name(numbers["base"]), short_name(numbers["teacher"])
    if base and teacher:
        return f"{base} learns from {teacher}"
    return str(numbers["name"])


def short_name(model: str) -> str:
    """The last part of a hub name or path: deepseek-ai/DeepSeek-R1 -> DeepSeek-R1."""
    return model.rstrip("/").split("/")[-1]


def verdict(lead: Numbers | None) -> str:
    """One word pair for the big figure: did the student gain, lose, or neither?"""
    if not lead or lead.get("gain") is None:
        return "not measured"
    low, high = lead.get("interval") or (None, None)
    if low is None or high is None:
        return "difference without an interval"
    if low > 0:
        return "gained"
    return "lost" if high < 0 else "no clear difference"


def headline(numbers: Numbers) -> str:
    """The gain in one or two sentences, as plain text."""
    lead = numbers["headline"]
    if not lead:
        return "The student was not compared with its base, so this report claims no gain."
    rates = {row["role"]: row["pass@1"] for row in lead["rows"]}
    samples = lead.get("samples")
    measure = "accuracy" if samples == 1 else f"pass@1 (mean of {samples} samples)"
    text = (
        f"{measure} on {lead['task']} went from {percent(rates.get('base'))} to "
        f"{percent(rates.get('student'))}: {points(lead['gain'])} points, 95% interval "
        f"{bounds(lead['interval'], signed=True)} over {plural(lead['problems'], 'problem')}"
    )
    text += f" ({p_value(lead['p'])})." if lead.get("p") is not None else "."
    if verdict(lead) == "no clear difference":
        text += " The interval contains zero: this run shows no clear difference."
    return text[0].upper() + text[1:]


def against_best(lead: Numbers | None) -> str:
    """The stricter comparison, where the base was also measured at its best."""
    best = (lead or {}).get("against_best")
    if not best:
        return ""
    return (
        f"Against the base at its best, under its own template or with examples: "
        f"{points(best.get('difference'))} points "
        f"({bounds(best.get('interval'), signed=True)})."
    )


def partial(numbers: Numbers) -> str:
    """What this run does not have."""
    if not numbers["partial"]:
        return ""
    status, missing = numbers["status"], numbers["missing_steps"]
    state = {"failed": "The run failed.", "running": "The run was still going."}.get(status, "")
    if not missing:
        return f"{state} All steps have results."
    return f"{state} Partial report; without results: {', '.join(missing)}.".strip()


def funnel(data: Numbers) -> str:
    """The two ends of the funnel, and whether the files agree."""
    share = percent(data["end"] / data["start"]) if data["start"] else percent(0.0)
    text = (
        f"{plural(data['start'], 'trace')} went in, {count(data['end'])} ({share}) were selected "
        f"for training."
    )
    if data["adds_up"]:
        return text + " Every trace in between is accounted for."
    return text + " The steps in between do NOT add up: files of this run disagree."


def changes(data: Numbers, samples: int | None) -> str:
    """How many problems went which way."""
    text = (
        f"{plural(data['better'], 'problem')} better, {count(data['worse'])} worse, "
        f"{count(data['same'])} unchanged."
    )
    if samples:
        text += (
            f" Counted by right answers among {plural(samples, 'sample')} each; "
            "single changes may be chance."
        )
    return text


def settings(evaluation: Numbers) -> str:
    """The sampling settings under which all models were compared."""
    found = evaluation.get("settings") or {}
    pairs = [f"{k} {v}" for k, v in found.items() if isinstance(v, int | float | str)]
    return ", ".join(pairs)
