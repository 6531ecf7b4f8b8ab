"""Tests of programs in the forms in which data sets bring them, made ready for a sandbox.

`read_tests` understands HumanEval's `check(candidate)`, MBPP's assertions, and inputs with outputs
as LiveCodeBench, APPS and TACO have them, for whole programs and for functions.
"""

from __future__ import annotations

import ast
import builtins
import functools
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from distill.grade.sandbox_tester import PREFIX

KINDS = ("humaneval", "asserts", "stdio", "functional")


@dataclass(frozen=True, slots=True)
class Tests:
    """Tests in one form. `kind` is one of KINDS.

    `items` is test code, `sources` the same before it was made ready; `entry` the function that it
    is about; `inputs` are texts for stdin or lists of arguments, `outputs` what is expected, as
    text or values.
    """

    kind: str
    items: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    entry: str | None = None
    prompt: str = ""
    setup: str = ""
    inputs: tuple[Any, ...] = ()
    outputs: tuple[Any, ...] = ()
    tolerance: float | None = None

    @property
    def count(self) -> int:
        """How many there are; HumanEval's are counted when they run."""
        return len(self.inputs or self.items)


def read_tests(value: Any) -> Tests:
    """The tests in a problem's metadata, whatever their form. Raises ValueError with what is wrong.

    A list of texts is a list of assertions, any other text is test code, or JSON of one of these.
    """
    if isinstance(value, str):
        text = value.strip()
        if text[:1] in ("{", "["):
            try:
                return read_tests(json.loads(text))
            except json.JSONDecodeError:
                pass
            except RecursionError:
                raise ValueError("they are nested too deeply") from None
        value = {"kind": "humaneval", "test": value}
    if isinstance(value, list | tuple):
        if value and all(isinstance(v, Mapping) for v in value):
            value = {"kind": "cases", "cases": value}
        else:
            value = {"kind": "asserts", "asserts": value}
    if not isinstance(value, Mapping):
        raise ValueError(f"tests are a {type(value).__name__}, expected an object")
    try:
        made = _READERS[_kind(value)](value)
    except (TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(f"they cannot be read: {type(error).__name__}: {error}") from None
    if not made.count:
        raise ValueError("there are no tests")
    return made


def names_in(value: Any) -> list[str]:
    """What a program for these tests has to define, as far as a look at them tells."""
    if isinstance(value, Mapping):
        found = [value[key] for key in ("entry_point", "fn_name") if value.get(key)]
        if found:
            return [*map(str, found), "Solution"]
        value = value.get("asserts", value.get("test_list"))
    if not isinstance(value, list | tuple):
        return []
    called = re.findall(r"\b([A-Za-z_]\w*)\(", " ".join(str(v) for v in value)[:20_000])
    return [name for name in dict.fromkeys(called) if not hasattr(builtins, name)]


def _kind(value: Mapping[str, Any]) -> str:
    named = value.get("kind")
    if named is not None:
        if named not in _READERS:
            raise ValueError(f"no kind of tests '{named}': it is one of {', '.join(KINDS)}")
        return str(named)
    for key, kind in (("test", "humaneval"), ("asserts", "asserts"), ("test_list", "asserts")):
        if key in value:
            return kind
    if "inputs" in value:
        return "functional" if value.get("fn_name") else "stdio"
    raise ValueError(f"tests need a kind, one of {', '.join(KINDS)}; found {sorted(value)}")


def _humaneval(value: Mapping[str, Any]) -> Tests:
    test = _text(value, "test")
    return Tests(
        "humaneval",
        items=(soften(test),),
        entry=value.get("entry_point"),
        prompt=str(value.get("prompt") or ""),
    )


def _asserts(value: Mapping[str, Any]) -> Tests:
    given = value.get("asserts", value.get("test_list"))
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, Sequence) or not all(isinstance(a, str) for a in given):
        raise ValueError("asserts are a list of texts")
    setup = value.get("setup", value.get("test_setup_code")) or ""
    imports = value.get("test_imports") or ()
    before = "\n".join([*imports, str(setup)])
    items = tuple(soften(a) for a in given)
    return Tests(
        "asserts",
        items=items,
        sources=tuple(given),
        setup=soften(before),
        entry=_builtin_tested(given),
    )


