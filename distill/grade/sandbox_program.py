"""The process in a sandbox that runs the program under test, and is believed nothing but answers.

It knows no expected answer and no test. It can hurt nobody but itself: what it sends is data that
its tests compare elsewhere. Standard library only: this file is sent into sandboxes.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import operator
import os
import re
import resource
import sys
import time
import types

from distill.grade.sandbox_wire import Channel, Closed, Late, decode, encode

TYPE_CHECKING = False  # typing takes longer to import than all the rest
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Sequence, Tuple

# ruff: noqa: UP006, UP035

FOREVER = 1e6
FILE = "<program>"

_OFTEN = {
    "typing": "Any Callable DefaultDict Deque Dict FrozenSet Generator Iterable Iterator List "
    "Literal Mapping NamedTuple Optional Sequence Set Tuple TypeVar Union",
    "collections": "ChainMap Counter OrderedDict defaultdict deque namedtuple",
    "heapq": "heapify heappop heappush heappushpop heapreplace merge nlargest nsmallest",
    "bisect": "bisect_left bisect_right insort insort_left insort_right",
    "functools": "cache cmp_to_key lru_cache partial reduce total_ordering wraps",
    "itertools": "accumulate chain combinations combinations_with_replacement compress count cycle "
    "dropwhile filterfalse groupby islice pairwise permutations product repeat starmap takewhile "
    "tee zip_longest",
    "math": "acos asin atan atan2 ceil comb cos dist exp fabs factorial floor fsum gcd hypot inf "
    "isclose isqrt lcm log log10 log1p log2 perm pi prod sin sqrt tan trunc",
    "copy": "deepcopy",
    "string": "ascii_letters ascii_lowercase ascii_uppercase digits punctuation",
    "operator": "attrgetter itemgetter xor",
    "sys": "maxsize setrecursionlimit stdin stdout",
    "io": "BytesIO StringIO",
    "statistics": "mean median",
    "random": "randint",
    "datetime": "timedelta",
}
_MODULES = "bisect collections copy datetime functools heapq io itertools json math operator os "
_MODULES += "random re statistics string sys typing"
USUAL = {name: module for module, names in _OFTEN.items() for name in names.split()}


def limit(kind: int, value: int) -> None:
    """Set a resource limit, or the nearest that is allowed."""
    hard = resource.getrlimit(kind)[1]
    wanted = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (wanted, wanted))


def confine(limits: Dict[str, Any], cpu_s: float) -> None:
    """The limits of one process: memory and file size in bytes, processor time in seconds."""
    limit(resource.RLIMIT_CPU, max(1, int(cpu_s + 1)))
    limit(resource.RLIMIT_AS, limits["memory"])
    limit(resource.RLIMIT_FSIZE, limits["file_size"])
    limit(resource.RLIMIT_NOFILE, limits["files"])
    if _kernel() >= (5, 14):
        # Before, all processes of the user who started the sandbox were counted.
        limit(resource.RLIMIT_NPROC, limits["processes"])
    limit(resource.RLIMIT_CORE, 1)  # core(5): not 0, which does not keep a core from a handler


def _kernel() -> Tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])


def usual_names(source: str) -> Dict[str, Any]:
    """What contest programs use without importing it, of what `source` mentions.

    LiveCodeBench puts such imports before every program.
    """
    found: Dict[str, Any] = {}
    words = set(re.findall(r"[A-Za-z_]\w*", source))
    for module in words & set(_MODULES.split()):
        found[module] = importlib.import_module(module)
    for name in words & set(USUAL):
        module = importlib.import_module(USUAL[name])
        if hasattr(module, name):
            found[name] = getattr(module, name)
    return found


def execute(source: str, name: str, usual: bool, before: Sequence[str] = ()) -> Dict[str, Any]:
    """Run the program as module `name`; returns its names. Raises whatever it raises.

    `before` is code that it may rely on, such as a prompt with helpers and imports; what of it
    does not run is left out.
    """
    module = types.ModuleType(name)
    sys.modules[name] = module
    if usual:
        sys.setrecursionlimit(50_000)  # as in LiveCodeBench's lcb_runner/evaluation/testing_util.py
        module.__dict__.update(usual_names(source))
    for ending in ("exit", "quit"):  # `site` makes them, which is not imported here
        setattr(builtins, ending, sys.exit)
    module.__dict__["__builtins__"] = builtins
    for code in before:
        with contextlib.suppress(Exception):
            exec(compile(code, "<before>", "exec", dont_inherit=True), module.__dict__)
    exec(compile(source, FILE, "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def run_script(source: str, usual: bool) -> int:
    """Run the program as a script on its own stdin and stdout. Returns its exit code."""
    code = 0
    try:
        execute(source, "__main__", usual)
        if "threading" in sys.modules:
            sys.modules["threading"]._shutdown()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        sys.stderr.write(f"\n{told(error)}\n")
        code = 1
    import atexit

    atexit._run_exitfuncs()  # some programs print all their output there
    for stream in (sys.stdout, sys.__stdout__, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or of the program's own making
            assert stream is not None
            stream.flush()
    return code


def told(error: BaseException) -> str:
    """An exception in one line, with the program's line."""
    line, where = 0, error.__traceback__
    while where is not None:
        if where.tb_frame.f_code.co_filename == FILE:
            line = where.tb_lineno
        where = where.tb_next
    try:
        text = " ".join(str(error).split())[:300]
    except BaseException:
        text = "?"
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {text}"
    return f"{type(error).__name__}: {text}" + (f" (line {line})" if line else "")


