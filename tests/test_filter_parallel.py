"""The filter step in worker processes: the same result as in one, whatever the filters do."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from distill.errors import DataError, DistillError
from distill.filter import parallel
from distill.filter.reading import BLOCK_TRACES, ProblemFile
from distill.filter.run import filter_traces
from distill.records import Grade, Problem, Trace, read_jsonl, to_row, write_jsonl
from distill.schema import PartSpec

MINE = """
import os, time

def fragile(problem, trace, grade):
    if "raise" in trace.text:
        raise ValueError(trace.text)
    return "short" if len(trace.text) < 4 else None

def exits(problem, trace, grade):
    if "exit" in trace.text:
        os._exit(3)

def hangs(problem, trace, grade):
    while "hang" in trace.text:
        time.sleep(0.01)

class Twins:
    version = "1"
    def prepare(self, items):
        self.seen = {}
        for problem, trace, grade in items:
            self.seen.setdefault(trace.text, trace.index)
    def measure(self, problem, trace):
        return {"chars": len(trace.text)}
    def __call__(self, problem, trace, grade):
        first = self.seen[trace.text]
        return f"as sample {first}" if first != trace.index else None

class Closed(Twins):
    def prepare(self, items):
        super().prepare(items)
        self.cannot_travel = lambda: None

class Sketched(Twins):
    def sketch(self, problem, trace, grade):
        if trace.text.startswith("so so 1") and len(trace.text) == 8:
            raise ValueError("so so")
        return trace.text.encode()
    def prepare_sketches(self, rows):
        self.seen = {}
        for problem_id, index, text in rows:
            self.seen.setdefault(text, index)
    def judge_sketch(self, problem_id, index, text):
        first = self.seen.get(text, index)
        return f"as sample {first}" if first != index else None

class Rate:
    version, sees_all = "1", True
    def prepare(self, items):
        self.right = sum(grade.outcome == "correct" for _, _, grade in items)
    def __call__(self, problem, trace, grade):
        return f"{self.right} right" if trace.index % 7 == 3 else None
