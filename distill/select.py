"""The select step: which of the kept traces are trained on, written as the data set.

Every choice is made by a hash of the seed and the trace's own key, so that it depends on no
other trace: adding problems or changing a filter moves nothing that is not concerned.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill.errors import DataError
from distill.export import Columns, write_parquet
from distill.filter.text import CHARS_PER_TOKEN
from distill.mix import by_share, quotas
from distill.records import (
    Example,
    Problem,
    Trace,
    Verdict,
    from_row,
    read_jsonl,
    read_records,
    write_jsonl,
)
from distill.schema import Selection
from distill.step import write_atomically

QUANTILES = (0.1, 0.5, 0.9, 0.99)
COLUMNS: Columns = {
    "problem_id": "text",
    "index": "number",
    "messages": ("role", "content"),
    "source": "text",
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A kept trace: its key, its length in tokens (estimated where nobody counted them) and the
    byte at which its line starts in the file of traces.
    """

    problem_id: str
    index: int
    tokens: int
    counted: bool
    offset: int
    source: str = ""


def select_traces(
    config: Selection,
    *,
    seed: int,
    problems: Path,
    traces: Path,
    grades: Path,
    verdicts: Path,
    out: Path,
) -> None:
    """Choose up to `per_problem` kept traces of each problem and write the data set.

    Writes `dataset.jsonl` (Example rows in a shuffled, fixed order), `dataset.parquet` (the
    same rows), `verdicts.jsonl` (final, one per trace) and `summary.json`. The same input gives
    the same bytes. Raises DataError where nothing is left to train on.
    """
    start = time.monotonic()
    asked = {p.id: p for p in read_records(Problem, problems)}
    best = best_of(_candidates(asked, traces, verdicts), config, seed)
    if not best:
        raise _nothing_left(verdicts)
    chosen = mixed(best, config, seed)
    chosen.sort(key=lambda c: _draw(seed, "shuffle", c.problem_id, c.index))
    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(out / "dataset.jsonl", _examples(chosen, asked, traces))
    write_parquet(out / "dataset.parquet", read_jsonl(out / "dataset.jsonl"), COLUMNS)
    write_jsonl(out / "verdicts.jsonl", _final(verdicts, best, chosen, config))
    summary = _summary(out / "verdicts.jsonl", asked, chosen)
    if config.mix:
        summary["mix"] = mix_summary(best, chosen, config)
        summary["notes"] += mix_notes(summary["mix"], config)
    summary["seconds"] = round(time.monotonic() - start, 3)
    write_atomically(out / "summary.json", json.dumps(summary, ensure_ascii=False, indent=1))


def choose(candidates: Iterable[Candidate], config: Selection, seed: int) -> list[Candidate]:
    """The candidates to train on: the best of each problem, mixed over the sources."""
    return mixed(best_of(candidates, config, seed), config, seed)


def best_of(
    candidates: Iterable[Candidate], config: Selection, seed: int
) -> dict[str, list[Candidate]]:
    """Up to `per_problem` candidates of each problem, in the order of the problems.

    Ties of `shortest` and `longest` go to the smaller sample index.
    """
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        groups[candidate.problem_id].append(candidate)
    order = {
        "shortest": lambda c: (c.tokens, c.index),
        "longest": lambda c: (-c.tokens, c.index),
        "random": lambda c: (_draw(seed, "sample", c.problem_id, c.index), c.index),
    }[config.by]
    return {
        key: sorted(group, key=order)[: config.per_problem] if len(group) > 1 else group
        for key, group in groups.items()
    }


def mixed(best: Mapping[str, Sequence[Candidate]], config: Selection, seed: int) -> list[Candidate]:
    """What `mix` and `max_examples` leave of `best`.

    They keep whole problems in the order of their hash, so that a larger number only adds; the
    last problem of a source may lose some of its traces.
    """
    if config.max_examples is None and not config.mix:
        return [c for group in best.values() for c in group]
    by_hash = sorted(best, key=lambda key: _draw(seed, "problem", key))
    chosen = [c for key in by_hash for c in best[key]]
    if config.mix:
        room = quotas(Counter(c.source for c in chosen), config.mix, config.max_examples)
        taken: Counter[str] = Counter()
        kept = []
        for candidate in chosen:
            taken[candidate.source] += 1
            if taken[candidate.source] <= room[candidate.source]:
                kept.append(candidate)
        chosen = kept
    return chosen[: config.max_examples]


