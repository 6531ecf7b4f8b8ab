"""Feeds mutated traces to graders and filters; looks for crashes, hangs, and what cannot be kept.

    python scripts/fuzz.py [--minutes 5] [--seed 0] [--data ../shared/data] [--checks]

Starts from real traces and labelled answers where they are, else from a few of its own, and cuts,
splices, repeats and corrupts them. Every text goes through `final_answer` and the `quick` of all
graders that need no model, and through all filters that look at one trace. With `--checks` also
through `Judge` with workers, in batches; slower. `--atheris` lets atheris (pip install atheris)
choose the bytes, guided by coverage.

A finding is an exception, a `quick` or a filter of more than two seconds and a microsecond for each
character, an outcome that there is not, or a grade or reason that cannot be written as UTF-8. It is
printed with the text's repr and the exit code is 1.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.errors import UsageError
from distill.filter import KNOWN as FILTERS
from distill.filter.parts import Part
from distill.filter.parts import build as build_filters
from distill.grade import Judge
from distill.grade.base import Check, StagedGrader, bounded
from distill.grade.extract import final_answer
from distill.grade.parts import JUDGE, KNOWN, GraderSpec, build
from distill.records import OUTCOMES, Grade, Problem, Trace, to_row
from distill.schema import Grading, PartSpec
from distill.thinking import convert, split

OWN = [
    ("1/2", "<think>Half?</think> The answer is \\boxed{\\frac{1}{2}}."),
    ("(-\\infty, 2]", "x \\le 2, so **Answer:** $(-\\infty,2]$"),
    ("\\begin{pmatrix}1&2\\end{pmatrix}", "\\boxed{\\begin{bmatrix} 1 & 2 \\end{bmatrix}}"),
    ("B", "<answer>(B) Because</answer>"),
    ("18", "She has 9 * 2 = 18.\n#### 18"),
    ("12,345", "\\boxed{12345} and \\boxed{3\\sqrt[3]{5}}"),
]  # fmt: skip
SIGNS = "\\{}[]()$^_&#%~*`<>/|.,;:!?-+=0123456789abxyzEÉ½π∞−\u200b\u202e\ufeff\ud800\x00\x1b\n\r\t "
MARKS = [
    "\\boxed{",
    "\\frac",
    "\\sqrt[",
    "\\left(",
    "\\begin{matrix}",
    "\\text{",
    "<think>",
    "</think>",
]
MARKS += [
    "<answer>",
    "</answer>",
    "final answer is",
    "Answer:",
    "####",
    "```python",
    '{"a":',
    "^{",
    "!",
]
CARRIED: list[dict[str, Any]] = [
    {},
    {"choices": ["one", "two", "three"]},
    {"schema": {"type": "object", "required": ["a"]}},
    {"instructions": [{"id": "punctuation:no_comma", "kwargs": {}}]},
    {"tests": [{"input": "1", "output": "2"}]},
    {"reasoning_gym": {"task": "chain_sum", "entry": {"answer": "3", "metadata": {}}}},
]
PARAMS: dict[str, dict[str, Any]] = {"regex": {"pattern": "[0-9]+"}, "code": {"lazy": True}}
QUICK_S = 2.0


def corpus(data: Path) -> list[tuple[str, str]]:
    """Pairs (gold, text) to start from."""
    found = list(OWN)
    for path in sorted((data / "grading").glob("*.jsonl")):
        for row in _rows(path, 300):
            if row.get("pred"):
                found.append((str(row.get("gold")), str(row["pred"])))
    for path in sorted((data / "traces").glob("*.jsonl")):
        for row in _rows(path, 20):
            texts = [v for v in row.values() if isinstance(v, str)]
            if texts:
                found.append((min(texts, key=len)[:200], max(texts, key=len)))
    return found


def _rows(path: Path, most: int) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for _, line in zip(range(most), file, strict=False):
            yield json.loads(line)


def mutated(rng: random.Random, text: str, other: str) -> str:
    """The text after one to six changes."""
    for _ in range(rng.randint(1, 6)):
        at, to = sorted(rng.randint(0, len(text)) for _ in range(2))
        change = rng.randrange(8)
        if change == 0:
            text = text[:at] + text[to:]
        elif change == 1:
            text = text[:at] + rng.choice(MARKS) + text[at:]
        elif change == 2:
            text = text[:at] + "".join(rng.choices(SIGNS, k=rng.randint(1, 8))) + text[at:]
        elif change == 3:
            piece = text[at : min(to, at + 60)]
            text = text[:at] + piece * rng.choice((2, 5, 50)) + text[at:]
        elif change == 4:
            start = rng.randint(0, len(other))
            text = text[:at] + other[start : start + 80] + text[to:]
        elif change == 5:
            raw = bytearray(text.encode("utf-8", "surrogatepass")[:4000])
            for _ in range(rng.randint(1, 4)):
                if raw:
                    raw[rng.randrange(len(raw))] = rng.randrange(256)
            text = raw.decode("utf-8", rng.choice(("replace", "surrogateescape", "ignore")))
        elif change == 6:
            text = rng.choice(MARKS) * rng.choice((3, 40, 2000)) + text[-200:]
        else:
            text = text.replace(rng.choice(SIGNS), rng.choice(SIGNS))
        text = text[:200_000]
    return text


def graders() -> list[StagedGrader]:
    """All that need no model and no package that is not here."""
    made = []
    for name in KNOWN:
        if name != JUDGE:
            try:
                made.append(build(GraderSpec(name, PARAMS.get(name, {}), "")))
            except UsageError as error:
                print(f"left out: {name} ({error.message})", file=sys.stderr)
    return made


def filters() -> list[Part]:
    """All that look at one trace."""
    chain = build_filters([PartSpec(name=name) for name in FILTERS if name != "difficulty"], Path())
    return [part for part in chain if not part.has_state]


def filtered(chain: list[Part], problem: Problem, trace: Trace) -> str:
    """What is wrong with the way in which these filters take this trace."""
    text, _ = convert(trace.text)
    parts = split(text)
    whole = replace(trace, text=text, reasoning=parts.reasoning, answer=parts.answer)
    for part in chain:
        started = time.process_time()
        reason = part.judge((problem, whole, Grade(outcome="correct")))
        took = time.process_time() - started
        if took > QUICK_S + 1e-6 * len(text):
            return f"filter {part.label}: took {took:.1f} s"
        (reason or "").encode()
    return ""


def look(rules: list[StagedGrader], chain: list[Part], problem: Problem, trace: Trace) -> str:
    """What is wrong with the way in which these take this trace; "" if nothing is."""
    if wrong := filtered(chain, problem, trace):
        return wrong
    final_answer(trace.text, cut=trace.finish_reason == "length")
    for grader in rules:
        started = time.process_time()
        try:
            result = grader.quick(problem, trace)
        except UsageError:
            continue  # a package or a sandbox is missing: said before sampling
        took = time.process_time() - started
        if took > QUICK_S + 1e-6 * (len(trace.text) + len(problem.gold or "")):
            return f"{grader.name}: quick took {took:.1f} s"
        if isinstance(result, Check):
            hash(result.key)
        elif wrong := unkept(result):
            return f"{grader.name}: {wrong}"
    return ""


def unkept(grade: Grade) -> str:
    """Why a grade cannot be kept."""
    if grade.outcome not in OUTCOMES or not 0 <= grade.score <= 1:
        return f"outcome {grade.outcome!r}, score {grade.score!r}"
    json.dumps(to_row(bounded(grade)), ensure_ascii=False).encode()
    return ""


def case(rng: random.Random, seeds: list[tuple[str, str]]) -> tuple[Problem, Trace]:
    """A problem and a trace, both mutated."""
    gold, text = rng.choice(seeds)
    text = mutated(rng, text[-rng.choice((300, 3000, 100_000)) :], rng.choice(seeds)[1])
    if rng.random() < 0.3:
        gold = mutated(rng, gold, text)[:3000]
    reason = rng.choice(("stop", "stop", "length"))
    problem = Problem(
        messages=(),
        gold=gold if rng.random() < 0.95 else None,
        metadata=rng.choice(CARRIED),
        id="f",
    )
    return problem, Trace(problem_id="f", index=0, text=text, finish_reason=reason)


def fuzz(seconds: float, seed: int, data: Path, checks: bool) -> int:
    """Random mutations until the time is over. Returns the number of findings."""
    rng, seeds, rules, chain = random.Random(seed), corpus(data), graders(), filters()
    until, tried, findings = time.monotonic() + seconds, 0, 0
    batch: list[tuple[Problem, Trace]] = []
    with Judge(Grading(timeout_s=1.0), Path()) as judge:
        while time.monotonic() < until:
            pair = case(rng, seeds)
            findings += _reported(pair, functools.partial(look, rules, chain, *pair))
            tried += 1
            if checks:
                batch.append(pair)
                if len(batch) == 64:
                    findings += _reported(pair, functools.partial(_judged, judge, batch))
                    batch = []
    parts = f"{len(rules)} graders, {len(chain)} filters"
    print(f"{tried:,} texts from {len(seeds):,} seeds, {parts}, {findings} findings")
    return findings


def _judged(judge: Judge, batch: list[tuple[Problem, Trace]]) -> str:
    grades = list(judge.grade_many(batch))
    wrong = [why for grade in grades if (why := unkept(grade))]
    return wrong[0] if wrong else ("" if len(grades) == len(batch) else "grades are missing")


def _reported(pair: tuple[Problem, Trace], work: Callable[[], str]) -> int:
    try:
        wrong = work()
    except Exception:
        wrong = traceback.format_exc()
    if wrong:
        problem, trace = pair
        print(f"FINDING {wrong}\n  gold {problem.gold!r:.300}\n  text {trace.text!r:.2000}")
        print(f"  metadata {problem.metadata!r}, {len(trace.text):,} characters")
    return bool(wrong)


def guided(minutes: float, rest: list[str]) -> None:
    """The same with atheris choosing the bytes; does not return."""
    import atheris  # type: ignore[import-not-found]

    rules, chain = graders(), filters()

    def one(raw: bytes) -> None:
        given = atheris.FuzzedDataProvider(raw)
        metadata = CARRIED[given.ConsumeIntInRange(0, len(CARRIED) - 1)]
        gold, text = given.ConsumeUnicode(60), given.ConsumeUnicode(4000)
        problem = Problem(messages=(), gold=gold, metadata=metadata, id="f")
        wrong = look(rules, chain, problem, Trace(problem_id="f", index=0, text=text))
        if wrong:
            raise RuntimeError(wrong)

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], f"-max_total_time={int(minutes * 60)}", *rest], one)
    atheris.Fuzz()


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--minutes", type=float, default=5.0)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--data", type=Path, default=Path("../shared/data"))
    options.add_argument("--checks", action="store_true", help="also what is left to workers")
    options.add_argument("--atheris", action="store_true", help="coverage-guided, if installed")
    asked, rest = options.parse_known_args()
    if asked.atheris:
        guided(asked.minutes, rest)
    return 1 if fuzz(asked.minutes * 60, asked.seed, asked.data, asked.checks) else 0


if __name__ == "__main__":
    sys.exit(main())
