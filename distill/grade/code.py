"""Programs, judged by running them against tests in a sandbox.

`quick` finds the program in the answer; `check` runs it in a grading worker, which starts the
sandbox and compares what comes out. The program is never near the verdict: see `sandbox_tester`.
"""

from __future__ import annotations

import hashlib
import json
import signal
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from distill.errors import UsageError
from distill.grade.base import Check, StagedGrader
from distill.grade.code_tests import (
    Tests,
    brief,
    clean,
    modules_of,
    names_in,
    read_tests,
    same_output,
    same_value,
)
from distill.grade.extract import answer_text, was_cut, without_answer
from distill.grade.program import completed, defines, find_program, last_function
from distill.grade.sandbox import (
    START_S,
    Limits,
    Report,
    Sandbox,
    SandboxFailed,
    open_sandbox,
    run_job,
)
from distill.grade.sandbox_wire import Closed, decode
from distill.records import Grade, Problem, Trace

KEY = "tests"
"""Where a problem's metadata holds its tests, in one of the forms of `code_tests.read_tests`."""

WHY = {
    "time": "all its tests took longer than {total_s:g} s",
    "memory": "used more than {memory} MiB of memory",
    "processes": "started more than {processes} processes and threads",
    "output": "printed more than was asked for",
}


class Code(StagedGrader):
    """`correct` if a program passes all its tests; the score is the share that it passes.

    `sandbox` is `bwrap`, `docker`, `podman` or the address of a SandboxFusion service; `python`
    an interpreter whose packages programs may import (bwrap), `image` a container's image. A test
    may take `test_s` seconds, all of a program's `total_s`, a process `memory_mb` MiB. `tolerance`
    is for numbers in outputs. Raises UsageError where the sandbox does not work, unless `lazy`:
    then `require` does, which the first problem with tests calls.
    """

    name = "code"
    code = "1"

    def __init__(
        self,
        *,
        sandbox: str = "bwrap",
        python: str | None = None,
        image: str = "",
        test_s: float = 6.0,
        total_s: float = 60.0,
        memory_mb: int = 1024,
        tolerance: float | None = None,
        lazy: bool = False,
    ) -> None:
        if min(test_s, total_s, memory_mb) <= 0:
            raise UsageError(
                f"code: test_s={test_s:g}, total_s={total_s:g}, memory_mb={memory_mb}",
                "limits are above zero",
            )
        self.limits = Limits(test_s=test_s, total_s=total_s, memory=int(memory_mb) << 20)
        self.setting = (sandbox, python, image)
        self.tolerance = tolerance
        self.timeout_s = self.limits.deadline_s + START_S
        inside = python or image or f"Python {sys.version_info[0]}.{sys.version_info[1]}"
        self.version = f"{self.code}, {sandbox}, {inside}, {test_s:g} s, {memory_mb} MiB"
        if not lazy:
            self.require()

    def require(self) -> Sandbox:
        """The sandbox, tried out once in this process. Raises UsageError where it does not work."""
        return open_sandbox(*self.setting)

    def ready(self, problems: Iterable[Problem]) -> None:
        """Raises UsageError where one of the problems needs a sandbox and there is none."""
        if any(problem.metadata.get(KEY) for problem in problems):
            self.require()

    def quick(self, problem: Problem, trace: Trace) -> Grade | Check:
        held = problem.metadata.get(KEY)
        if not held:
            return self.grade("ungraded", detail="the problem has no tests")
        cut = was_cut(trace)
        program = find_program(answer_text(trace), names=names_in(held), cut=cut)
        if program is None:
            if cut or not answer_text(trace):
                return without_answer(trace, self.name, self.version)
            return self.grade("unparsed", detail="no program after the thinking")
        self.require()
        tests = json.dumps(held, sort_keys=True, default=str)
        key = hashlib.sha256(f"{tests}\0{program}".encode("utf-8", "surrogatepass")).digest()
        return Check((held, program), key)

    def check(self, *args: Any) -> Grade:
        held, program = args
        try:
            tests = read_tests(held)
        except ValueError as error:
            return self.grade("error", program, detail=f"the problem's tests: {error}")
        try:
            return self._judged(tests, program)
        except SandboxFailed as error:
            return self.grade("error", program, detail=error.message[:400])

    def _judged(self, tests: Tests, program: str) -> Grade:
        sandbox = self.require()
        if tests.kind == "stdio":
            return self._scripts(sandbox, tests, program)
        entry = tests.entry or (last_function(program) if tests.kind == "humaneval" else None)
        source = program
        if tests.prompt and entry and not defines(program, entry):
            source = completed(tests.prompt, program)
        header = {
            "mode": "calls",
            "program": source,
            "before": [tests.prompt] if tests.prompt else [],
            "usual": tests.kind == "functional",
        }
        job: dict[str, Any] = {"kind": "functional", "entry": entry, "inputs": tests.inputs}
        if tests.kind != "functional":
            job = {
                "kind": "code",
                "entry": entry,
                "check": "def check(" in tests.items[0],
                "prelude": [tests.prompt],
                "setup": tests.setup,
                "items": list(tests.items),
                "modules": modules_of(tests.items),
            }
        report = run_job(sandbox, header, self.limits, job)
        if report.broken:
            return self.grade(
                "wrong", program, detail=f"does not run: {clean(report.broken)}"[:400]
            )
        if tests.kind == "functional":
            return self._values(tests, program, report)
        return self._assertions(tests, program, report)

    # -- what came back, for each kind of tests --------------------------------------------------

    def _scripts(self, sandbox: Sandbox, tests: Tests, program: str) -> Grade:
        runs = [
            {"stdin": given, "most": 2 * len(wanted) + 65536}
            for given, wanted in zip(tests.inputs, tests.outputs, strict=True)
        ]
        header = {"mode": "script", "program": program, "usual": True, "tests": runs}
        report = run_job(sandbox, header, self.limits)
        failures: dict[int, str] = {}
        for row in report.rows:
            number = int(row["test"])
            why = self._ended(row)
            if not why:
                why = same_output(row["out"], tests.outputs[number], self._tolerance(tests))
                complaint = _last_line(row["err"])
                why += f" (it complained: {complaint})" if why and complaint else ""
            if why:
                failures[number] = f"{why}; input {brief(tests.inputs[number], 40)}"
        return self._graded(program, tests.count, len(report.rows), failures, report)

    def _values(self, tests: Tests, program: str, report: Report) -> Grade:
        failures: dict[int, str] = {}
        for row in report.rows:
            number = int(row["test"])
            call = f"{tests.entry}({', '.join(brief(a, 40) for a in tests.inputs[number])})"
            if "why" in row:
                failures[number] = f"{row['why']}; {brief(call)}"
                continue
            try:
                got = decode(row["value"], lambda data: f"an object of type {data.get('type')}")
                if same_value(got, tests.outputs[number], self._tolerance(tests)):
                    continue
                wanted = brief(tests.outputs[number])
                failures[number] = f"got {brief(got)}, expected {wanted}; {brief(call)}"
            except (Closed, RecursionError):
                failures[number] = f"returned what cannot be read; {brief(call)}"
        return self._graded(program, tests.count, len(report.rows), failures, report)

    def _assertions(self, tests: Tests, program: str, report: Report) -> Grade:
        rows = report.rows
        asserted = sum(row["passed"] + row["failed"] for row in rows)
        sources = tests.sources or ("",)
        failures = {
            int(row["test"]): _told(row, sources[row["test"]]) for row in rows if row["failed"]
        }
        if rows and len(rows) == tests.count and not asserted:
            return self.grade("error", program, detail="the problem's tests assert nothing")
        if tests.kind == "humaneval" and rows:
            row = rows[0]
            if not row["failed"] and not report.end.get("why"):
                return self.grade("correct", program)
            share = row["passed"] / asserted if asserted else 0.0
            told = _told(row, "") if row["failed"] else self._limit(report)
            return self.grade(
                "wrong", program, score=share, detail=f"{row['failed']} of {asserted}: {told}"
            )
        return self._graded(program, tests.count, len(rows), failures, report)

    def _graded(
        self, program: str, count: int, run: int, failures: Mapping[int, str], report: Report
    ) -> Grade:
        """The grade of `count` tests of which `run` were run; raises SandboxFailed for ours."""
        if not failures and run == count and not report.end.get("why"):
            return self.grade("correct", program)
        if failures:
            first = min(failures)
            told = f"test {first + 1} of {count}: {failures[first]}"
        else:
            told = self._limit(report)
        missed = f" ({count - run} not run)" if run < count else ""
        score = (run - len(failures)) / count
        # A program that was ended by a limit has not passed, whatever its rows say.
        return self.grade("wrong", program, score=min(score, 0.999), detail=f"{told}{missed}"[:400])

    def _tolerance(self, tests: Tests) -> float | None:
        return self.tolerance if tests.tolerance is None else tests.tolerance

    def _limit(self, report: Report) -> str:
        """Why a job ended early."""
        end = report.end
        if end.get("why"):
            return self._words(str(end["why"]))
        code = _exit(end.get("tester"))
        if code == "exit code 71":
            raise SandboxFailed("the tests ended by themselves: the sandbox's fault")
        return f"the program ended its tests ({code})"

    def _words(self, why: str) -> str:
        limits = self.limits
        return WHY[why].format(
            total_s=limits.total_s, memory=limits.memory >> 20, processes=limits.processes
        )

    def _ended(self, row: Mapping[str, Any]) -> str:
        """Why a run as a script failed, where it did."""
        if row["why"] == "time":
            return f"took longer than {self.limits.test_s:g} s"
        if row["why"]:
            return self._words(row["why"])
        if not row["status"]:
            return ""
        return _last_line(row["err"]) or f"ended with {_exit(row['status'])}"


def _last_line(text: str) -> str:
    """The last line that says something: of a traceback, the exception."""
    lines = [line for line in text.splitlines() if line.strip()]
    return brief(lines[-1], 160) if lines else ""


def _told(row: Mapping[str, Any], source: str) -> str:
    """The first failed assertion of a test, in words, with its text or else that of the test."""
    how = row["how"]
    if row["why"]:
        told = row["why"]
    elif "raised" in how:
        told = brief(how["raised"], 200)
    elif "got" in how:
        told = f"got {brief(how['got'])}, expected {brief(how['expected'])}"
    else:
        told = "not true"
    source = how.get("source") or source.removeprefix("assert ")
    return f"{told}; {brief(source)}" if source else told


def _exit(status: Any) -> str:
    """A wait status in words."""
    if not isinstance(status, int):
        return "killed"
    number = status & 127
    if number:
        name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
        return f"signal {name}"
    return f"exit code {status >> 8}"
