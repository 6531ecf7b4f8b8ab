"""The tests of a row of a data set: from the columns of HumanEval, MBPP, LiveCodeBench or APPS.

Each preset says which columns it reads, what becomes `metadata["tests"]` (`code_tests` reads it)
and what is added to the question, which in MBPP and LiveCodeBench does not name the function.
"""

from __future__ import annotations

import base64
import json
import pickletools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from distill.grade.code_tests import read_tests
from distill.schema_data import CodeTests
from distill.tables import column

INSTRUCTION = "Write the whole solution in one Python code block."
"""Appended to the questions of a source with tests that has no `instruction` of its own."""

MOST_PACKED = 256 << 20
"""Longest unpacked column of LiveCodeBench's hidden tests, in bytes."""

Row = Mapping[str, Any]

COLUMNS: Mapping[str, Mapping[str, str]] = {
    "humaneval": {"prompt": "prompt", "test": "test", "entry_point": "entry_point"},
    "mbpp": {"asserts": "test_list", "setup": "test_setup_code", "imports": "test_imports"},
    "livecodebench": {
        "public": "public_test_cases",
        "private": "private_test_cases",
        "metadata": "metadata",
        "starter": "starter_code",
    },
    "apps": {"input_output": "input_output", "starter": "starter_code"},
}
"""For each preset: what it reads -> the column's name in the published data set."""

MAY_LACK = ("setup", "imports", "private", "metadata", "starter")


def tests_of(spec: CodeTests | str, row: Row) -> tuple[Any, str]:
    """The tests of a row, and what is to be added to its question.

    Raises KeyError with the name of a column that is not there, ValueError for tests that cannot
    be used.
    """
    if isinstance(spec, str):
        held, added = column(row, spec), ""
        held = json.loads(held) if isinstance(held, str) and held.strip()[:1] == "{" else held
    else:
        cells = _cells(spec, row)
        try:
            held, added = _PRESETS[spec.kind](cells, spec.most)
        except (KeyError, TypeError, AttributeError) as error:
            told = f"{type(error).__name__}: {error}"
            raise ValueError(f"tests that are not as in {spec.kind}: {told}") from None
    read_tests(held)
    return held, added


def _cells(spec: CodeTests, row: Row) -> dict[str, Any]:
    cells = {}
    for part, usual in COLUMNS[spec.kind].items():
        name = spec.columns.get(part, usual)
        try:
            cells[part] = column(row, name)
        except KeyError:
            if part not in MAY_LACK or part in spec.columns:
                raise
            cells[part] = None
    return cells


def _humaneval(cells: Row, most: int | None) -> tuple[Any, str]:
    return {"kind": "humaneval", **cells}, ""


def _mbpp(cells: Row, most: int | None) -> tuple[Any, str]:
    asserts = list(cells["asserts"])[:most]
    held: dict[str, Any] = {"kind": "asserts", "asserts": asserts}
    before = [*(cells["imports"] or ()), *([cells["setup"]] if cells["setup"] else ())]
    if before:
        held["setup"] = "\n".join(before)
    shown = "\n".join(str(a) for a in asserts[:3])
    return held, f"\n\nYour code should pass these tests:\n\n{shown}"


def _livecodebench(cells: Row, most: int | None) -> tuple[Any, str]:
    cases = [*_listed(cells["public"]), *_hidden(cells["private"])][:most]
    held: dict[str, Any] = {
        "kind": "stdio",
        "inputs": [case["input"] for case in cases],
        "outputs": [case["output"] for case in cases],
    }
    metadata = cells["metadata"]
    metadata = json.loads(metadata) if isinstance(metadata, str) and metadata else metadata or {}
    if metadata.get("func_name"):
        held |= {"kind": "functional", "fn_name": metadata["func_name"]}
    return held, _format(cells["starter"])


def _apps(cells: Row, most: int | None) -> tuple[Any, str]:
    given = cells["input_output"]
    given = json.loads(given) if isinstance(given, str) else given
    held = {"inputs": given["inputs"][:most], "outputs": given["outputs"][:most]}
    if given.get("fn_name"):
        return {"kind": "functional", "fn_name": given["fn_name"], **held}, _format(
            cells["starter"]
        )
    return {"kind": "stdio", **held}, _format(None)


def _format(starter: Any) -> str:
    if starter:
        return f"\n\nStart from this code:\n\n```python\n{str(starter).rstrip()}\n```"
    return "\n\nRead the input from stdin and write the answer to stdout."


def _listed(value: Any) -> list[Any]:
    found = json.loads(value) if isinstance(value, str) else value
    if not isinstance(found, list):
        raise ValueError(f"test cases are a {type(found).__name__}, expected a list")
    return found


def _hidden(value: Any) -> list[Any]:
    """LiveCodeBench's hidden tests: JSON, or base64 of a compressed pickle of the JSON's text.

    The pickle is not loaded: the one text in it is read out.
    """
    if not value:
        return []
    if not isinstance(value, str) or value.lstrip()[:1] == "[":
        return _listed(value)
    packed = zlib.decompressobj()
    try:
        pickled = packed.decompress(base64.b64decode(value), MOST_PACKED)
        if not packed.eof:
            raise ValueError(f"unpack to more than {MOST_PACKED >> 20} MiB or break off")
        texts = [arg for _, arg, _ in pickletools.genops(pickled) if isinstance(arg, str)]
        return _listed(texts[0])
    except (zlib.error, ValueError, IndexError) as error:
        raise ValueError(f"hidden tests cannot be read: {error}") from None


_PRESETS: Mapping[str, Callable[[Row, int | None], tuple[Any, str]]] = {
    "humaneval": _humaneval,
    "mbpp": _mbpp,
    "livecodebench": _livecodebench,
    "apps": _apps,
}