def mix_summary(
    best: Mapping[str, Sequence[Candidate]], chosen: Sequence[Candidate], config: Selection
) -> dict[str, dict[str, float | None]]:
    """For each source what was wanted (None: not named), there to be had, and taken."""
    available = Counter(c.source for group in best.values() for c in group)
    taken = Counter(c.source for c in chosen)
    return {
        name: {
            "wanted": config.mix.get(name),
            "available": available[name],
            "selected": taken[name],
        }
        for name in [*config.mix, *sorted(available.keys() - config.mix.keys())]
    }


def mix_notes(mix: Mapping[str, Mapping[str, Any]], config: Selection) -> list[str]:
    """What a reader must know about a mix that did not come out as written."""
    if not by_share(config.mix):
        return [
            f"source '{name}' gave {row['available']:,} of the {int(row['wanted']):,} examples "
            "that the mix wants"
            for name, row in mix.items()
            if row["wanted"] and row["available"] < row["wanted"]
        ]
    notes = [
        f"source '{name}' has no share in the mix: its {row['available']:,} examples were left out"
        for name, row in mix.items()
        if not row["wanted"]
    ]
    scarce = [n for n, row in mix.items() if row["wanted"] and row["selected"] == row["available"]]
    left = sum(row["available"] - row["selected"] for row in mix.values() if row["wanted"])
    if scarce and left:
        notes.append(
            f"the mix is as large as source '{scarce[0]}' allows: {left:,} examples of the others "
            "were left out"
        )
    return notes


def _draw(seed: int, *what: object) -> bytes:
    """A reproducible random number for one thing, independent of all others."""
    return hashlib.sha256("\0".join(map(str, (seed, *what))).encode()).digest()


