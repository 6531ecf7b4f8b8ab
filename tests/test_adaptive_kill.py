"""Adaptive sampling under kill -9, and whether the grade and filter steps agree with it."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.accept import Acceptance
from distill.filter.run import filter_traces
from distill.grade.run import grade_traces
from distill.protocols import Completion, Request, Usage
from distill.records import Problem, Trace, read_jsonl, read_records, write_jsonl
from distill.sample import run_sample
from distill.schema import DEFAULT_FILTERS, Grading, PartSpec, Sampling
from tests.coins import Coin, CoinBatch, coins, naive, share

ROOT = Path(__file__).parent.parent
RATES = [0.0, 0.1, 0.3, 0.6, 1.0] * 5

RUN = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from distill.sample import run_sample
from distill.schema import Sampling
from tests.coins import Coin, CoinBatch, judge

class Slow(CoinBatch):
    def complete_batch(self, requests, on_tokens=None):
        time.sleep(0.01)
        return super().complete_batch(requests)

folder, kind, budget = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
print("ready", flush=True)
run_sample(folder / "problems.jsonl", Slow() if kind == "batch" else Coin(0.02),
    Sampling(want=2, max=12, concurrency=6, budget_tokens=budget or None), seed=0,
    pool_root=folder / "pool", prices=(0, 0), out=folder / "out", accept=judge())
"""


def start(folder: Path, kind: str, budget: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(ROOT), str(folder), kind, str(budget)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stored(folder: Path) -> list[tuple[str, int, int]]:
    """Keys of the records in the pool's files that are whole."""
    rows = []
    for path in folder.glob("pool/*/*.jsonl"):
        for line in path.read_bytes().splitlines():
            if line.endswith(b"}"):
                row = json.loads(line)
                rows.append((row["problem_id"], row["index"], row["segment"]))
    return rows


def traces_of(folder: Path) -> list[Trace]:
    found = read_records(Trace, folder / "out/traces.jsonl")
    return [replace(trace, time_s=0.0) for trace in found]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "budget"),
    [("one", 0), pytest.param("one", 2500, marks=SLOW), pytest.param("batch", 0, marks=SLOW)],
)
@pytest.mark.slow
def test_killed_at_any_moment_it_ends_as_an_undisturbed_run(
    tmp_path: Path, kind: str, budget: int
) -> None:
    problems, chance = coins(RATES), random.Random(kind + str(budget))
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for folder in (killed, whole):
        write_jsonl(folder / "problems.jsonl", problems)
    for _ in range(3):
        with start(killed, kind, budget) as process:
            assert process.stdout is not None
            process.stdout.readline()
            begin, more = len(stored(killed)), chance.randint(1, 40)
            while process.poll() is None and len(stored(killed)) < begin + more:
                time.sleep(chance.random() * 0.01)
            process.send_signal(signal.SIGKILL)
    for folder in (killed, whole):
        with start(folder, kind, budget) as process:
            assert process.wait() == 0, process.stderr and process.stderr.read()
    assert traces_of(killed) == traces_of(whole)
    assert (killed / "out/problems_sampled.jsonl").read_bytes() == (
        whole / "out/problems_sampled.jsonl"
    ).read_bytes()
    if budget or kind == "batch":
        rounds = [(f / "out/rounds.jsonl").read_bytes() for f in (killed, whole)]
        assert rounds[0] == rounds[1]
    if not budget:
        tries = Counter(trace.problem_id for trace in traces_of(killed))
        assert tries == naive(problems, 2, 12, 0.02)
    bought = Counter(stored(killed))
    assert max(bought.values()) == 1
    assert json.loads((killed / "out/summary.json").read_text())["reused"] > 0


class Sums(Coin):
    """Answers sums, right or wrong, with answers that filters object to now and then."""

    identity = "sums@1"

    def answer(self, request: Request) -> Completion:
        a, b, rate = (float(x) for x in str(request.prompt[0]["content"]).split()[:3])  # type: ignore[index, call-overload]
        right, kind = share(request.seed) < rate, share(request.seed, "kind")
        number = f"\\boxed{{{int(a + b) + (not right)}}}"
        text = f"<think>\nTogether it is {request.key.split('/')[1]} or so.\n</think>\n\n{number}"
        more: dict[str, Any] = {}
        if kind < 0.1:
            text = number
        elif kind < 0.2:
            more["finish_reason"] = "length"
        elif kind < 0.55:
            text = f"<think>\nAs ever and ever it comes out.\n</think>\n\n{number}"
        elif kind < 0.6:
            text = f"<think>\n{'round and round ' * 60}\n</think>\n\n{number}"
        return Completion(text=text, usage=Usage(completion_tokens=20), **more)


class SumsBatch(Sums, CoinBatch):
    pass


def sums(count: int) -> list[Problem]:
    rates = [0.0, 0.2, 0.5, 1.0]
    return [
        Problem(
            messages=({"role": "user", "content": f"{i} {i + 1} {rates[i % 4]}"},),
            gold=str(2 * i + 1),
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("kind", [Sums, SumsBatch])
def test_the_grade_and_filter_steps_agree_with_what_was_accepted(
    tmp_path: Path, kind: type[Sums]
) -> None:
    write_jsonl(tmp_path / "problems.jsonl", sums(24))
    filters = [PartSpec(name=name) for name in DEFAULT_FILTERS if name != "overlap"]
    grading = Grading(workers=1)
    run_sample(
        tmp_path / "problems.jsonl",
        kind(),
        Sampling(want=3, max=10, concurrency=7),
        seed=0,
        pool_root=tmp_path / "pool",
        prices=(0, 0),
        out=tmp_path / "sample",
        accept=Acceptance(grading, filters, tmp_path),
    )
    for folder in ("grade", "filter"):
        (tmp_path / folder).mkdir()
    files = (tmp_path / "problems.jsonl", tmp_path / "sample/traces.jsonl")
    grade_traces(grading, *files, tmp_path / "grade", folder=tmp_path)
    grades = tmp_path / "grade/grades.jsonl"
    filter_traces(filters, *files, grades, [], tmp_path / "filter", folder=tmp_path)
    verdicts = list(read_jsonl(tmp_path / "filter/verdicts.jsonl"))
    kept = Counter(row["problem_id"] for row in verdicts if row["kept"])
    rows = list(read_jsonl(tmp_path / "sample/problems_sampled.jsonl"))
    assert {row["problem_id"]: row["accepted"] for row in rows if row["accepted"]} == kept
    dropped = json.loads((tmp_path / "filter/summary.json").read_text())["dropped"]
    seen = ("truncated", "correct", "format", "thinking", "duplicates")
    assert all(dropped[name] for name in seen), dropped
    reasons = Counter(row["reason"] for row in rows)
    assert reasons["enough"] > 5
    assert reasons["most"] > 3
