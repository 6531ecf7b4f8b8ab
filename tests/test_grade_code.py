"""Programs graded by their tests: which program, what verdict, and that no program can cheat."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from distill.errors import UsageError
from distill.grade.base import Check
from distill.grade.code import Code
from distill.grade.one import grade_code
from distill.grade.service import Judge
from distill.problems import make_problems
from distill.records import Grade, Problem, Trace, read_jsonl
from distill.schema import Grading, Problems


@pytest.fixture(scope="module")
def code() -> Code:
    try:
        return Code(test_s=2.0, total_s=6.0, memory_mb=256)
    except UsageError as error:
        pytest.skip(f"no sandbox that works: {error.message}")


def trace(answer: str, **kw: Any) -> Trace:
    return Trace(problem_id="p", index=0, text=answer, answer=answer, **kw)


def problem(tests: Any) -> Problem:
    return Problem(messages=({"role": "user", "content": "q"},), metadata={"tests": tests})


def graded(code: Code, tests: Any, program: str) -> Grade:
    return code(problem(tests), trace(f"Here it is.\n```python\n{program}\n```\nDone."))


ASSERTS = ["assert add(1, 2) == 3", "assert add([1], [2]) == [1, 2]", "assert add(0.5, 1) == 1.5"]
HUMANEVAL = {
    "kind": "humaneval",
    "prompt": 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """The sum."""\n',
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n"
    "    assert candidate([]) == 0\n"
    "    for n in range(3):\n        assert abs(candidate([n, n]) - 2 * n) < 1e-6\n",
    "entry_point": "total",
}
STDIO = {"kind": "stdio", "inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}
FUNCTIONAL = {
    "kind": "functional",
    "fn_name": "pairs",
    "inputs": ["[1, 2]\n1", "[]\n0"],
    "outputs": ["[[1, 2]]", "[]"],
}
SOLUTION = """
class Solution:
    def pairs(self, nums: List[int], k: int) -> List[List[int]]:
        return [(a, b) for a, b in combinations(nums, 2) if abs(a - b) == k]
"""


def test_never_from_inside_the_thinking(code: Code) -> None:
    inside = "<think>```python\ndef add(a, b): return a + b\n```</think>\n"
    made = code(problem(ASSERTS), Trace(problem_id="p", index=0, text=inside + "I am done."))
    assert (made.outcome, made.detail) == ("unparsed", "no program after the thinking")
    open_ended = code(problem(ASSERTS), Trace(problem_id="p", index=0, text=inside[:40]))
    assert open_ended.outcome == "unparsed"
    cut = code(problem(ASSERTS), trace("```python\ndef add(", finish_reason="length"))
    assert cut.outcome == "truncated"
    assert code(Problem(messages=()), trace("x")).outcome == "ungraded"


def later(*values: Any) -> Any:
    """A case that is tried among the slow tests."""
    return pytest.param(*values, marks=pytest.mark.slow)


# -- verdicts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tests", "program"),
    [
        (ASSERTS, "def add(a, b):\n    return a + b"),
        later("\n".join(ASSERTS), "add = lambda a, b: a + b"),
        later(json.dumps({"kind": "asserts", "asserts": ASSERTS}), "def add(a, b): return a + b"),
        (HUMANEVAL, "def total(xs: List[int]) -> int:\n    return sum(xs)"),
        later(HUMANEVAL, "    return sum(xs)"),
        (STDIO, "a, b = map(int, input().split())\nprint(a + b)"),
        later(STDIO, "import sys\nprint(float(sum(map(int, open(0).read().split()))), end='  ')"),
        (STDIO, "for a in open(0):\n    print(sum(map(int, a.split())))\n    exit()"),
        (FUNCTIONAL, SOLUTION),
        (
            FUNCTIONAL,
            SOLUTION.replace("class Solution:", "").replace("self, ", "").replace("\n    ", "\n"),
        ),
    ],
    ids=[
        "asserts",
        "code",
        "json",
        "whole",
        "body",
        "stdio",
        "numbers",
        "exit",
        "class",
        "function",
    ],
)
def test_right_programs(code: Code, tests: Any, program: str) -> None:
    made = graded(code, tests, program)
    assert (made.outcome, made.score, made.detail) == ("correct", 1.0, "")


@pytest.mark.parametrize(
    ("tests", "program", "score", "detail"),
    [
        (ASSERTS, "def add(a, b): return 3", 1 / 3, "test 2 of 3: got 3, expected [1, 2]; add("),
        later(
            ASSERTS, "def add(a, b): return a - b", 0, "test 1 of 3: got -1, expected 3; add(1, 2)"
        ),
        (ASSERTS, "def add(a, b): return 1 / 0", 0, "ZeroDivisionError: division by zero (line 1)"),
        (ASSERTS, "def add(a, b:", 0, "does not run: SyntaxError: "),
        later(ASSERTS, "def sub(a, b): return 3", 0, "NameError: name 'add' is not defined"),
        (HUMANEVAL, "def total(xs): return len(xs)", 0.4, "3 of 5: got 2, expected 3; candidate"),
        later(
            HUMANEVAL, "import nothing\ndef total(xs): pass", 0, "does not run: ModuleNotFoundError"
        ),
        (STDIO, "print(3)", 0.5, "test 2 of 2: got 3, expected 7; input 3 4"),
        later(
            STDIO, "import sys\nprint('oh', file=sys.stderr)", 0, "expected 3 (it complained: oh);"
        ),
        (STDIO, "print(1 / 0)", 0, "test 1 of 2: ZeroDivisionError: division by zero"),
        later(STDIO, "import sys\nsys.exit(3)", 0, "ended with exit code 3"),
        later(FUNCTIONAL, SOLUTION.replace("2)", "1)"), 0.5, "ValueError: not enough values"),
        later(FUNCTIONAL, "def other(): pass", 0, "does not run: defines no 'pairs'"),
    ],
)
def test_wrong_programs_and_why(
    code: Code, tests: Any, program: str, score: float, detail: str
) -> None:
    made = graded(code, tests, program)
    assert made.outcome == "wrong", made
    assert detail in made.detail
    assert made.score == pytest.approx(score)


IDIOMS = """
import atexit, io, os, sys, threading
sys.setrecursionlimit(10**6)
threading.stack_size(2**24)
input = io.BytesIO(os.read(0, 10**6)).readline
sys.stdout = io.StringIO()
atexit.register(lambda: sys.__stdout__.write(sys.stdout.getvalue()))
def deep(n):
    return 0 if n == 0 else 1 + deep(n - 1)
