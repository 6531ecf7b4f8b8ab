"""What happened to the traces: the funnel, pass rates and lengths, and a few traces to read.

A corpus may have millions of traces, so files are streamed: outcomes and lengths are kept,
texts only of the traces that are shown.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.report.reading import STRICT, Reader
from distill.report.words import clip
from distill.select import HELD_BACK
from distill.thinking import split

Key = tuple[str, int]
KEPT_SHOWN = 3
DROPPED_SHOWN = 6


@dataclass(slots=True)
class Ledger:
    """One entry for each trace, in the order of the traces."""

    tokens: dict[Key, int] = field(default_factory=dict)
    outcomes: dict[Key, str] = field(default_factory=dict)
    dropped: dict[Key, tuple[str, str]] = field(default_factory=dict)
    """Filter and reason of the dropped ones."""
    judged: set[Key] = field(default_factory=set)
    held: set[Key] = field(default_factory=set)
    """Selected ones that the validation split keeps from training."""
    unit: str = "tokens"

    @property
    def kept(self) -> list[Key]:
        return [key for key in self.judged if key not in self.dropped]

    @property
    def trained(self) -> list[Key]:
        return [key for key in self.kept if key not in self.held]


def read_ledger(
    read: Reader, pool: Path | None, grade: Path | None, *verdicts: Path | None
) -> Ledger:
    """Read what there is of traces, grades and final verdicts; a None folder is not there.

    With the verdicts of several stages a trace is kept if any of them keeps it.
    """
    ledger = Ledger()
    for row in read.rows(_in(pool, "traces.jsonl")):
        key = _key(row)
        ledger.tokens[key] = int(row.get("completion_tokens") or 0)
    if ledger.tokens and not any(ledger.tokens.values()):
        # Published traces come without counts: characters are what can be compared.
        ledger.unit = "characters"
        for row in read.rows(_in(pool, "traces.jsonl")):
            ledger.tokens[_key(row)] = len(row.get("text") or "")
    for row in read.rows(_in(grade, "grades.jsonl")):
        ledger.outcomes[_key(row)] = str(row.get("outcome", "ungraded"))
    trained: set[Key] = set()
    files = [_in(folder, "verdicts.jsonl") for folder in verdicts]
    for row in (row for file in files for row in read.rows(file)):
        key = _key(row)
        if row.get("kept"):
            (ledger.held if row.get("reason") == HELD_BACK else trained).add(key)
        elif key not in ledger.judged:
            ledger.dropped[key] = (str(row.get("filter") or "?"), str(row.get("reason") or ""))
        ledger.judged.add(key)
    ledger.held -= trained
    for key in ledger.held | trained:
        ledger.dropped.pop(key, None)
    return ledger


@dataclass(frozen=True)
class Told:
    """What the steps' own summaries say about the way from problems to training, to be checked.

    `order` are the filters; `solo` and `marginal` are what each would drop alone, and what no
    other drops. `selected` and `examples` (rows of the training set) are None before `select`,
    `too_long` and `bad` (left out by the trainer) and `fitted` before training.
    """

    order: Sequence[str] = ()
    solo: Mapping[str, int] = field(default_factory=dict)
    marginal: Mapping[str, int] = field(default_factory=dict)
    problems: int | None = None
    failed: int = 0
    left_out: str = ""
    selected: int | None = None
    examples: int | None = None
    fitted: int | None = None
    too_long: int = 0
    bad: int = 0


def funnel(ledger: Ledger, told: Told) -> dict[str, Any]:
    """From all sampled traces to those trained on, one row for each stage, with an example.

    `gaps` says where the files and the summaries disagree; empty if every trace is accounted for.
    """
    drops = Counter(name for name, _ in ledger.dropped.values())
    examples = _examples(ledger)
    names = list(dict.fromkeys([*told.order, *sorted(drops.keys() - {"select"})]))
    if "select" in drops:
        names = [name for name in names if name != "select"] + ["select"]
    rows = [(name, drops[name], examples.get(name)) for name in names]
    rows = [(n, d, told.left_out or e if n == "select" else e) for n, d, e in rows]
    held = len(ledger.held)
    rows += [("validation", held, "kept from training, to measure on")] if held else []
    rows += [("too long", told.too_long, "longer than train.max_length")] if told.too_long else []
    rows += [("untrainable", told.bad, "see the notes of the training")] if told.bad else []
    left = start = len(ledger.judged)
    stages = []
    for name, dropped, example in rows:
        left -= dropped
        effects = {"solo": told.solo.get(name), "marginal": told.marginal.get(name)}
        stage = {"filter": name, "dropped": dropped, "left": left, **effects}
        stages.append(stage | ({"example": example} if example else {}))
    outcomes, gaps = Counter(ledger.outcomes.values()), _gaps(ledger, told, left)
    return {
        "problems": told.problems,
        "failed": told.failed,
        "start": start,
        "outcomes": dict(outcomes.most_common()),
        "stages": stages,
        "end": left,
        "adds_up": not gaps,
        "gaps": gaps,
    }


def _examples(ledger: Ledger) -> dict[str, str]:
    """The reason of one dropped trace for each filter, drawn by hash."""
    found: dict[str, tuple[str, str]] = {}
    for key, (name, reason) in ledger.dropped.items():
        candidate = (lot(key), reason)
        found[name] = min(found.get(name, candidate), candidate)
    return {name: reason for name, (_, reason) in found.items()}


def _gaps(ledger: Ledger, told: Told, end: int) -> list[str]:
    """Every place where a number of the funnel is not what another file says."""
    judged, kept = len(ledger.judged), len(ledger.kept)
    checks = [
        (len(ledger.tokens) or judged, judged, "traces, but verdicts on"),
        (len(ledger.outcomes) or judged, judged, "grades, but verdicts on"),
        (kept if told.selected is None else told.selected, kept, "examples selected, but kept"),
        (
            len(ledger.trained) if told.examples is None else told.examples,
            len(ledger.trained),
            "examples in the training set, but verdicts that keep",
        ),
        (
            end if told.fitted is None else told.fitted,
            end,
            "examples trained on, but here are left",
        ),
    ]
    return [f"{one:,} {what} {other:,}" for one, other, what in checks if one != other]


def pass_rates(ledger: Ledger) -> dict[str, Any] | None:
    """How many problems have which share of correct traces: all of them, and the selected ones.

    With at most 16 traces for every problem the bins are `k of n`; otherwise tenths, with
    never and always apart, since those two are no estimate but a fact.
    """
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for (problem, _), outcome in ledger.outcomes.items():
        if outcome != "ungraded":
            total[problem] += 1
            right[problem] += outcome == "correct"
    if not total:
        return None
    sizes = set(total.values())
    n = max(sizes)
    exact = len(sizes) == 1 and n <= 16
    labels = [str(k) for k in range(n + 1)] if exact else _tenth_labels()
    kept = {problem for problem, _ in ledger.kept}
    before, after = [0] * len(labels), [0] * len(labels)
    for problem, of in total.items():
        bin_ = right[problem] if exact else _tenth(right[problem], of)
        before[bin_] += 1
        after[bin_] += problem in kept
    axis = f"correct traces out of {n}" if exact else "share of correct traces"
    return {"labels": labels, "axis": axis, "before": before, "after": after}


def _tenth_labels() -> list[str]:
    return ["never", *(f"{10 * k}%" for k in range(1, 10)), "always"]


def _tenth(right: int, of: int) -> int:
    if right in (0, of):
        return 10 * (right == of)
    return min(max(round(10 * right / of), 1), 9)


def lengths(ledger: Ledger, bins: int = 24) -> dict[str, Any] | None:
    """Histogram and quantiles of the traces' lengths, of all and of the selected ones."""
    if not ledger.tokens:
        return None
    everything = sorted(ledger.tokens.values())
    chosen = sorted(ledger.tokens.get(key, 0) for key in ledger.trained)
    width = _round_width(everything[-1] / bins)
    edges = [width * k for k in range(everything[-1] // width + 2)]
    result: dict[str, Any] = {"unit": ledger.unit, "edges": edges}
    for name, values in (("before", everything), ("after", chosen)):
        counts = [0] * (len(edges) - 1)
        for value in values:
            counts[value // width] += 1
        result[name] = {"counts": counts, "quantiles": _quantiles(values)}
    return result


def _round_width(raw: float) -> int:
    """The next 1, 2 or 5 times a power of ten, so that bin edges are readable."""
    width = 1
    while width < raw:
        width = width * 5 // 2 if str(width)[0] == "2" else width * 2
    return width


def _quantiles(values: list[int]) -> dict[str, float] | None:
    if not values:
        return None
    at = {f"p{q}": values[min(len(values) - 1, len(values) * q // 100)] for q in (5, 50, 95)}
    return {"n": len(values), "mean": sum(values) / len(values), **at, "max": values[-1]}


def choose_traces(ledger: Ledger, stages: Iterable[Mapping[str, Any]]) -> dict[Key, str]:
    """A few kept traces and one of each filter that dropped most; drawn by hash, not by looks."""
    chosen = dict.fromkeys(sorted(ledger.kept, key=lot)[:KEPT_SHOWN], "")
    by_filter: dict[str, list[Key]] = defaultdict(list)
    for key, (name, _) in ledger.dropped.items():
        by_filter[name].append(key)
    busy = sorted((s for s in stages if s["filter"] in by_filter), key=lambda s: -s["dropped"])
    for stage in busy[:DROPPED_SHOWN]:
        chosen[min(by_filter[stage["filter"]], key=lot)] = stage["filter"]
    return chosen


def read_traces(
    read: Reader, pool: Path, problems: Path, chosen: Mapping[Key, str], ledger: Ledger
) -> list[dict[str, Any]]:
    """The chosen traces with their problems, in the order of `chosen`."""
    rows = read.rows(pool / "traces.jsonl")
    texts = {key: row for row in rows if (key := _key(row)) in chosen}
    asked = questions([problems / "problems.jsonl"], {problem for problem, _ in texts}, read)
    shown = []
    for key, name in chosen.items():
        row = texts.get(key)
        if row is None:
            continue
        shown.append(
            {
                "problem_id": key[0],
                "index": key[1],
                "kept": not name,
                "filter": name,
                "reason": ledger.dropped.get(key, ("", ""))[1],
                "outcome": ledger.outcomes.get(key, "ungraded"),
                "length": ledger.tokens.get(key, 0),
                **asked.get(key[0], {"question": "", "gold": None}),
                **take_apart(str(row.get("text") or "")),
            }
        )
    return shown


def take_apart(text: str) -> dict[str, Any]:
    """Thinking and answer of an output; `finished` is False for a chain that never closed."""
    parts = split(text)
    return {
        "reasoning": None if parts.reasoning is None else clip(parts.reasoning),
        "answer": clip(parts.answer),
        "finished": parts.finished,
    }


def questions(
    files: Iterable[Path], wanted: set[str], read: Reader = STRICT
) -> dict[str, dict[str, Any]]:
    """Question and gold of the wanted problems, from the first file that has them."""
    found: dict[str, dict[str, Any]] = {}
    for path in files:
        for problem in read.problems(path):
            if problem.id in wanted and problem.id not in found:
                found[problem.id] = {"question": problem.question, "gold": problem.gold}
    return found


def _in(folder: Path | None, name: str) -> Path | None:
    return folder / name if folder else None


def _key(row: Mapping[str, Any]) -> Key:
    # Interned: the same id is read thousands of times from four files.
    return (sys.intern(str(row.get("problem_id", ""))), int(row.get("index", 0)))


def lot(key: Key) -> str:
    """The place of a trace in a draw that depends on nothing but its key."""
    return hashlib.sha256(f"{key[0]}/{key[1]}".encode()).hexdigest()
