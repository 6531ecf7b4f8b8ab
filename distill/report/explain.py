"""What each filter of a finished run dropped, alone and beyond the others, with samples to read.

Everything is read from the files of the filter step and its inputs; no filter is called.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import nsmallest
from pathlib import Path
from typing import Any

from distill.errors import UsageError
from distill.records import Verdict, read_records
from distill.report.build import Source, Step, read_run
from distill.report.traces import lot, questions
from distill.step import DONE

SAMPLES = 3
AROUND = 70
"""Characters shown on each side of the place that a reason quotes."""
TAIL = 160
"""Characters of a trace's end, shown where a reason names no place."""

_QUOTED = re.compile(r"['\"“‘](.+?)['\"”’](?=[\s,.;:)]|$)", re.DOTALL)


def explain_filters(run_dir: Path) -> dict[str, Any]:
    """The numbers and samples of `distill filter --explain`, JSON-ready.

    Keys: `run`, `recipe`, `folder`, `traces`, `kept`, `bought`, `filters` (in their order, each
    with `filter`, `dropped`, `left`, `solo`, `marginal`, `overlaps`, `measured`, `errors` and
    `samples`), `kept_samples`, `changes` (see `changes_since`) and `notes`. A sample has
    `problem_id`, `index`, `filter`, `reason`, `question`, `gold`, `outcome`, `extracted` and
    `excerpt`. `solo` is what a filter would drop by itself, `marginal` what no other one drops
    (None where the step did not count it), `overlaps` what other filters would drop too. Raises
    UsageError for a run without a filter step.
    """
    source = read_run(run_dir)
    step = source.step("filter")
    if step is None:
        raise UsageError(f"{run_dir.name} was not filtered yet", "distill filter RECIPE --explain")
    pool = source.step("import", "sample")
    picked, kept = _pick(step.folder / "verdicts.jsonl")
    samples = _read(picked, source, pool)
    summary, left = step.summary, int(step.summary.get("traces", 0))
    filters = []
    for name, dropped in summary.get("dropped", {}).items():
        left -= dropped
        filters.append(
            {
                "filter": name,
                "dropped": dropped,
                "left": left,
                "solo": summary.get("solo", {}).get(name),
                "marginal": summary.get("marginal", {}).get(name),
                "overlaps": summary.get("overlaps", {}).get(name, {}),
                "measured": summary.get("measured", {}).get(name, {}),
                "errors": summary.get("errors", {}).get(name, 0),
                "samples": [samples[at] for at in picked if samples[at]["filter"] == name],
            }
        )
    return {
        "run": run_dir.name,
        "recipe": str((source.run.get("recipe") or {}).get("name") or ""),
        "folder": f"{step.folder.parent.name}/{step.folder.name}",
        "traces": summary.get("traces", 0),
        "kept": summary.get("kept", 0),
        "bought": 0 if pool is None or pool.reused else int(pool.summary.get("bought") or 0),
        "filters": filters,
        "kept_samples": [samples[at] for at in picked if at in kept],
        "changes": changes_since(step.folder),
        "notes": [n["note"] for n in source.notes if n["step"] == step.name],
    }


def _pick(path: Path) -> tuple[dict[int, Verdict], set[int]]:
    """A few dropped traces of each filter and a few kept ones by line, drawn by hash of their key.

    Also returns which of them were kept.
    """
    best: dict[str, list[tuple[str, int, Verdict]]] = {}
    for at, verdict in enumerate(read_records(Verdict, path)):
        entry = (lot((verdict.problem_id, verdict.index)), at, verdict)
        found = best.setdefault("" if verdict.kept else verdict.filter, [])
        if len(found) < SAMPLES or entry[:2] < found[-1][:2]:
            best["" if verdict.kept else verdict.filter] = nsmallest(
                SAMPLES, [*found, entry], key=lambda e: e[:2]
            )
    picked = {at: verdict for found in best.values() for _, at, verdict in found}
    return picked, {at for _, at, _ in best.get("", [])}


def _read(
    picked: Mapping[int, Verdict], source: Source, pool: Step | None
) -> dict[int, dict[str, Any]]:
    """The picked traces with their problem, grade and excerpt, by their line."""
    files = source.folder("problems", "import")
    asked = questions(
        [files / "problems.jsonl"] if files else [], {v.problem_id for v in picked.values()}
    )
    grades = source.folder("grade")
    traces = dict(_at(pool.folder / "traces.jsonl", picked)) if pool else {}
    graded = dict(_at(grades / "grades.jsonl", picked)) if grades else {}
    found = {}
    for at, verdict in picked.items():
        grade, text = graded.get(at, {}), str(traces.get(at, {}).get("text") or "")
        problem = asked.get(verdict.problem_id, {"question": "", "gold": None})
        found[at] = {
            "problem_id": verdict.problem_id,
            "index": verdict.index,
            "filter": verdict.filter,
            "reason": verdict.reason,
            **problem,
            "outcome": grade.get("outcome", ""),
            "extracted": grade.get("extracted"),
            "excerpt": excerpt(verdict.reason, text, problem["question"]),
        }
    return found