def main():
    print(sum(map(int, input().split())) + deep(5000) - 5000)
if __name__ == "__main__":
    threading.Thread(target=main).start()
"""


def test_what_contest_programs_do_works(code: Code) -> None:
    made = graded(code, STDIO, IDIOMS)
    assert made.correct, made.detail


def test_a_program_that_takes_too_long_is_wrong(code: Code) -> None:
    quick = Code(test_s=0.3, total_s=6.0)
    forever = "def add(a, b):\n    while a == 1: pass\n    return a + b"
    made = graded(quick, ASSERTS, forever)
    assert made.outcome == "wrong"
    assert made.detail == "test 1 of 3: took longer than 0.3 s; add(1, 2) == 3 (2 not run)"


def test_tests_that_cannot_be_used_are_nobodys_fault(code: Code) -> None:
    for tests in ({"kind": "no"}, ["assert ("], {"inputs": [1], "outputs": []}, [1], 5, "x = 1"):
        made = graded(code, tests, "def add(a, b): return a + b")
        assert made.outcome == "error", tests
        assert "test" in made.detail


# -- cheating --------------------------------------------------------------------------------

EQUAL = """
class Equal{base}:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __lt__
    def __sub__(self, other): return self
    __add__ = __rsub__ = __radd__ = __mul__ = __truediv__ = __neg__ = __sub__
    def __abs__(self): return self
    def __hash__(self): return 0
    def __bool__(self): return True
    def __len__(self): return 3
    def __getattr__(self, name): return self
    def __call__(self, *args): return self
