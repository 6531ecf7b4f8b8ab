"""The workers: a check that hangs, dies or eats memory loses itself and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
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
    if problem == "grow":
        bytearray(400 << 20)
    if problem == "bool":
        return True
    if problem == "child":
        print(subprocess.Popen(["sleep", "1000"]).pid, file=open(trace, "w"), flush=True)
        time.sleep(1000)
    if problem == "modules":
        found = [m for m in trace.split() if m in sys.modules]
        return Grade(outcome="correct", detail=" ".join(found))
    if problem == "odd":
        return Grade(outcome="excellent")
    if problem == "types":
        return Grade(outcome="correct", score=7, extracted=12, detail=None)
    if problem == "huge":
        return Grade(outcome="correct", extracted=chr(0xD800) * 10**6, detail="d" * 10**6)
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_a_check_may_have_a_deadline_of_its_own(spec: GraderSpec) -> None:
    with GraderPool(workers=1, timeout_s=60) as pool:
        pool.submit(spec, "", ("hang", ""), timeout_s=0.3)
        ((_, grade),) = pool.collect()
        assert grade.detail == "took longer than 0.3 s and was killed"
        assert 1 <= pool.longest < 10


def test_whatever_a_grader_returns_can_be_kept(spec: GraderSpec) -> None:
    with GraderPool(workers=1) as pool:
        odd, types, huge = judged(pool, spec, ["odd", "types", "huge"])
    assert (odd.outcome, odd.detail[:16]) == ("error", "said 'excellent'")
    assert (types.score, types.extracted, types.detail) == (1.0, "12", "None")
    assert len(huge.extracted or "") == 2000
    assert len(huge.detail) == 500
    (huge.extracted or "").encode()


def test_arguments_that_cannot_be_sent_are_an_error_of_their_own(spec: GraderSpec) -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with GraderPool(workers=1) as pool:
        tickets = [pool.submit(spec, "", (word, "")) for word in ("a", deep, "b")]
        grades: dict[int, Grade] = {}
        while pool.open:
            grades |= dict(pool.collect())
    assert [grades[t].outcome for t in tickets] == ["correct", "error", "correct"]
    assert "RecursionError" in grades[tickets[1]].detail
    while deep:  # or freeing it would recurse as deep
        deep = deep.pop()  # type: ignore[assignment]


def test_a_worker_that_dies_idle_takes_no_check_along(spec: GraderSpec) -> None:
    with GraderPool(workers=1) as pool:
        worker = int(judged(pool, spec, ["pid"])[0].detail)
        os.kill(worker, signal.SIGKILL)
        assert _gone(worker)
        assert [g.outcome for g in judged(pool, spec, ["a", "b"])] == ["correct"] * 2
        assert pool.killed == 1


@pytest.mark.slow
def test_a_worker_that_used_much_memory_is_replaced_and_harms_no_neighbour(
    spec: GraderSpec,
) -> None:
    with GraderPool(workers=1, memory=700 << 20) as pool:
        words = ["pid", *"abcdefgh", "grow", *"ijkl", "pid"]
        grades = judged(pool, spec, words)
        assert all(g.correct for g in grades)
        assert grades[0].detail != grades[-1].detail


def test_workers_outlive_the_thread_that_asked_first(spec: GraderSpec) -> None:
    with GraderPool(workers=1) as pool:
        first: list[str] = []
        thread = threading.Thread(
            target=lambda: first.append(judged(pool, spec, ["pid"])[0].detail)
        )
        thread.start()
        thread.join()
        time.sleep(0.1)  # the kernel would kill it now
        assert judged(pool, spec, ["pid"])[0].detail == first[0]


@pytest.mark.slow
def test_a_fork_leaves_its_parents_workers_alone(spec: GraderSpec) -> None:
    with GraderPool(workers=1) as pool:
        worker = judged(pool, spec, ["pid"])[0].detail
        child = os.fork()
        if child == 0:
            own = judged(pool, spec, ["pid"])[0].detail
            pool.close()
            os._exit(own == worker)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert judged(pool, spec, ["pid"])[0].detail == worker


@pytest.mark.slow
def test_ctrl_c_leaves_no_worker(spec: GraderSpec, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "from pathlib import Path\n"
        "from distill.grade import Judge\n"
        "from distill.records import Problem, Trace\n"
        "from distill.schema import Grading\n"
        "import os, signal\n"
        # A job in the background of a shell starts with it ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "(folder / 'spin.py').write_text('import os\\ndef grade(p, t):\\n'\n"
        '    \'    print(os.getpid(), file=open("worker", "w"), flush=True)\\n\'\n'
        "    '    while True: pass\\n')\n"
        "os.chdir(folder)\n"
        "with Judge(Grading(graders=['./spin.py:grade'], timeout_s=600), folder) as judge:\n"
        "    judge.grade(Problem(messages=()), Trace(problem_id='', index=0))\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True)
    note = tmp_path / "worker"
    until = time.monotonic() + 60
    while not (note.is_file() and note.read_text().strip()) and time.monotonic() < until:
        time.sleep(0.05)
    parent.send_signal(signal.SIGINT)
    assert parent.stderr is not None
    assert "KeyboardInterrupt" in parent.stderr.read()
    parent.stderr.close()
    parent.wait()
    assert _gone(int(note.read_text()))


@pytest.mark.slow
def test_a_flood_of_killers_does_not_stop_the_pool(spec: GraderSpec) -> None:
    words = [word for i in range(10) for word in ("hang", "exit", f"w{i}")]
    with GraderPool(workers=2, timeout_s=0.2) as pool:
        grades = judged(pool, spec, words)
        assert pool.killed == 20
    for word, grade in zip(words, grades, strict=True):
        assert grade.outcome == ("error" if word in ("hang", "exit") else "correct")


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
