"""The select step: which of the kept traces are trained on, written as the data set.

`distill/choose.py` makes the choice; this module reads the files and writes them.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from distill.choose import Candidate, Choice, choose, draw, for_validation
from distill.errors import DataError
from distill.export import Columns, write_parquet
from distill.filter.text import CHARS_PER_TOKEN
from distill.pass_rates import PassRates
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
SPLITS = {"train": "dataset", "validation": "validation"}
"""Name of a split -> name of its files; `dataset.jsonl` is what is trained on."""

HELD_BACK = "in the validation split"
"""The reason of a final verdict that keeps a trace without training on it."""


def select_traces(
    config: Selection,
    *,
    seed: int,
    problems: Path,
    traces: Path,
    grades: Path,
    verdicts: Path,
    out: Path,
    stops: Mapping[str, int] | None = None,
) -> None:
    """Choose among the kept traces and write the data set.

    Writes `dataset.jsonl` (Example rows in an order shuffled by the seed), `dataset.parquet` (the
    same rows), with `validation` also `validation.jsonl` and `.parquet`, `verdicts.jsonl` (final,
    one per trace) and `summary.json`. The same input gives the same bytes. `grades` is read for
    `by: judge` and `pass_rate` alone; `stops` says how adaptive sampling stopped. Raises DataError
    where nothing is left to train on.
    """
    start = time.monotonic()
    asked = {p.id: p for p in read_records(Problem, problems)}
    scores = read_jsonl(grades) if config.by == "judge" else None
    rates = PassRates(grades, config, stops or {}) if config.pass_rate else None
    with traces.open("rb") as file:
        candidates = list(_candidates(asked, traces, verdicts, scores))
        unwanted = {c.key: rates.why_not(c.problem_id) for c in candidates} if rates else {}
        choice = choose(
            (c for c in candidates if unwanted.get(c.key) is None),
            config,
            seed,
            texts=lambda c: _trace(file, c).text,
        )
        chosen = choice.chosen
        if not chosen:
            raise rates.nothing_left() if rates and candidates else _nothing_left(verdicts)
        for candidate in candidates:
            if (why := unwanted.get(candidate.key)) is not None:
                choice.drop([candidate], "pass_rate", why)
        held = for_validation({c.problem_id for c in chosen}, config.validation)
        chosen.sort(key=lambda c: draw(seed, "shuffle", c.problem_id, c.index))
        splits = {
            "train": [c for c in chosen if c.problem_id not in held],
            "validation": [c for c in chosen if c.problem_id in held],
        }
        _check_split(splits, config)
        out.mkdir(parents=True, exist_ok=True)
        for name, some in splits.items():
            if some:
                rows = out / f"{SPLITS[name]}.jsonl"
                write_jsonl(rows, _examples(some, asked, file))
                write_parquet(out / f"{SPLITS[name]}.parquet", read_jsonl(rows), COLUMNS)
    write_jsonl(out / "verdicts.jsonl", _final(verdicts, choice, held))
    summary = _summary(out / "verdicts.jsonl", asked, choice, splits)
    if rates:
        summary["pass_rate"] = rates.summary()
        summary["notes"] += rates.notes()
    if choice.shares:
        summary["mix" if config.mix else "balance"] = choice.shares
    if config.validation and not splits["validation"]:
        summary["notes"].append(
            f"none of {summary['problems']} problems fell into the validation share"
        )
    summary["seconds"] = round(time.monotonic() - start, 3)
    write_atomically(out / "summary.json", json.dumps(summary, ensure_ascii=False, indent=1))


def _check_split(splits: Mapping[str, Sequence[Candidate]], config: Selection) -> None:
    if not splits["train"]:
        problems = len({c.problem_id for c in splits["validation"]})
        raise DataError(
            f"all {problems} problems fall into the validation split",
            f"select.validation is {config.validation:g}: lower it, or add problems",
        )


def _candidates(
    problems: Mapping[str, Problem],
    traces: Path,
    verdicts: Path,
    scores: Iterator[dict[str, Any]] | None,
) -> Iterator[Candidate]:
    """The kept traces. Verdicts, grades and traces stand in the same order."""
    rows = _lines(traces)
    for verdict in read_records(Verdict, verdicts):
        offset, row = next(rows, (0, {}))
        key = (verdict.problem_id, verdict.index)
        if (row.get("problem_id"), row.get("index")) != key:
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
        grade = next(scores, {}) if scores else {}
        if scores and (grade.get("problem_id"), grade.get("index")) != key:
            raise DataError(
                f"there is no grade of sample {verdict.index} of problem {verdict.problem_id} "
                "where select.by: judge wants its score",
                "grade the traces again",
            )
        if verdict.kept:
            counted = int(row.get("completion_tokens") or 0)
            problem = problems[verdict.problem_id]
            yield Candidate(
                problem.id,
                verdict.index,
                counted or round(len(row.get("text", "")) / CHARS_PER_TOKEN),
                bool(counted),
                offset,
                problem.source,
                str(problem.metadata.get("domain") or "").strip().lower(),
                float(grade.get("score") or 0),
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


def _trace(file: IO[bytes], candidate: Candidate) -> Trace:
    file.seek(candidate.offset)
    return from_row(Trace, json.loads(file.readline()))


def _examples(
    chosen: Sequence[Candidate], problems: Mapping[str, Problem], file: IO[bytes]
) -> Iterator[Example]:
    """The examples in the order of `chosen`, each trace read from its place in the file."""
    for candidate in chosen:
        trace, problem = _trace(file, candidate), problems[candidate.problem_id]
        yield Example(
            problem_id=problem.id,
            index=trace.index,
            messages=(*problem.messages, {"role": "assistant", "content": trace.text}),
            source=problem.source,
        )


def _final(verdicts: Path, choice: Choice, held: set[str]) -> Iterator[Verdict]:
    """All verdicts; a kept trace that was not chosen is dropped by `select`."""
    for verdict in read_records(Verdict, verdicts):
        reason = choice.reasons.get((verdict.problem_id, verdict.index))
        if reason is not None:
            verdict = replace(verdict, kept=False, filter="select", reason=reason)
        elif verdict.kept and verdict.problem_id in held:
            verdict = replace(verdict, reason=HELD_BACK)
        yield verdict


def _summary(
    verdicts: Path,
    problems: Mapping[str, Problem],
    choice: Choice,
    splits: Mapping[str, Sequence[Candidate]],
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
    chosen = choice.chosen
    solved = {c.problem_id for c in chosen}
    for key in solved:
        sources[problems[key].source]["problems"] += 1
    notes = list(choice.notes)
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
        "left_out": dict(choice.left_out),
        "tokens": sum(sizes),
        "token_quantiles": quantiles(sizes),
        "by_source": {name: dict(counts) for name, counts in sorted(sources.items())},
        "by_domain": dict(sorted(Counter(c.domain for c in chosen if c.domain).items())),
        "splits": {name: _split(some) for name, some in splits.items()},
        "notes": notes,
    }


def _split(some: Sequence[Candidate]) -> dict[str, int]:
    return {
        "examples": len(some),
        "problems": len({c.problem_id for c in some}),
        "tokens": sum(c.tokens for c in some),
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
    "thinking": "if chains are meant to be so short, say so with {thinking: {min_words: 1}}",
    "format": "the teacher does not close its thinking: check its tags in the catalog",
    "overlap": "the problems are in the evaluation tasks: train on others or evaluate on others",
}