def _call(target: Any, *args: Any, **kw: Any) -> Any:
    return target(*args, **kw)


def _has(container: Any, item: Any) -> bool:
    return item in container


OPERATIONS: Dict[str, Callable[..., Any]] = {
    "call": _call,
    "has": _has,
    "get": getattr,
    "set": setattr,
    "item": operator.getitem,
    "put": operator.setitem,
    "drop": operator.delitem,
    "len": len,
    "iter": iter,
    "next": next,
    "bool": bool,
    "str": str,
    "repr": repr,
    "hash": hash,
    "int": int,
    "float": float,
    "isinstance": isinstance,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "truediv": operator.truediv,
}


class Program:
    """Serves calls of the program's functions over a channel until it is closed."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.names: Dict[str, Any] = {}
        self.objects: List[Any] = []
        self.places: Dict[int, int] = {}

    def serve(self, header: Dict[str, Any]) -> None:
        try:
            self.names = execute(
                header["program"], "solution", header["usual"], header.get("before", ())
            )
        except BaseException as error:
            self._say({"failed": told(error)})
            return
        self._say({"ready": [n for n in self.names if isinstance(n, str)]})
        while True:
            try:
                request = self.channel.receive(time.monotonic() + FOREVER)
            except Closed:
                return
            self._say(self._answer(request))

    def _say(self, message: Any) -> None:
        self.channel.send(message, time.monotonic() + FOREVER)

    def _answer(self, request: Dict[str, Any]) -> Dict[str, Any]:
        try:
            args = [decode(a, self._held) for a in request["args"]]
            kw = {k: decode(v, self._held) for k, v in request["kw"].items()}
            value = OPERATIONS[request["op"]](*args, **kw)
            reply = {"v": encode(value, self._keep)}
            changed = self._changed(request, args)
            return {**reply, "changed": changed} if changed else reply
        except BaseException as error:
            return self._raised(error)

    def _changed(self, request: Dict[str, Any], args: List[Any]) -> Dict[str, Any]:
        # The caller's own lists were copied on the way; what was done to them goes back.
        found: Dict[str, Any] = {}
        if request["op"] != "call" or not request["watch"]:
            return found
        for place, arg in enumerate(args):
            if isinstance(arg, (list, dict, set, bytearray)):
                after = encode(arg, self._keep)
                if after != request["args"][place]:
                    found[str(place)] = after
        return found

    @staticmethod
    def _raised(error: BaseException) -> Dict[str, Any]:
        base = next(
            (k.__name__ for k in type(error).__mro__ if getattr(builtins, k.__name__, None) is k),
            "Exception",
        )
        try:
            text = str(error)[:1000]
        except BaseException:
            text = "?"
        return {"raised": base, "message": text, "told": told(error)}

    def _keep(self, value: Any) -> Dict[str, Any]:
        # One handle for one object, so that `is` holds on the other side too.
        place = self.places.setdefault(id(value), len(self.objects))
        if place == len(self.objects):
            self.objects.append(value)
        return {"o": place, "type": type(value).__name__}

    def _held(self, data: Dict[str, Any]) -> Any:
        if "k" in data:
            return self._callback(data["k"])
        which = data["o"]
        return self.names[which] if isinstance(which, str) else self.objects[which]

    def _callback(self, number: int) -> Callable[..., Any]:
        def call(*args: Any, **kw: Any) -> Any:
            packed = [encode(a, self._keep) for a in args]
            named = {k: encode(v, self._keep) for k, v in kw.items()}
            self._say({"callback": number, "args": packed, "kw": named})
            while True:
                reply = self.channel.receive(time.monotonic() + FOREVER)
                if "back" in reply:
                    return decode(reply["back"], self._held)
                if "failed" in reply:
                    raise RuntimeError(reply["failed"])
                self._say(self._answer(reply))

        return call


def main_calls(header: Dict[str, Any], inbox: int, outbox: int) -> None:
    """The life of a program whose functions are called."""
    try:
        Program(Channel(inbox, outbox)).serve(header)
    except (Closed, Late):
        pass
    finally:
        os._exit(0)
