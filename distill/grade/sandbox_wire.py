"""What the processes inside a sandbox say to each other: JSON messages over pipes, plain data only.

The program under test, its tests and the machine outside never share an object. A value that the
program made crosses as data: numbers, text, the containers of the language and a few types of the
standard library. Anything else stays where it is and crosses as a handle, so an object that
claims to be equal to everything is never on the side that compares.

Standard library only: this file is also sent into sandboxes.
"""

from __future__ import annotations

import json
import os
import select
import time

HEAD = 20
"""Bytes that announce a message's length, as decimal digits and a line feed."""

MOST = 32 << 20
"""Longest message, in bytes."""

_SAFE = 1 << 53

TYPE_CHECKING = False  # typing takes longer to import than all the rest
if TYPE_CHECKING:
    from typing import Any, Callable, List, Optional

# ruff: noqa: UP006, UP035, UP045  (older interpreters than ours may stand in a container)


class Closed(Exception):
    """The other side ended, or what it sent is no message."""


class Late(Exception):
    """The other side did not answer, or did not listen, in time."""


class Channel:
    """Messages to and from another process over two pipes, each with a deadline.

    `grace` tells what is to be added to a deadline, in seconds: asked when it has passed.
    """

    def __init__(
        self, inbox: int, outbox: int, grace: Optional[Callable[[], float]] = None
    ) -> None:
        self.inbox, self.outbox, self.grace = inbox, outbox, grace
        os.set_blocking(outbox, False)

    def send(self, message: Any, until: float) -> None:
        """Raises Closed or Late; ValueError for a message that is too long."""
        body = json.dumps(message).encode("ascii")
        if len(body) > MOST:
            raise ValueError(f"{len(body)} bytes of data, {MOST} at most")
        view = memoryview(b"%*d\n" % (HEAD - 1, len(body)) + body)
        while view:
            self._wait([], [self.outbox], until)
            try:
                view = view[os.write(self.outbox, view[:65536]) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise Closed from error

    def receive(self, until: float) -> Any:
        """Raises Closed or Late."""
        try:
            length = int(self._bytes(HEAD, until))
            if not 0 <= length <= MOST:
                raise Closed
            return json.loads(self._bytes(length, until))
        except (ValueError, RecursionError) as error:
            raise Closed from error

    def _wait(self, readable: List[int], writable: List[int], until: float) -> None:
        while True:
            left = until - time.monotonic()
            if left <= 0 and self.grace:
                left += self.grace()
            if any(select.select(readable, writable, [], max(0.0, min(left, 1.0)))):
                return
            if left <= 0:
                raise Late

    def _bytes(self, count: int, until: float) -> bytes:
        parts, missing = [], count
        while missing:
            self._wait([self.inbox], [], until)
            part = os.read(self.inbox, min(missing, 1 << 20))
            if not part:
                raise Closed
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)


def waited(process: int) -> float:
    """Seconds that a process was ready to run and had no processor; 0 where nobody counts them."""
    try:
        with open(f"/proc/{process}/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def encode(value: Any, keep: Callable[[Any], Any]) -> Any:
    """`value` as JSON; what is no plain data becomes whatever `keep(value)` returns.

    Subclasses of plain types cross as their base type, with the base type's contents. Raises
    RecursionError for what is nested too deeply or contains itself.
    """
    kind = type(value)
    if value is None or kind is bool or kind is str or kind is float:
        return value
    if kind is int:
        return value if -_SAFE < value < _SAFE else {"i": hex(value)}
    if kind is list:
        return [encode(v, keep) for v in value]
    if kind is tuple:
        return {"t": [encode(v, keep) for v in value]}
    if kind is dict:
        return {"d": [[encode(k, keep), encode(v, keep)] for k, v in value.items()]}
    return _encode_rarer(value, kind, keep)


def _encode_rarer(value: Any, kind: Any, keep: Callable[[Any], Any]) -> Any:
    if kind in (set, frozenset):
        return {"s" if kind is set else "z": [encode(v, keep) for v in value]}
    if kind in (bytes, bytearray):
        return {"b" if kind is bytes else "a": value.hex()}
    if kind is complex:
        return {"c": [value.real, value.imag]}
    if kind is range:
        return {"r": [hex(value.start), hex(value.stop), hex(value.step)]}
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name in ("decimal.Decimal", "fractions.Fraction"):
        return {"n": [kind.__module__, kind.__qualname__, str(value)]}
    if name == "collections.deque":
        return {"q": [encode(v, keep) for v in value]}
    if kind.__module__ == "datetime" and hasattr(value, "__reduce__"):
        made = value.__reduce__()
        if not any(hasattr(part, "utcoffset") for part in made[1]):
            return {"y": [kind.__qualname__, [encode(v, keep) for v in made[1]]]}
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):
        return encode(value.tolist(), keep)
    return _encode_as_base(value, keep)