def {name}(*args): return Equal()
"""
CHEATS = {
    "equal": EQUAL,
    "leave": "import sys\nsys.exit(0)\ndef {name}(*args): pass",
    "vanish": "import os\ndef {name}(*args): os._exit(0)",
    "exit late": "def {name}(*args): raise SystemExit(0)",
    "at exit": "import atexit, os\natexit.register(lambda: os._exit(0))\ndef {name}(*args): pass",
    "print": 'print(\'{{"test": 0, "passed": 9, "failed": 0}}\')\n'
    'print(\'{{"end": {{"why": ""}}}}\')\ndef {name}(*args): pass',
    "builtins": "import builtins\nbuiltins.abs = builtins.len = lambda *a: 0\n"
    "builtins.AssertionError = builtins.Exception = type('E', (BaseException,), {{}})\n"
    "abs = len = lambda *a: 0\ndef check(candidate): pass\n"
    "def {name}(*args): return 10 ** 9",
    "modules": "import sys, types\nclass M(types.ModuleType):\n"
    "    def __getattr__(self, name): return lambda *a, **k: True\n"
    "for m in list(sys.modules) + ['math', 'unittest']: sys.modules[m] = M(m)\n"
    "def {name}(*args): return 10 ** 9",
    "frames": "import sys, gc\ndef {name}(*args):\n    f = sys._getframe()\n    while f:\n"
    "        for n in list(f.f_locals): f.f_locals[n] = True\n        f = f.f_back\n"
    "    for o in gc.get_objects():\n        if type(o) is dict and 'failed' in o: o.clear()\n"
    "    return 10 ** 9",
    "pipes": "import os\nfor fd in range(3, 64):\n"
    "    try: os.write(fd, b'%019d\\n' % 12 + b'{{\"v\": true}}')\n"
    "    except OSError: pass\ndef {name}(*args): return 10 ** 9",
    "hello": "import os\nos.write(4, b'%019d\\n' % 3 + b'[1]')\ndef {name}(*args): return 1",
    "ready": "import os\nos.write(4, b'%019d\\n' % 11 + b'{{\"ready\": 5}}'[:11])\n"
    "def {name}(*args): return 1",
    "nonsense": "import os\nos.write(4, b'%019d\\n' % 10**12)\ndef {name}(*args): return 1",
    "thread": "import threading, os, time\ndef later():\n    time.sleep(0.01)\n    os._exit(0)\n"
    "threading.Thread(target=later).start()\ndef {name}(*args): time.sleep(1)",
    "neighbours": "import os, signal\ndef {name}(*args):\n    for p in os.listdir('/proc'):\n"
    "        if p.isdigit() and int(p) != os.getpid():\n"
    "            for path in ('mem', 'fd/1', 'fd/3', 'fd/4', 'fd/5'):\n"
    "                try: open('/proc/' + p + '/' + path, 'r+b').write(b'x')\n"
    "                except OSError: pass\n"
    "            os.kill(int(p), signal.SIGKILL)\n    return 10 ** 9",
    "raise": "def {name}(*args): raise AssertionError()",
    "escape": "def {name}(*args): raise ValueError('\\x1b[2J\\x1b]0;owned\\x07')",
    "recursion": "def {name}(*args):\n    x = []\n    x.append(x)\n    return x",
    "number": "from fractions import Fraction\nclass F(Fraction):\n"
    "    def __str__(self): return '1e999999999'\n"
    "F.__module__, F.__qualname__ = 'fractions', 'Fraction'\ndef {name}(*args): return F(1)",
}


QUICK = ("equal", "vanish", "builtins", "neighbours")


@pytest.mark.parametrize(
    "cheat", [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in CHEATS]
)
def test_cheats_do_not_pass_assertions(code: Code, cheat: str) -> None:
    program = CHEATS[cheat].format(name="total", base="(int)" if cheat == "equal" else "")
    made = graded(code, HUMANEVAL, program)
    assert made.outcome == "wrong", made
    assert made.detail.isprintable()


@pytest.mark.slow
@pytest.mark.parametrize("cheat", CHEATS, ids=str)
def test_cheats_do_not_pass_elsewhere(code: Code, cheat: str) -> None:
    for base in ("", "(str)", "(float)", "(tuple)", "(dict)"):
        if base and cheat != "equal":
            continue
        program = CHEATS[cheat].format(name="add", base=base)
        assert graded(code, ASSERTS, program).outcome == "wrong"
        program = CHEATS[cheat].format(name="pairs", base=base)
        assert graded(code, FUNCTIONAL, program).outcome == "wrong"
        assert graded(code, STDIO, f"{program}\npairs()").outcome == "wrong"


def test_the_tests_own_modules_are_the_real_ones(code: Code) -> None:
    tests = ["assert math.isclose(half(3), 1.5)"]
    assert graded(code, tests, "import math\ndef half(x): return x / 2").correct
    fake = "class math:\n    isclose = lambda a, b: True\ndef half(x): return 0"
    assert graded(code, tests, fake).outcome == "wrong"


def test_what_real_tests_do_with_programs(code: Code) -> None:
    program = """
import re
from collections import namedtuple, OrderedDict, Counter
from decimal import Decimal
class Node:
    def __init__(self, value): self.value, self.left = value, None
    def __eq__(self, other): return self.value == other.value