"""


def write(folder: Path, texts: list[str]) -> list[Path]:
    """Problem, trace and grade files: four traces of each problem."""
    (folder / "mine.py").write_text(MINE)
    problems = [
        Problem(messages=({"role": "user", "content": f"q{n}"},), source=f"s{n % 2}")
        for n in range(len(texts) // 4 + 1)
    ]
    traces = [
        Trace(problem_id=problems[n // 4].id, index=n % 4, text=text)
        for n, text in enumerate(texts)
    ]
    grades = [
        {
            "problem_id": t.problem_id,
            "index": t.index,
            **to_row(Grade(outcome="wrong" if "wrong" in t.text else "correct")),
        }
        for t in traces
    ]
    files = [folder / f"{name}.jsonl" for name in ("problems", "traces", "grades")]
    for file, rows in zip(files, (problems, traces, grades), strict=True):
        write_jsonl(file, rows)
    return files


def run(
    folder: Path, files: list[Path], filters: list[Any], workers: int
) -> tuple[bytes, dict[str, Any]]:
    """The bytes of the verdicts, and the summary without what a clock decides."""
    out = folder / f"out{workers}"
    specs = [PartSpec.model_validate(f) for f in filters]
    filter_traces(specs, files[0], files[1], files[2], [], out, folder=folder, workers=workers)
    assert sorted(p.name for p in out.iterdir()) == ["summary.json", "verdicts.jsonl"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary.pop("seconds") >= 0
    return (out / "verdicts.jsonl").read_bytes(), summary


def mixed_texts(count: int) -> list[str]:
    rng = random.Random(1)
    words = ["wrong", "fine", "ok", "so so", "x", "longer than others", "é\ud7ff你"]
    return [f"{rng.choice(words)} {rng.randrange(count // 4)}" for _ in range(count)]


@pytest.mark.slow
def test_workers_write_what_one_process_writes(tmp_path: Path) -> None:
    files = write(tmp_path, mixed_texts(3 * BLOCK_TRACES))
    chain = [
        "correct",
        "./mine.py:fragile",
        "./mine.py:Twins",
        {"length": {"min_tokens": 2}},
        "./mine.py:Rate",
        "./mine.py:Closed",
        "./mine.py:Sketched",
        "duplicates",
    ]
    verdicts, summary = run(tmp_path, files, chain, 0)
    assert run(tmp_path, files, chain, 2) == (verdicts, summary)
    assert 0 < summary["kept"] < summary["traces"] == 3 * BLOCK_TRACES
    assert set(summary["measured"]["./mine.py:Twins"]["chars"]) == {"mean", "p10", "p50", "p90"}
    assert summary["errors"]["./mine.py:Sketched"] > 0
    right = sum(b"wrong" not in line for line in files[1].read_bytes().splitlines())
    assert summary["examples"]["./mine.py:Rate"][0]["reason"] == f"{right} right"


def test_solo_marginal_and_overlaps(tmp_path: Path) -> None:
    files = write(tmp_path, ["wrong a", "wrong", "wrong a", "fine", "fine", "no", "no!!", "no!!"])
    chain = ["correct", "./mine.py:fragile", {"length": {"min_tokens": 2}}, "./mine.py:Twins"]
    _, summary = run(tmp_path, files, chain, 0)
    labels = ("correct", "./mine.py:fragile", "length", "./mine.py:Twins")
    counts = {k: [summary[k][label] for label in labels] for k in ("dropped", "solo", "marginal")}
    # The first is wrong and nothing else; the second is short too, the third a twin.
    assert counts["dropped"] == [3, 1, 4, 0]
    assert counts["solo"] == [3, 1, 6, 3]
    assert summary["kept"] == 0
    assert summary["overlaps"]["./mine.py:fragile"] == {"length": 1}
    assert counts["marginal"] == [1, 0, 2, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("exits", "exit", "error: ended its process (exit code 3)"),
        ("hangs", "hang", "error: took longer than 0.2 s and was killed"),
    ],
)
def test_a_filter_that_ends_or_hangs_its_worker_costs_one_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, reason: str
) -> None:
    monkeypatch.setattr(parallel, "DEADLINE_S", 0.2)
    monkeypatch.setattr(parallel, "POLL_S", 0.05)
    files = write(tmp_path, ["fine"] * 5 + [text] + ["fine"] * 5)
    verdicts, summary = run(tmp_path, files, [f"./mine.py:{name}", "truncated"], 1)
    rows = [json.loads(line) for line in verdicts.splitlines()]
    assert [row["kept"] for row in rows] == [True] * 5 + [False] + [True] * 5
    assert rows[5]["reason"] == reason
    assert summary["errors"] == {f"./mine.py:{name}": 1}
    files = write(tmp_path, [text] * 8)
    with pytest.raises(DistillError, match=r"the 2\. time"):
        run(tmp_path, files, [f"./mine.py:{name}"], 1)


def test_what_goes_wrong_in_a_worker_is_said_here(tmp_path: Path) -> None:
    files = write(tmp_path, ["fine", "raise", "raise"])
    with pytest.raises(DistillError, match="raised on 2 of 3 traces: ValueError: raise"):
        run(tmp_path, files, ["./mine.py:fragile"], 1)
    rows = list(read_jsonl(files[2]))
    write_jsonl(files[2], rows[::-1])
    with pytest.raises(DataError, match="sample 0 of problem"):
        run(tmp_path, files, ["truncated"], 1)


def test_problems_are_looked_up_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    made = [Problem(messages=({"role": "user", "content": f"é{n}"},)) for n in range(900)]
    write_jsonl(path, made)
    for problems in (ProblemFile(path, tmp_path / "i.npy"), ProblemFile(path, tmp_path / "i.npy")):
        assert len(problems) == 900
        assert list(problems.values()) == made
        assert [problems[p.id] for p in reversed(made)] == made[::-1]
        assert "none" not in problems
        assert problems.get("none") is None
        problems.close()
