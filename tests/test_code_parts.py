"""What grading programs is made of, without a sandbox: finding, reading, sending, comparing."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.grade import sandbox_wire as wire
from distill.grade.code_tests import read_tests, same_output, same_value, soften
from distill.grade.program import blocks, completed, find_program


def test_the_last_python_block_is_the_program() -> None:
    text = "Draft:\n```python\nx = 1\n```\nBetter:\n```py\nx = 2\n```\nIt prints\n```\n2\n```\n"
    assert find_program(text) == "x = 2"
    assert find_program("```\nx = 3\n```") == "x = 3"
    assert find_program("```cpp\nint x;\n```") is None
    assert (
        find_program("1. Do\n   ```python\n   def f():\n       pass\n   ```")
        == "def f():\n    pass"
    )
    assert find_program("I do not know.") is None


def test_an_example_of_its_use_is_not_the_program() -> None:
    text = "```python\ndef f(x): return x\n```\nUse it:\n```python\nprint(f(1))\n```"
    assert find_program(text, names=["f"]) == "def f(x): return x"


def test_a_program_without_fences() -> None:
    text = "Here you are:\n\nimport math\n\ndef f(x):\n    return x\n\nThis is right."
    assert find_program(text) == "import math\n\ndef f(x):\n    return x\n"
    assert find_program("n = int(input())\nprint(n)") == "n = int(input())\nprint(n)"


def test_a_program_that_was_cut_off_is_none() -> None:
    assert find_program("```python\nx = 1\n", cut=True) is None
    assert find_program("```python\nx = 1\n") == "x = 1\n"
    assert find_program("```python\nx = 1\n```\n And", cut=True) == "x = 1"


@given(st.text(alphabet="`~ \npython=x1()\t", max_size=300), st.booleans())
def test_any_text_gives_a_program_or_none(text: str, cut: bool) -> None:
    found = find_program(text, cut=cut, names=["f"])
    assert found is None or isinstance(found, str)
    assert all(block.text in text or block.text for block in blocks(text) if block.text)


def test_the_search_is_linear() -> None:
    long = 150_000
    for text in ("```" + " " * long + "`", "`" * long + "x`", "from import " * (long // 12)):
        find_program(text, names=["f"])
        find_program(f"```\n{text}\n```", names=["f"])
        find_program(f"x{text}", names=["f"])
    find_program("a" + " ," * (long // 2), names=["f"])


@pytest.mark.parametrize(
    "body",
    [
        "    if n:\n        return 1\n    return 2",
        "if n:\n        return 1\n    return 2",
        "if n:\n    return 1\nreturn 2",
        "return 1 if n else 2\n\ndef other():\n    pass",
    ],
)
def test_a_body_completes_its_function(body: str) -> None:
    names: dict[str, Any] = {}
    exec(completed('def f(n):\n    """Doc."""\n', body), names)
    assert names["f"](1) == 1
    assert names["f"](0) == 2


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.dates()
    | st.timedeltas()
    | st.datetimes(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.frozensets(st.integers() | st.text(max_size=2), max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(PLAIN)
def test_plain_data_crosses_unchanged(value: Any) -> None:
    sent = json.loads(json.dumps(wire.encode(value, repr)))
    assert wire.decode(sent, str) == value
    assert type(wire.decode(sent, str)) is type(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from("itdszbacrnyqok"), inner, max_size=2)
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(JSON)
def test_whatever_a_program_sends_is_data_or_refused(data: Any) -> None:
    with contextlib.suppress(wire.Closed):
        wire.decode(data, lambda handle: "an object")


TESTS = st.dictionaries(
    st.sampled_from(["kind", "test", "asserts", "inputs", "outputs", "fn_name", "cases", "setup"]),
    JSON | st.sampled_from(["stdio", "functional", "humaneval", "asserts", "cases", "x = 1"]),
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(TESTS | JSON | st.text())
def test_any_tests_are_read_or_refused(value: Any) -> None:
    with contextlib.suppress(ValueError):
        assert read_tests(value).count


def test_softened_tests_say_the_same() -> None:
    assert "assert" not in soften("for i in range(3):\n    assert f(i) == i, 'message'")
    kept = "try:\n    f()\n    assert False\nexcept AssertionError:\n    pass"
    assert soften(kept) == kept
    with pytest.raises(ValueError, match="does not parse"):
        soften("assert (")


@pytest.mark.parametrize(
    ("got", "expected", "tolerance", "same"),
    [
        ("3 \n\n", "3", None, True),
        ("3\n4", "3\n4\n", None, True),
        ("3 4", "3\n4", None, False),
        ("1.50", "1.5", None, True),
        ("50000000000000001", "50000000000000000", None, False),
        ("0.3333333", "0.3333334", None, False),
        ("0.3333333", "0.3333334", 1e-6, True),
        ("Case 1: 0.3333333", "Case 1: 0.3333334", 1e-6, True),
        ("1_000", "1000", None, False),
        ("nan", "nan", None, True),
        ("sNaN 1", "1 sNaN", 1e-6, False),
        ("", "0", None, False),
    ],
)
def test_outputs_are_compared_as_livecodebench_does(
    got: str, expected: str, tolerance: float | None, same: bool
) -> None:
    assert (same_output(got, expected, tolerance) == "") is same


def test_values_are_compared_as_json_has_them() -> None:
    assert same_value([(1, 2)], [[1, 2]])
    assert same_value({1: (2,)}, {"1": [2]})
    assert not same_value([1, 2], [1])
    assert not same_value({1}, [1])
    assert same_value(0.1 + 0.2, 0.3, 1e-9)
    assert not same_value(0.1 + 0.2, 0.3)
