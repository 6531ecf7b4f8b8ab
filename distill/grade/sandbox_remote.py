"""A program's functions and objects as its tests see them: stand-ins in another process.

`Link` asks the program's process, `Remote` is what stands in a test for something that stays there.
Standard library only: this file is sent into sandboxes.
"""

from __future__ import annotations

import builtins
import time

from distill.grade.sandbox_wire import Channel, Closed, Late, decode, encode, waited

TYPE_CHECKING = False  # typing takes longer to import than all the rest
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List

# ruff: noqa: UP006, UP035


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
        self.watching = True  # whether what is done to arguments is wanted back
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
            "watch": self.watching,
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