def _encode_as_base(value: Any, keep: Callable[[Any], Any]) -> Any:
    if isinstance(value, int):
        return encode(int.__add__(value, 0), keep)
    if isinstance(value, float):
        return float.__add__(value, 0.0)
    if isinstance(value, str):
        return str.__str__(value) if type(value) is str else "".join(str.__iter__(value))
    if isinstance(value, tuple):
        return {"t": [encode(v, keep) for v in tuple.__iter__(value)]}
    if isinstance(value, list):
        return [encode(v, keep) for v in list.__iter__(value)]
    if isinstance(value, dict):
        return {"d": [[encode(k, keep), encode(v, keep)] for k, v in dict.items(value)]}
    if isinstance(value, set):
        return {"s": [encode(v, keep) for v in set.__iter__(value)]}
    if isinstance(value, frozenset):
        return {"z": [encode(v, keep) for v in frozenset.__iter__(value)]}
    return keep(value)


def decode(data: Any, held: Callable[[Any], Any]) -> Any:
    """The inverse of `encode`; `held` gets what is no plain data.

    Raises Closed for anything that `encode` does not make.
    """
    if data is None or isinstance(data, (bool, int, float, str)):
        return data
    if isinstance(data, list):
        return [decode(v, held) for v in data]
    try:
        if "o" in data or "k" in data:
            return held(data)
        ((tag, body),) = data.items()
        return _DECODERS[tag](body, held)
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise Closed from error


def _number(body: Any, held: Any) -> Any:
    module, name, text = body
    # Fraction("1e999999999") would be calculated for hours.
    if len(text) > 4000 or not set(text.upper()) <= set("+-.0123456789E/NAINFTYS"):
        raise ValueError(text)
    if (module, name) == ("decimal", "Decimal"):
        import decimal

        return decimal.Decimal(text)
    import fractions

    if "E" in text.upper():
        raise ValueError(text)
    return fractions.Fraction(text)


def _when(body: Any, held: Any) -> Any:
    import datetime

    name, parts = body
    if name not in ("date", "datetime", "time", "timedelta"):
        raise ValueError(name)
    return getattr(datetime, name)(*[decode(v, held) for v in parts])


def _queue(body: Any, held: Any) -> Any:
    from collections import deque

    return deque(decode(v, held) for v in body)


_DECODERS: dict[str, Callable[[Any, Any], Any]] = {
    "i": lambda body, held: int(body, 16),
    "t": lambda body, held: tuple(decode(v, held) for v in body),
    "d": lambda body, held: {decode(k, held): decode(v, held) for k, v in body},
    "s": lambda body, held: {decode(v, held) for v in body},
    "z": lambda body, held: frozenset(decode(v, held) for v in body),
    "b": lambda body, held: bytes.fromhex(body),
    "a": lambda body, held: bytearray.fromhex(body),
    "c": lambda body, held: complex(*body),
    "r": lambda body, held: range(*[int(v, 16) for v in body]),
    "n": _number,
    "y": _when,
    "q": _queue,
}