def _at(path: Path, wanted: Iterable[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows at these lines; all others are passed over unparsed."""
    lines, last = set(wanted), max(wanted, default=-1)
    with path.open("rb") as file:
        for at, raw in enumerate(file):
            if at in lines:
                yield at, json.loads(raw)
            if at >= last:
                return


def excerpt(reason: str, text: str, question: str = "") -> dict[str, str]:
    """The place that a reason quotes, with what stands around it; else the end of the trace.

    `where` is "trace", "problem" (a quote that only the question has) or "end".
    """
    for where, whole in (("trace", text), ("problem", question)):
        for quote in sorted(_QUOTED.findall(reason), key=len, reverse=True):
            if place := _find(quote, whole):
                start, end = place[0], min(place[1], place[0] + 3 * AROUND)
                first, last = max(0, start - AROUND), min(len(whole), end + AROUND)
                return {
                    "where": where,
                    "before": ("…" if first else "") + whole[first:start],
                    "at": whole[start:end],
                    "after": whole[end:last] + ("…" if last < len(whole) else ""),
                }
    tail = ("…" if len(text) > TAIL else "") + text[-TAIL:]
    return {"where": "end", "before": tail, "at": "", "after": ""}


def _find(quote: str, text: str) -> tuple[int, int] | None:
    """Where a quote stands last: reasons fold white space and shorten with an ellipsis."""
    words = max(re.split(r"…|\.\.\.", quote), key=len).split()
    if not words or len("".join(words)) < 2:
        return None
    places = re.finditer(r"\s+".join(map(re.escape, words)), text)
    return next(iter(deque((place.span() for place in places), maxlen=1)), None)


@dataclass
class _Changes:
    """Traces that changed sides between two filter steps."""

    now_kept: Counter[str] = field(default_factory=Counter)
    """By the filter that dropped them before."""
    now_dropped: Counter[str] = field(default_factory=Counter)
    """By the filter that drops them now."""
    same: int = 0
    new: int = 0
    """Traces that the step before did not have."""

    def add(self, now: Verdict, before: str | None) -> None:
        """Count a verdict; `before` is the filter that dropped it then, empty if it was kept."""
        if before is None:
            self.new += 1
        elif now.kept == (not before):
            self.same += 1
        elif now.kept:
            self.now_kept[before] += 1
        else:
            self.now_dropped[now.filter] += 1


def changes_since(folder: Path) -> dict[str, Any] | None:
    """How many traces changed sides against the filter step that was finished last before this.

    Only steps over the same traces are compared (with adaptive sampling, whose traces depend on
    the filters: traces of the same problems and generation key). None where there is none.
    """
    done = _done(folder)
    others = [
        (path.stat().st_mtime, path.parent)
        for path in folder.parent.glob(f"filter-*/{DONE}")
        if path.parent != folder and _comparable(done, _done(path.parent), folder.parent)
    ]
    if not others:
        return None
    before = max(others)[1]
    counted = _Changes()
    dropped_by = {(v.problem_id, v.index): sys.intern(v.filter) for v in _verdicts(before)}
    for verdict in _verdicts(folder):
        counted.add(verdict, dropped_by.get((verdict.problem_id, verdict.index)))
    was, now = _specs(_done(before)), _specs(done)
    return {
        "against": f"{before.parent.name}/{before.name}",
        "removed": [text for text in was if text not in now],
        "added": [text for text in now if text not in was],
        "new_code": [text for text in now if was.get(text, now[text]) != now[text]],
        "now_kept": dict(counted.now_kept.most_common()),
        "now_dropped": dict(counted.now_dropped.most_common()),
        "same": counted.same,
        "new": counted.new,
    }


def _verdicts(folder: Path) -> Iterator[Verdict]:
    return read_records(Verdict, folder / "verdicts.jsonl")


def _done(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / DONE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _comparable(one: Mapping[str, Any], other: Mapping[str, Any], steps: Path) -> bool:
    mine, theirs = one.get("inputs") or {}, other.get("inputs") or {}
    for name in ("import", "sample"):
        if name in mine and mine[name] == theirs.get(name):
            return True
    keys = [_generation_key(steps / str(of.get("sample"))) for of in (mine, theirs)]
    return bool(keys[0]) and keys[0] == keys[1] and mine.get("problems") == theirs.get("problems")


def _generation_key(folder: Path) -> str:
    try:
        return str(json.loads((folder / "summary.json").read_text())["generation_key"])
    except (OSError, ValueError, KeyError):
        return ""


def _specs(done: Mapping[str, Any]) -> dict[str, Any]:
    """The filters of a step as text, name and parameters, with the version of their code."""
    found = {}
    for spec in (done.get("config") or {}).get("filters") or []:
        params = ", ".join(f"{k}: {json.dumps(v)}" for k, v in spec.get("params", {}).items())
        name = f"{spec.get('name')} {{{params}}}" if params else str(spec.get("name"))
        found[name] = spec.get("version")
    return found
