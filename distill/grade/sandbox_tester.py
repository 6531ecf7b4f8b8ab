"""The process in a sandbox that holds the tests, apart from the program that they test.

Test code runs here as it was written; the program's functions and objects stand in it as `Remote`,
and every use of one is a message to the program's process (`sandbox_remote`). Answers arrive as
plain data, so that comparing them is out of the program's reach. Standard library only: this file
is sent into sandboxes.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import json
import os
import sys

from distill.grade.sandbox_remote import Gone, Link
from distill.grade.sandbox_wire import Channel, encode

TYPE_CHECKING = False  # typing takes longer to import than all the rest
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

# ruff: noqa: UP006, UP035, UP045

PREFIX = "__distill_"
"""How the names begin that `distill.grade.code_tests` writes into tests instead of `assert`."""


class Names(dict):  # type: ignore[type-arg]
    """A test's global names: its own first, then builtins, then the program's."""

    def __init__(self, link: Link, ours: List[str], entry: Optional[str]) -> None:
        super().__init__()
        self["__builtins__"] = builtins
        self["__name__"] = "tests"
        self.link, self.entry = link, entry
        # A program must not put its own `abs` or `len` under the tests.
        self.program = {n for n in ours if not hasattr(builtins, n) or n == entry}

    def __missing__(self, name: str) -> Any:
        if name in self.program:
            return self.link.held({"o": name, "type": name})
        raise KeyError(name)


class Tally:
    """What the assertions of one test said; installed in its names."""

    def __init__(self) -> None:
        self.passed = self.failed = 0
        self.first: Dict[str, str] = {}

    def install(self, names: Names) -> None:
        for name in ("same", "holds", "raised"):
            names[PREFIX + name] = getattr(self, name)
        names[PREFIX + "Exception"] = Exception

    def same(self, left: Any, right: Any, source: str) -> None:
        if left == right:
            self.passed += 1
        else:
            self.fail(source, got=short(left), expected=short(right))

    def holds(self, value: Any, source: str) -> None:
        if value:
            self.passed += 1
        else:
            self.fail(source)

    def raised(self, error: BaseException, source: str) -> None:
        self.fail(source, raised=explain(error))

    def fail(self, source: str, **how: str) -> None:
        self.failed += 1
        self.first = self.first or {"source": source, **how}


def explain(error: BaseException) -> str:
    """An exception in one line: the program's own words where it was the program's."""
    told = getattr(error, "told", "")
    return told or " ".join((f"{type(error).__name__}: {error}").split())[:400]


def short(value: Any) -> str:
    """A value in at most 80 characters."""
    import reprlib

    brief = reprlib.Repr()
    brief.maxlist = brief.maxtuple = brief.maxdict = brief.maxset = 12
    brief.maxstring = brief.maxother = brief.maxlong = 60
    try:
        return brief.repr(value)[:80]
    except Exception:
        return f"a {type(value).__name__}"


class Tester:
    """Runs tests against a program and writes one JSON line for each to `out`."""

    def __init__(self, link: Link, tests: Dict[str, Any], out: int) -> None:
        self.link, self.tests, self.out = link, tests, out

    def emit(self, **row: Any) -> None:
        data = json.dumps(row).encode("ascii") + b"\n"
        while data:
            data = data[os.write(self.out, data) :]

    def run(self) -> None:
        try:
            hello = self.link.exchange(None)
        except Gone as error:
            self.emit(broken=str(error))
            return
        ready = hello.get("ready") if isinstance(hello, dict) else None
        if not isinstance(ready, list):
            failed = hello.get("failed") if isinstance(hello, dict) else None
            self.emit(broken=str(failed or "what it sends cannot be read")[:500])
            return
        ours = [n for n in ready if isinstance(n, str)]
        entry = self.tests.get("entry")
        if entry and entry not in ours and "Solution" not in ours:
            self.emit(broken=f"defines no '{entry}'")
            return
        # A failure for good was said in the row of its test.
        with contextlib.suppress(Gone):
            if self.tests["kind"] == "functional":
                self.functional(str(entry), "Solution" in ours and entry not in ours)
            else:
                self.code(entry, ours)

    def functional(self, entry: str, in_class: bool) -> None:
        try:
            where = self._named("Solution")() if in_class else None
            method = getattr(where, entry) if in_class else self._named(entry)
        except Exception as error:
            self.emit(broken=explain(error))
            return
        self.link.watching = False
        for number, args in enumerate(self.tests["inputs"]):
            self.link.begin()
            try:
                self.emit(test=number, value=encode(method(*args), self.link.keep))
            except Gone as error:
                self.emit(test=number, why=str(error))
                raise
            except Exception as error:
                self.emit(test=number, why=explain(error))

    def _named(self, name: str) -> Any:
        return self.link.held({"o": name, "type": name})

    def code(self, entry: Optional[str], ours: List[str]) -> None:
        names = Names(self.link, ours, entry)
        for module in self.tests["modules"]:
            names[module] = importlib.import_module(module)
        for source in self.tests["prelude"]:
            with contextlib.suppress(Exception):  # a prompt may be no whole program
                exec(compile(source, "<prompt>", "exec"), names)
        if entry:
            names.pop(entry, None)
        setup = self.tests.get("setup")
        for number, source in enumerate(self.tests["items"]):
            self.link.begin()
            tally = Tally()
            tally.install(names)
            try:
                if setup:
                    exec(compile(setup, "<setup>", "exec"), names)
                    setup = None
                self._one(names, source, entry if self.tests.get("check") else None)
            except Gone:
                pass
            except BaseException as error:
                tally.fail("", raised=explain(error))
            why = self.link.gone
            if why:
                tally.fail("")
            self.emit(
                test=number, passed=tally.passed, failed=tally.failed, how=tally.first, why=why
            )
            if why:
                return

    def _one(self, names: Names, source: str, entry: Optional[str]) -> None:
        exec(compile(source, "<test>", "exec"), names)
        if entry:
            names["check"](self._named(entry))
            return
        for name in [n for n in names if n.startswith("test_") and callable(names[n])]:
            names[name]()


def main(header: Dict[str, Any], tests: Dict[str, Any], channel: Channel, program: int) -> None:
    """The life of the testing process: rows to the supervisor's stdout, nothing else."""
    out = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    if "random" in json.dumps(tests):
        import random

        random.seed(0)  # the same program gets the same grade
    sys.setrecursionlimit(10_000)
    Tester(Link(channel, program, header["limits"]["test_s"]), tests, out).run()
