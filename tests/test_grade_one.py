"""One answer in one line: from threads, forks and event loops, and never a hang or a crash."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from distill.errors import UsageError
from distill.grade import grade_code, grade_math, one
from distill.grade.parts import GraderSpec, build
from distill.records import Grade

MINE = """
import os, time
from distill.grade.base import Check, StagedGrader

class Mine(StagedGrader):
    name, version = "mine", "1"

    def quick(self, problem, trace):
        if trace.text == "raise":
            raise RecursionError("too deep")
        if trace.text == "quick":
            return self.grade("correct", "x" * 5000)
        return Check((trace.text,))

    def check(self, text):
        if text == "hang":
            time.sleep(1000)
        if text == "die":
            os._exit(1)
        return self.grade("correct", text, detail=str(os.getpid()))
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`grade_math` with a grader of ours in the place of `math`, and no worker left behind."""
    (tmp_path / "mine.py").write_text(MINE)
    spec = GraderSpec("./mine.py:Mine", {}, str(tmp_path))
    grader = build(spec)
    monkeypatch.setattr(one, "_grader", lambda name: (grader, spec))
    yield
    one._workers.close()


def test_what_is_settled_at_once_starts_no_worker() -> None:
    assert grade_math("1/2", "<think>0.4?</think> so \\boxed{0.5}").correct
    assert grade_math("7", "<think>it is 7").outcome == "unparsed"
    assert grade_math("7", "\\boxed{8}").outcome == "wrong"
    assert not one._workers._idle


def test_wrong_types_are_errors_not_exceptions() -> None:
    for gold, response in ((7, "\\boxed{7}"), ("7", ["7"]), ("7", None), ("7", b"7")):
        grade = grade_math(gold, response)  # type: ignore[arg-type]
        assert grade.outcome == "error"
        assert "expected str" in grade.detail
    assert grade_math(None, "\\boxed{7}").outcome == "ungraded"  # type: ignore[arg-type]


@pytest.mark.usefixtures("mine")
def test_a_check_that_hangs_dies_or_raises_is_an_error_and_the_next_is_judged() -> None:
    hung = grade_math("x", "hang", timeout_s=0.3)
    assert (hung.outcome, hung.detail) == ("error", "took longer than 0.3 s and was killed")
    assert "ended its process" in grade_math("x", "die").detail
    assert grade_math("x", "raise").detail == "RecursionError: too deep"
    assert grade_math("x", "fine").extracted == "fine"
    assert len(grade_math("x", "quick").extracted or "") == 2000


@pytest.mark.slow
@pytest.mark.usefixtures("mine")
def test_threads_get_their_own_answers_and_a_hang_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(one, "_workers", one._Workers(2))
    texts = [f"t{i}" for i in range(40)]
    stuck = threading.Thread(target=grade_math, args=("x", "hang"), kwargs={"timeout_s": 1.0})
    stuck.start()
    with ThreadPoolExecutor(4) as threads:
        grades = list(threads.map(lambda text: grade_math("x", text), texts))
    assert stuck.is_alive()
    assert [g.extracted for g in grades] == texts
    # The threads that started the worker are gone; it must not have died with them.
    assert grade_math("x", "after").detail in {g.detail for g in grades}
    stuck.join()


@pytest.mark.usefixtures("mine")
def test_a_fork_has_workers_of_its_own() -> None:
    ours = grade_math("x", "a").detail
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, grade_math("x", "b").detail.encode())
            one._workers.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as file:
        theirs = file.read()
    assert theirs.isdigit()
    assert theirs != ours
    assert grade_math("x", "c").detail == ours


@pytest.mark.usefixtures("mine")
def test_from_a_running_event_loop() -> None:
    async def ask() -> list[Grade]:
        here = grade_math("x", "here")
        return [here, *await asyncio.gather(*(asyncio.to_thread(grade_math, "x", t) for t in "ab"))]

    assert [g.extracted for g in asyncio.run(ask())] == ["here", "a", "b"]


@pytest.mark.slow
def test_a_script_without_a_guard_runs_once_and_leaves_no_worker(tmp_path: Path) -> None:
    script = tmp_path / "reward.py"
    script.write_text(
        "print('begins', flush=True)\n"
        "from distill.grade import grade_math, one\n"
        "print(grade_math('\\\\int_0^1 x dx', '\\\\boxed{\\\\frac{1}{2}}').outcome)\n"
        "print(*[m.process.pid for p in one._workers._idle for m in p._members])\n"
    )
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    begins, outcome, *worker = ran.stdout.split()
    assert (begins, outcome) == ("begins", "correct")
    assert len(worker) == 1
    assert not Path(f"/proc/{worker[0]}").exists()


def test_code_is_judged_in_the_sandbox_or_refused() -> None:
    answer = "```python\nprint(int(input()) + 1)\n```"
    try:
        right = grade_code([{"input": "1\n", "output": "2\n"}], answer)
        wrong = grade_code([{"input": "1\n", "output": "3\n"}], answer)
    except UsageError as error:
        pytest.skip(f"no sandbox here: {error.message}")
    finally:
        one._workers.close()
    assert (right.outcome, wrong.outcome) == ("correct", "wrong")
