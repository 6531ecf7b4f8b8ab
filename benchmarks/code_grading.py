"""Programs graded a second, and what the sandbox costs over running them bare.

    python -m benchmarks.code_grading [--programs N] [--file problems.jsonl]

Every problem's reference solution and a mutant of it are judged by `Code` in bubblewrap, one at a
time, and by the naive way: the same test code and solution in one fresh interpreter, unprotected
(`python -S -c`), which a program can fool and which may do to the machine what it likes. The ratio
is programs a second of ours over the naive way's; the two take turns. Agreement is counted too:
references must be correct, mutants wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from distill.errors import UsageError
from distill.grade.code import Code
from distill.records import Problem, Trace

GOAL = 0.2
"""A sandboxed check may take five times a bare one: an interpreter's start is most of both."""

HERE = Path(__file__).resolve().parents[2] / "shared" / "data" / "problems" / "mbpp_test.jsonl"
BUILT_IN = {
    "solution": "def add(a, b):\n    return a + b",
    "test_list": ["assert add(1, 2) == 3", "assert add([1], []) == [1]", "assert add(-1, 1) == 0"],
}


def rows(file: Path, count: int) -> list[dict[str, Any]]:
    """MBPP's rows, or one of our own over and over where they are not here."""
    if not file.is_file():
        return [BUILT_IN] * count
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=100)
    parser.add_argument("--file", type=Path, default=HERE)
    args = parser.parse_args()
    try:
        code = Code()
    except UsageError as error:
        print(error)
        return 1
    ours: list[float] = []
    naive: list[float] = []
    agree = 0
    for row in rows(args.file, args.programs // 2):
        names = re.findall(r"^def (\w+)", row["solution"], re.MULTILINE)
        mutant = row["solution"] + "".join(f"\n{n} = lambda *a, **k: None" for n in names)
        tests = {"kind": "asserts", "asserts": row["test_list"]}
        tests["setup"] = row.get("test_setup_code", "")
        problem = Problem(messages=({"role": "user", "content": "q"},), metadata={"tests": tests})
        for program, wanted in ((row["solution"], "correct"), (mutant, "wrong")):
            text = f"```python\n{program}\n```"
            started = time.perf_counter()
            grade = code(problem, Trace(problem_id="p", index=0, text=text))
            ours.append(time.perf_counter() - started)
            agree += grade.outcome == wanted
            bare = "\n".join([program, tests["setup"], *row["test_list"]])
            started = time.perf_counter()
            command = [sys.executable, "-S", "-c", bare]
            subprocess.run(command, capture_output=True, timeout=60, check=False)
            naive.append(time.perf_counter() - started)
    if not ours:
        print("no programs")
        return 1
    print(f"{'':12}{'programs/s':>12}{'median ms':>12}{'slowest s':>12}")
    for name, taken in (("sandboxed", ours), ("bare", naive)):
        middle = statistics.median(taken)
        print(f"{name:12}{1 / middle:12.1f}{1e3 * middle:12.1f}{max(taken):12.2f}")
    print(f"references correct and mutants wrong: {agree} of {len(ours)}")
    ratio = statistics.median(naive) / statistics.median(ours)
    print(f"code_grading ratio={ratio:.2f} goal={GOAL}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
