"""The process in a sandbox that holds the tests, apart from the program that they test.

Test code runs here as it was written; the program's functions and objects stand in it as `Remote`,
and every use of one is a message to the program's process. Answers arrive as plain data, so that
comparing them is out of the program's reach. Standard library only: this file is sent into
sandboxes.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import json
import os
import sys
import time

from distill.grade.sandbox_wire import Channel, Closed, Late, decode, encode, waited

TYPE_CHECKING = False  # typing takes longer to import than all the rest
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Optional

# ruff: noqa: UP006, UP035, UP045

PREFIX = "__distill_"
"""How the names begin that `distill.grade.code_tests` writes into tests instead of `assert`."""


class Gone(BaseException):
    """The program gives no more answers; why is the argument. No `except Exception` stops it."""


class Link:
    """Asks the program's process, in the time that a test has."""

    def __init__(self, channel: Channel, program: int, test_s: float) -> None:
        self.channel, self.program, self.test_s = channel, program, test_s
        self.waited = self.until = 0.0
        # No more than the test's own time: a program can crowd the processors itself.
        channel.grace = lambda: min(test_s, waited(program) - self.waited)
        self.gone = ""
        self.callbacks: List[Any] = []
        self.remotes: Dict[Any, Remote] = {}
        self.begin()

    def begin(self) -> None:
        """Start the clock of the next test."""
        self.until, self.waited = time.monotonic() + self.test_s, waited(self.program)

    def exchange(self, message: Any) -> Any:
        """Send (None: nothing) and receive. Raises Gone for good."""
        if not self.gone:
            try:
                if message is not None:
                    self.channel.send(message, self.until)
                return self.channel.receive(self.until)
            except Late:
                self.gone = f"took longer than {self.test_s:g} s"
            except Closed:
                self.gone = "the program ended before it answered"
        raise Gone(self.gone)

    def ask(self, op: str, *args: Any, **kw: Any) -> Any:
        """The result of one operation in the program; what it raises is raised here."""
        reply = self.exchange(self._request(op, args, kw))
        while isinstance(reply, dict) and "callback" in reply:
            reply = self.exchange(self._called_back(reply))
        try:
            if "raised" in reply:
                raise self._error(reply)
            for place, after in reply.get("changed", {}).items():
                _replace(args[int(place)], decode(after, self.held))
            return decode(reply["v"], self.held)
        except (Closed, KeyError, IndexError, TypeError) as error:
            if isinstance(error, Raised):
                raise
            self.gone = "the program's answer cannot be read"
            raise Gone(self.gone) from None

    def _request(self, op: str, args: Any, kw: Any) -> Dict[str, Any]:
        return {
            "op": op,
            "args": [encode(a, self.keep) for a in args],
            "kw": {k: encode(v, self.keep) for k, v in kw.items()},
        }

    def _called_back(self, reply: Dict[str, Any]) -> Dict[str, Any]:
        try:
            function = self.callbacks[reply["callback"]]
            args = [decode(a, self.held) for a in reply["args"]]
            kw = {k: decode(v, self.held) for k, v in reply["kw"].items()}
            return {"back": encode(function(*args, **kw), self.keep)}
        except Exception as error:
            return {"failed": f"{type(error).__name__}: {error}"}

    def _error(self, reply: Dict[str, Any]) -> Exception:
        kind = getattr(builtins, str(reply["raised"]), None)
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            kind = RuntimeError
        made = type(kind.__name__, (Raised, kind), {"__init__": Exception.__init__})
        error: Exception = made(str(reply.get("message")))
        error.told = str(reply.get("told"))[:400]  # type: ignore[attr-defined]
        return error

    def keep(self, value: Any) -> Dict[str, Any]:
        """How other than plain data goes to the program: its own object, or to be called back."""
        if isinstance(value, Remote):
            return {"o": object.__getattribute__(value, "_which")}
        if callable(value):
            self.callbacks.append(value)
            return {"k": len(self.callbacks) - 1}
        raise TypeError(f"a test cannot pass a {type(value).__name__} to the program")

    def held(self, data: Dict[str, Any]) -> Any:
        which = data.get("o")
        if not isinstance(which, (int, str)):
            raise Closed
        if which not in self.remotes:
            self.remotes[which] = Remote(self, which, str(data.get("type"))[:60])
        return self.remotes[which]


class Raised(Exception):
    """An exception that the program raised; also an instance of its builtin type."""

    told = ""


def _replace(ours: Any, after: Any) -> None:
    if isinstance(ours, (list, bytearray)):
        ours[:] = after
    elif isinstance(ours, (dict, set)):
        ours.clear()
        ours.update(after)


class Remote:
    """A function, class or object of the program.

    It never equals plain data and does not calculate with it: else an object could be made that
    equals whatever it is compared with. Two objects of the program are compared by the program.
    """

    def __init__(self, link: Link, which: Any, kind: str) -> None:
        for name, value in (("_link", link), ("_which", which), ("_kind", kind)):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        return self._link.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask("set", self, name, value)

    def __call__(self, *args: Any, **kw: Any) -> Any:
        return self._link.ask("call", self, *args, **kw)

    def __getitem__(self, key: Any) -> Any:
        return self._link.ask("item", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._link.ask("put", self, key, value)

    def __delitem__(self, key: Any) -> None:
        self._link.ask("drop", self, key)

    def __iter__(self) -> Iterator[Any]:
        found = self._link.ask("iter", self)
        return found if isinstance(found, Remote) else iter(found)

    def __next__(self) -> Any:
        return self._link.ask("next", self)

    def __len__(self) -> int:
        return int(self._link.ask("len", self))

    def __contains__(self, item: Any) -> bool:
        return self._link.ask("has", self, item) is True

    def __bool__(self) -> bool:
        return self._link.ask("bool", self) is True

    def __int__(self) -> int:
        return int(self._link.ask("int", self))

    def __float__(self) -> float:
        return float(self._link.ask("float", self))

    def __str__(self) -> str:
        return str(self._link.ask("str", self))

    def __repr__(self) -> str:
        return f"an object of type {self._kind}"

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, Remote) and self._link.ask("isinstance", instance, self) is True

    def __deepcopy__(self, memo: Any) -> Remote:
        return self

    def __copy__(self) -> Remote:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("an object of the program cannot be copied")

    def __hash__(self) -> int:
        return object.__hash__(self)


def _among_themselves(op: str) -> Any:
    def operate(self: Remote, other: Any) -> Any:
        if not isinstance(other, Remote):
            return NotImplemented
        return self._link.ask(op, self, other)

    return operate


for _name in ("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv"):
    setattr(Remote, f"__{_name}__", _among_themselves(_name))


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