def _candidates(
    problems: Mapping[str, Problem], traces: Path, verdicts: Path
) -> Iterator[Candidate]:
    """The kept traces. Verdicts and traces stand in the same order."""
    rows = _lines(traces)
    for verdict in read_records(Verdict, verdicts):
        offset, row = next(rows, (0, {}))
        if (row.get("problem_id"), row.get("index")) != (verdict.problem_id, verdict.index):
            raise DataError(
                f"{verdicts} does not fit {traces}: verdict on sample {verdict.index} of problem "
                f"{verdict.problem_id} where the trace is sample {row.get('index')} of "
                f"{row.get('problem_id')}",
                "filter the traces again",
            )
        if verdict.problem_id not in problems:
            raise DataError(
                f"sample {verdict.index} of problem {verdict.problem_id} has no problem",
                "traces and problems belong to different runs",
            )
        if verdict.kept:
            counted = int(row.get("completion_tokens") or 0)
            tokens = counted or round(len(row.get("text", "")) / CHARS_PER_TOKEN)
            source = problems[verdict.problem_id].source
            yield Candidate(
                verdict.problem_id, verdict.index, tokens, bool(counted), offset, source
            )
    if next(rows, None) is not None:
        raise DataError(f"{traces} has more traces than {verdicts} verdicts", "filter them again")


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSONL file with the byte at which each line starts."""
    offset = 0
    with path.open("rb") as file:
        for raw in file:
            if raw.strip():
                yield offset, json.loads(raw)
            offset += len(raw)


def _examples(
    chosen: Sequence[Candidate], problems: dict[str, Problem], traces: Path
) -> Iterator[Example]:
    """The examples in the order of `chosen`, each trace read from its place in the file."""
    with traces.open("rb") as file:
        for candidate in chosen:
            file.seek(candidate.offset)
            trace = from_row(Trace, json.loads(file.readline()))
            problem = problems[candidate.problem_id]
            yield Example(
                problem_id=problem.id,
                index=trace.index,
                messages=(*problem.messages, {"role": "assistant", "content": trace.text}),
                source=problem.source,
            )


def _final(
    verdicts: Path,
    best: Mapping[str, Sequence[Candidate]],
    chosen: Sequence[Candidate],
    config: Selection,
) -> Iterator[Verdict]:
    """All verdicts; a kept trace that was not chosen is dropped by `select`."""
    keys = {(c.problem_id, c.index) for c in chosen}
    among = {(c.problem_id, c.index): c.source for group in best.values() for c in group}
    taken = Counter(c.source for c in chosen)
    limit = f", at most {config.max_examples} examples" if config.max_examples else ""
    for verdict in read_records(Verdict, verdicts):
        key = (verdict.problem_id, verdict.index)
        if verdict.kept and key not in keys:
            source = among.get(key)
            if source is not None and config.mix:
                reason = f"not among the {taken[source]} examples of '{source}' in the mix{limit}"
            else:
                per = f"{config.per_problem} chosen per problem ({config.by})"
                reason = f"not among the {per}{limit}"
            verdict = replace(verdict, kept=False, filter="select", reason=reason)
        yield verdict


def _summary(
    verdicts: Path, problems: dict[str, Problem], chosen: Sequence[Candidate]
) -> dict[str, Any]:
    dropped: Counter[str] = Counter()
    sources: dict[str, Counter[str]] = defaultdict(Counter)
    traces = 0
    for verdict in read_records(Verdict, verdicts):
        traces += 1
        counts = sources[problems[verdict.problem_id].source]
        counts["traces"] += 1
        counts["kept"] += verdict.kept or verdict.filter == "select"
        counts["selected"] += verdict.kept
        if not verdict.kept:
            dropped[verdict.filter] += 1
    solved = {c.problem_id for c in chosen}
    for key in solved:
        sources[problems[key].source]["problems"] += 1
    notes = []
    sizes = [c.tokens for c in chosen]
    unknown = sum(not c.counted for c in chosen)
    if unknown:
        notes.append(
            f"{unknown} of {len(chosen)} traces came without a token count; theirs is "
            "estimated at 4 characters a token"
        )
    return {
        "traces": traces,
        "kept": len(chosen) + dropped["select"],
        "selected": len(chosen),
        "problems": len(solved),
        "dropped": dict(dropped.most_common()),
        "tokens": sum(sizes),
        "token_quantiles": quantiles(sizes),
        "by_source": {name: dict(counts) for name, counts in sorted(sources.items())},
        "notes": notes,
    }


def quantiles(sizes: Sequence[int]) -> dict[str, float]:
    """Mean, extremes and QUANTILES of token counts; a quantile is a value that occurs."""
    ordered = sorted(sizes)
    named = {f"p{q * 100:g}": ordered[int(q * (len(ordered) - 1))] for q in QUANTILES}
    mean = round(sum(ordered) / len(ordered), 1)
    return {"mean": mean, "min": ordered[0], **named, "max": ordered[-1]}


def _nothing_left(verdicts: Path) -> DataError:
    dropped = Counter(v.filter for v in read_records(Verdict, verdicts) if not v.kept)
    if not dropped:
        return DataError("there are no traces to select from", "sample or import some first")
    worst = dropped.most_common(1)[0][0]
    ways = ", ".join(f"{name} {count}" for name, count in dropped.most_common())
    return DataError(
        f"no trace is left to train on: of {dropped.total()}, the filters dropped {ways}",
        _ADVICE.get(worst, f"look at the reasons in {verdicts}, or leave '{worst}' out of filters"),
    )


_ADVICE = {
    "truncated": "raise sampling.max_tokens, or use easier problems",
    "correct": "use easier problems, a stronger teacher or a larger sampling.n; if the answers "
    "look right, see what the grader extracted in grades.jsonl",
    "format": "the teacher does not close its thinking: check its tags in the catalog",
    "overlap": "the problems are in the evaluation tasks: train on others or evaluate on others",
}