def _builtin_tested(asserts: Sequence[str]) -> str | None:
    """The builtin's name that a tested function has (MBPP 126 tests a `sum`), if it has one.

    That is so where every assertion calls builtins only: else the builtin is the test's own.
    """
    found: set[str] = set()
    for source in asserts:
        calls = [n.func for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
        names = {f.id if isinstance(f, ast.Name) else "" for f in calls}
        if len(names) != 1 or not names <= set(dir(builtins)):
            return None
        found |= names
    return found.pop() if len(found) == 1 else None


def modules_of(sources: Sequence[str]) -> list[str]:
    """Modules that tests use without importing them: they get the real ones.

    MBPP's tests say `math.isclose(...)` and rely on the program to have imported it; a program
    must not be asked for the `math` that judges it.
    """
    found = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                found.add(node.value.id)
    return sorted(found & sys.stdlib_module_names)


def _stdio(value: Mapping[str, Any]) -> Tests:
    inputs, outputs = _pairs(value)
    return Tests(
        "stdio",
        inputs=tuple(_joined(v) for v in inputs),
        outputs=tuple(_joined(v) for v in outputs),
        tolerance=_tolerance(value),
    )


def _functional(value: Mapping[str, Any]) -> Tests:
    inputs, outputs = _pairs(value)
    return Tests(
        "functional",
        inputs=tuple(_arguments(v) for v in inputs),
        outputs=tuple(_value(v) for v in outputs),
        entry=_text(value, "fn_name"),
        tolerance=_tolerance(value),
    )


def _cases(value: Mapping[str, Any]) -> Tests:
    """LiveCodeBench's own rows: `[{input, output, testtype}]`."""
    cases = value["cases"]
    together = {
        "inputs": [case.get("input", "") for case in cases],
        "outputs": [case.get("output", "") for case in cases],
        "fn_name": value.get("fn_name"),
    }
    functional = any(case.get("testtype") == "functional" for case in cases)
    return _functional(together) if functional or value.get("fn_name") else _stdio(together)


_READERS = {
    "humaneval": _humaneval,
    "asserts": _asserts,
    "stdio": _stdio,
    "functional": _functional,
    "cases": _cases,
}


def _text(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key)
    if not isinstance(found, str) or not found.strip():
        raise ValueError(f"'{key}' is {found!r:.40}, expected text")
    return found


def _pairs(value: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    inputs, outputs = value.get("inputs"), value.get("outputs")
    if not isinstance(inputs, list | tuple) or not isinstance(outputs, list | tuple):
        raise ValueError("inputs and outputs are lists")
    if len(inputs) != len(outputs):
        raise ValueError(f"{len(inputs)} inputs and {len(outputs)} outputs")
    return list(inputs), list(outputs)


def _tolerance(value: Mapping[str, Any]) -> float | None:
    found = value.get("tolerance")
    return None if found is None else float(found)


def _joined(value: Any) -> str:
    return "\n".join(str(v) for v in value) if isinstance(value, list) else str(value)


def _arguments(value: Any) -> list[Any]:
    """LiveCodeBench writes one argument a line, as JSON."""
    if isinstance(value, str):
        return [_value(line) for line in value.split("\n") if line.strip()]
    return list(value) if isinstance(value, list | tuple) else [value]


def _value(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


# -- assertions ------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def soften(source: str) -> str:
    """Test code in which a failed assertion is counted and the ones after it are tried as well.

    `assert f(x) == y` becomes a call that is handed both sides. Raises ValueError for test code
    that does not parse.
    """
    try:
        return ast.unparse(Soften().visit(ast.parse(source)))
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"test code does not parse: {error}") from None


class Soften(ast.NodeTransformer):
    """Makes a failed assertion a count, so that the ones after it are tried as well.

    Inside a `try` that has handlers an assertion stays as it is: the handlers may be for it.
    """

    def visit_Try(self, node: ast.Try) -> Any:
        if not node.handlers:
            return self.generic_visit(node)
        node.handlers = [self.visit(n) for n in node.handlers]
        node.orelse = [self.visit(n) for n in node.orelse]
        node.finalbody = [self.visit(n) for n in node.finalbody]
        return node

    def visit_Assert(self, node: ast.Assert) -> Any:
        test, source = node.test, ast.Constant(ast.unparse(node.test)[:300])
        args: list[ast.expr] = [test, source]
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and type(test.ops[0]) is ast.Eq:
            args = [test.left, test.comparators[0], source]
        body: list[ast.stmt] = [ast.Expr(self._call("same" if len(args) == 3 else "holds", args))]
        caught = ast.Expr(self._call("raised", [ast.Name(PREFIX + "e", ast.Load()), source]))
        handler = ast.ExceptHandler(
            ast.Name(PREFIX + "Exception", ast.Load()), PREFIX + "e", [caught]
        )
        made = ast.Try(body=body, handlers=[handler], orelse=[], finalbody=[])
        return ast.fix_missing_locations(ast.copy_location(made, node))

    @staticmethod
    def _call(name: str, args: list[ast.expr]) -> ast.Call:
        return ast.Call(func=ast.Name(PREFIX + name, ast.Load()), args=args, keywords=[])


# -- comparing what came out -----------------------------------------------------------------


def same_output(got: str, expected: str, tolerance: float | None = None) -> str:
    """Empty if two outputs are the same, else the first difference.

    As LiveCodeBench compares: white space at both ends of the text and of every line does not
    count, and lines of numbers are compared as numbers; with `tolerance`, relatively or absolutely
    within it.
    """
    ours = [line.strip() for line in got.strip().split("\n")]
    theirs = [line.strip() for line in expected.strip().split("\n")]
    for number, (a, b) in enumerate(zip(ours, theirs, strict=False), 1):
        if a != b and not _same_numbers(a, b, tolerance):
            where = f" in line {number}" if len(theirs) > 1 else ""
            return f"got {brief(a)}, expected {brief(b)}{where}"
    if len(ours) != len(theirs):
        return f"printed {len(ours)} lines, expected {len(theirs)}"
    return ""


def _same_numbers(a: str, b: str, tolerance: float | None) -> bool:
    left, right = a.split(), b.split()
    if len(left) != len(right) or "_" in a:
        return False
    for x, y in zip(left, right, strict=True):
        if x == y and tolerance is not None:
            continue  # words between numbers
        try:
            if Decimal(x) == Decimal(y):
                continue
            if tolerance is None or not _near(float(x), float(y), tolerance):
                return False
        except (InvalidOperation, ValueError, OverflowError):
            return False
    return True


def _near(a: float, b: float, tolerance: float) -> bool:
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)


def same_value(got: Any, expected: Any, tolerance: float | None = None) -> bool:
    """Whether a function's result is the expected one; tuples count as lists, as JSON has none."""
    if isinstance(got, tuple | list) and isinstance(expected, list | tuple):
        return len(got) == len(expected) and all(
            same_value(a, b, tolerance) for a, b in zip(got, expected, strict=True)
        )
    if isinstance(got, dict) and isinstance(expected, dict):
        # JSON has text for keys only.
        ours = {str(k): v for k, v in got.items()}
        theirs = {str(k): v for k, v in expected.items()}
        return ours.keys() == theirs.keys() and all(
            same_value(v, theirs[k], tolerance) for k, v in ours.items()
        )
    if isinstance(got, float) and tolerance is not None and isinstance(expected, int | float):
        return _near(got, float(expected), tolerance)
    return bool(got == expected)


def brief(value: Any, most: int = 60) -> str:
    """A value or text for a line of detail."""
    text = clean(value if isinstance(value, str) else repr(value)) or "nothing"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def clean(text: str) -> str:
    """One line that does nothing to a terminal: what cannot be printed becomes U+FFFD."""
    line = " ".join(text.split())
    return line if line.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in line)