def depth(node): return 1 + (depth(node.left) if node.left else 0)
def put(xs, x): xs.append(x)
def twice(f, x): return f(f(x))
def adder(n): return lambda x: x + n
def squares(n):
    for i in range(n): yield i * i
def refuse(x): raise ValueError("no " + str(x))
def match(s): return re.match("a+", s)
def values():
    return [(1, "a"), {2, 3}, OrderedDict(x=1), Counter("aab"), b"b", 2**70, Decimal("1.50"),
            namedtuple("P", "x y")(1, 2), frozenset([1]), 1j, None, range(3), float("inf")]
def sum(a, b): return a + b
"""
    tests = [
        "root = Node(1)\nroot.left = Node(2)\nassert depth(root) == 2\nassert root.left.value == 2",
        "assert Node(3) == Node(3)\nassert not Node(3) == Node(4)\nassert isinstance(root, Node)",
        "xs = [1]\nput(xs, 2)\nassert xs == [1, 2]",
        "assert twice(lambda v: v * 3, 2) == 18",
        "assert adder(2)(3) == 5",
        "assert list(squares(3)) == [0, 1, 4]\nassert next(squares(2)) == 0",
        "try:\n    refuse(1)\n    assert 0\nexcept ValueError as e:\n    assert str(e) == 'no 1'",
        "assert match('aab')\nassert not match('b')\nassert match('aab').group() == 'aa'",
        "v = values()\nassert v[0] == (1, 'a') and v[1] == {2, 3} and v[2] == {'x': 1}",
        "assert v[3] == {'a': 2, 'b': 1} and v[4] == b'b' and v[5] == 2**70 and v[7] == (1, 2)",
        "from decimal import Decimal\nassert v[6] == Decimal('1.5') and v[8] == frozenset([1])",
        "assert v[9] == 1j and v[10] is None and list(v[11]) == [0, 1, 2] and v[12] > 1e308",
        "assert sum([1, 2]) == 3",
    ]
    made = graded(code, tests, program)
    assert made.correct, made.detail


def test_equal_programs_are_checked_once(code: Code) -> None:
    first = code.quick(problem(ASSERTS), trace("```python\nx = 1\n```"))
    other = code.quick(problem(ASSERTS), trace("Well:\n```\nx = 1\n```"))
    third = code.quick(problem(ASSERTS[:1]), trace("```\nx = 1\n```"))
    assert isinstance(first, Check)
    assert isinstance(other, Check)
    assert isinstance(third, Check)
    assert first.key == other.key != third.key


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="above zero"):
        Code(test_s=0)
    with pytest.raises(UsageError, match="no sandbox 'none'"):
        Code(sandbox="none")
    lazy = Code(sandbox="none", lazy=True)
    lazy.ready([Problem(messages=(), gold="1")])
    with pytest.raises(UsageError, match="no sandbox 'none'"):
        lazy.ready([problem(ASSERTS)])


# -- from a data set to a grade --------------------------------------------------------------


def source(tmp_path: Path, rows: list[dict[str, Any]], **spec: Any) -> list[Problem]:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = Problems.model_validate({"sources": [{"file": "rows.jsonl", **spec}]})
    make_problems(config, folder=tmp_path, out=tmp_path / "out")
    return [Problem(**row) for row in read_jsonl(tmp_path / "out" / "problems.jsonl")]


def test_humaneval_columns(tmp_path: Path, code: Code) -> None:
    row = {"prompt": HUMANEVAL["prompt"], "test": HUMANEVAL["test"], "entry_point": "total"}
    (made,) = source(tmp_path, [row], question="prompt", tests={"kind": "humaneval"})
    assert made.metadata["tests"] == HUMANEVAL
    assert made.messages[-1]["content"].endswith("in one Python code block.")
    assert code(made, trace("```python\n    return sum(xs)\n```")).correct


def test_mbpp_columns_are_shown(tmp_path: Path, code: Code) -> None:
    row = {"text": "Add.", "test_list": ASSERTS, "test_setup_code": ""}
    (made,) = source(tmp_path, [row], question="text", tests={"kind": "mbpp"})
    assert made.statement == "Add."
    assert ASSERTS[0] in made.messages[-1]["content"]
    assert code(made, trace("```python\ndef add(a, b): return a + b\n```")).correct


def test_livecodebench_columns(tmp_path: Path, code: Code) -> None:
    public = json.dumps([{"input": "[1, 2]\n1", "output": "[[1, 2]]", "testtype": "functional"}])
    hidden = json.dumps([{"input": "[]\n0", "output": "[]", "testtype": "functional"}])
    packed = base64.b64encode(zlib.compress(pickle.dumps(hidden))).decode()
    row = {
        "question_content": "Find pairs.",
        "public_test_cases": public,
        "private_test_cases": packed,
        "metadata": json.dumps({"func_name": "pairs"}),
        "starter_code": "class Solution:\n    def pairs(self, nums, k):\n        ",
    }
    spec = {"question": "question_content", "tests": {"kind": "livecodebench"}}
    (made,) = source(tmp_path, [row], **spec)
    assert "class Solution:" in made.messages[-1]["content"]
    assert len(made.metadata["tests"]["inputs"]) == 2
    assert code(made, trace(f"```python\n{SOLUTION}\n```")).correct
    spec["tests"]["most"] = 1
    (made,) = source(tmp_path, [row], **spec)
    assert len(made.metadata["tests"]["inputs"]) == 1


def test_apps_columns_and_a_column_of_ones_own(tmp_path: Path, code: Code) -> None:
    row = {"question": "Add.", "input_output": json.dumps(STDIO)}
    (made,) = source(tmp_path, [row], question="question", tests={"kind": "apps"})
    assert "stdin" in made.messages[-1]["content"]
    right = "print(sum(map(int, input().split())))"
    assert code(made, trace(f"```python\n{right}\n```")).correct
    (made,) = source(tmp_path, [{"problem": "Add.", "tests": ASSERTS}], tests="tests")
    assert code(made, trace("```python\ndef add(a, b): return a + b\n```")).correct


def test_rows_with_bad_tests_are_bad_rows(tmp_path: Path) -> None:
    rows = [
        {"problem": "a", "tests": ASSERTS},
        {"problem": "b", "tests": ["assert ("]},
        {"problem": "c", "tests": []},
        {"problem": "d"},
    ]
    assert len(source(tmp_path, rows, tests="tests")) == 1
    bad = list(read_jsonl(tmp_path / "out" / "bad.jsonl"))
    assert [row["row"] for row in bad] == [1, 2, 3]
    assert "does not parse" in bad[0]["reason"]


@pytest.mark.slow
def test_in_grading_workers(code: Code) -> None:
    right, wrong = "def add(a, b): return a + b", "def add(a, b): return 3"
    traces = [
        trace(f"```python\n{p}\n```") for p in (right, wrong, right, "import os; os._exit(0)")
    ]
    config = Grading.model_validate({"graders": [{"code": {"test_s": 5}}], "workers": 2})
    with Judge(config, Path.cwd()) as judge:
        grades = list(judge.grade_many((problem(ASSERTS), t) for t in traces))
        assert judge.pool.killed == 0
    assert [g.outcome for g in grades] == ["correct", "wrong", "correct", "wrong"]
    assert grade_code(ASSERTS, f"```python\n{right}\n```").correct
    auto = Judge(Grading(), Path.cwd())
    with auto as judge:
        assert judge.grade(problem(ASSERTS), traces[0]).grader == "code"


@pytest.mark.slow
def test_reference_solutions_are_right_and_mutants_wrong(shared: Path, code: Code) -> None:
    code = Code(test_s=15.0)
    rows = list(read_jsonl(shared / "problems" / "humaneval.jsonl"))[::16]
    for row in rows:
        tests = {**row, "kind": "humaneval", "prompt": row["problem"]}
        assert graded(code, tests, row["problem"] + row["solution"]).correct, row["id"]
        assert code(problem(tests), trace(row["solution"].strip("\n"))).correct, row["id"]
        wrong = graded(code, tests, f"{row['problem']}    return None\n")
        assert wrong.outcome == "wrong", row["id"]
    for row in list(read_jsonl(shared / "problems" / "mbpp_test.jsonl"))[::32]:
        tests = {"asserts": row["test_list"], "setup": row["test_setup_code"]}
        assert graded(code, tests, row["solution"]).correct, row["id"]
        called = row["test_list"][0].removeprefix("assert ").lstrip("(").partition("(")[0]
        if called.isidentifier() and called not in ("set", "len", "sorted", "math"):
            mutant = f"{row['solution']}\n{called} = lambda *a, **k: None"
            assert graded(code, tests, mutant).outcome == "wrong", row["id"]
