"""The workers: a check that hangs, dies or eats memory loses itself and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.grade.parts import GraderSpec
from distill.grade.pool import GraderPool
from distill.records import Grade

MINE = """
import os, subprocess, sys, time
from distill.records import Grade

def grade(problem, trace):
    if problem == "hang":
        time.sleep(1000)
    if problem == "spin":
        while True: pass
    if problem == "exit":
        os._exit(3)
    if problem == "leave":
        raise SystemExit(1)
    if problem == "raise":
        raise KeyError("k")
    if problem == "memory":
        bytearray(64 << 30)
    if problem == "bool":
        return True
    if problem == "child":
        print(subprocess.Popen(["sleep", "1000"]).pid, file=open(trace, "w"), flush=True)
        time.sleep(1000)
    if problem == "modules":
        found = [m for m in trace.split() if m in sys.modules]
        return Grade(outcome="correct", detail=" ".join(found))
    if problem == "pid":
        return Grade(outcome="correct", detail=str(os.getpid()))
    return Grade(outcome="correct", extracted=problem)
"""


@pytest.fixture
def spec(tmp_path: Path) -> GraderSpec:
    (tmp_path / "mine.py").write_text(MINE)
    return GraderSpec("./mine.py:grade", {}, str(tmp_path))


def judged(pool: GraderPool, spec: GraderSpec, words: list[str], extra: str = "") -> list[Grade]:
    tickets = [pool.submit(spec, "", (word, extra)) for word in words]
    grades: dict[int, Grade] = {}
    while pool.open:
        grades.update(pool.collect())
    return [grades[ticket] for ticket in tickets]


def test_every_kind_of_failure_loses_only_its_own_item(spec: GraderSpec) -> None:
    words = [f"w{i}" for i in range(60)]
    trouble = {3: "hang", 17: "exit", 18: "leave", 30: "raise", 31: "memory", 45: "bool"}
    for place, word in trouble.items():
        words[place] = word
    with GraderPool(workers=2, timeout_s=1.5) as pool:
        grades = judged(pool, spec, words)
        assert pool.killed == 2
    for place, (word, grade) in enumerate(zip(words, grades, strict=True)):
        if place not in trouble:
            assert (grade.outcome, grade.extracted) == ("correct", word)
        else:
            assert grade.outcome == "error"
    details = {word: grades[place].detail for place, word in trouble.items()}
    assert "1.5 s and was killed" in details["hang"]
    assert "exit code 3" in details["exit"]
    assert "SystemExit" in details["leave"]
    assert "KeyError" in details["raise"]
    assert "MiB" in details["memory"]
    assert "expected distill.Grade" in details["bool"]


@pytest.mark.slow
def test_two_hangs_in_one_chunk(spec: GraderSpec) -> None:
    with GraderPool(workers=1, timeout_s=0.5) as pool:
        grades = judged(pool, spec, ["a", "hang", "b", "spin", "c"])
    assert [g.outcome for g in grades] == ["correct", "error", "correct", "error", "correct"]


def test_workers_are_free_of_model_libraries(spec: GraderSpec) -> None:
    from distill.grade.auto import Auto  # the caller may hold what it likes

    assert Auto.name == "auto"
    with GraderPool(workers=1) as pool:
        asked = "distill.records torch transformers datasets pytest sympy numpy"
        assert judged(pool, spec, ["modules"], asked)[0].detail == "distill.records"


def test_nothing_is_left_of_a_killed_grader(spec: GraderSpec, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with GraderPool(workers=1, timeout_s=1) as pool:
        assert judged(pool, spec, ["child"], str(note))[0].outcome == "error"
    assert _gone(int(note.read_text()))


def test_workers_die_with_their_parent(spec: GraderSpec, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, time\n"
        "from distill.grade.parts import GraderSpec\n"
        "from distill.grade.pool import GraderPool\n"
        "pool = GraderPool(workers=1)\n"
        f"spec = GraderSpec('./mine.py:grade', {{}}, {str(tmp_path)!r})\n"
        "pool.submit(spec, '', ('pid', ''))\n"
        "print(pool.collect()[0][1].detail, flush=True)\n"
        "time.sleep(1000)\n"
    )
    # A script without an `if __name__` guard: multiprocessing's spawn would start it again.
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    assert not _gone(worker, patience_s=0)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert _gone(worker)


def test_a_grader_that_cannot_be_loaded_is_an_error_of_each_item(tmp_path: Path) -> None:
    spec = GraderSpec("./missing.py:grade", {}, str(tmp_path))
    with GraderPool(workers=1) as pool:
        grades = judged(pool, spec, ["a", "b"])
    assert [g.outcome for g in grades] == ["error", "error"]
    assert "missing.py" in grades[0].detail


@pytest.mark.slow
def test_large_arguments_do_not_block_the_pipe(spec: GraderSpec) -> None:
    with GraderPool(workers=1, timeout_s=1) as pool:
        grades = judged(pool, spec, ["x" * 3_000_000, "hang", "y" * 3_000_000])
    assert [g.outcome for g in grades] == ["correct", "error", "correct"]


def _gone(process: int, patience_s: float = 20) -> bool:
    """True if no such process runs; waits for it, as killing takes the kernel a moment."""
    until = time.monotonic() + patience_s
    while True:
        try:
            os.kill(process, 0)
            with open(f"/proc/{process}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(0.05)
