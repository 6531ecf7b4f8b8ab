"""The first process in a sandbox: forks the program and its tests, and watches over limits.

It is process 1 where the sandbox allows, which no signal from inside can end, and not dumpable, so
that the program can neither trace it nor read its memory or descriptors. What it has read before
the program was forked is no secret; tests are read afterwards, by the process that runs them.
Standard library only: this file is sent into sandboxes.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time

from distill.grade import sandbox_program as program
from distill.grade import sandbox_tester as tester
from distill.grade.sandbox_wire import HEAD, Channel, waited

TYPE_CHECKING = False  # typing takes longer to import than all the rest
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Tuple

# ruff: noqa: UP006, UP035, UP045

TICK = 0.01
"""Seconds between two looks at what runs."""

PR_SET_DUMPABLE = 4


def read_frame() -> Any:
    """One JSON message from stdin, and not a byte more."""
    length = int(_exactly(HEAD))
    return json.loads(_exactly(length))


def _exactly(count: int) -> bytes:
    parts = []
    while count:
        part = os.read(0, min(count, 1 << 20))
        if not part:
            raise EOFError("the job ends early")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def emit(**row: Any) -> None:
    """One line of the report."""
    data = json.dumps(row).encode("ascii") + b"\n"
    while data:
        data = data[os.write(1, data) :]


class Watch:
    """Ends what takes too long, too much memory or too many processes; says which it was."""

    def __init__(self, limits: Dict[str, Any]) -> None:
        self.limits = limits
        self.ended: Dict[int, int] = {}
        self.started = time.monotonic()
        self.alone = os.getpid() == 1

    def reap(self) -> None:
        """Collect what has ended; as process 1 also what was left behind."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                self.ended[pid] = status

    def late(self, since: float, seconds: float, pid: int, before: float) -> bool:
        """Whether the time is over; what a process waited for a processor does not count.

        It counts beyond `seconds`, because a program can crowd the processors itself.
        """
        over = time.monotonic() - since - seconds
        return over > 0 and over > min(seconds, waited(pid) - before)

    def excess(self) -> str:
        """What is beyond its limit: "memory", "processes" or nothing."""
        if not self.alone:
            return ""
        pages = threads = 0
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError, IndexError, ValueError):
                    used = _usage(name)
                    threads, pages = threads + used[0], pages + used[1]
        if threads > self.limits["processes"] + 3:
            return "processes"
        if pages * os.sysconf("SC_PAGE_SIZE") > self.limits["memory"] + (64 << 20):
            return "memory"
        return ""

    def kill(self, *pids: int) -> None:
        """End the given processes with their sessions, and as process 1 everything."""
        for pid in pids:
            for end in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    end(pid, signal.SIGKILL)
        if self.alone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)

    def wait_for(self, pid: int) -> Optional[int]:
        """The wait status of a process that was killed or has closed its pipes."""
        until = time.monotonic() + 2
        while pid not in self.ended and time.monotonic() < until:
            self.reap()
            time.sleep(0.001)
        return self.ended.get(pid)


def _usage(pid: str) -> Tuple[int, int]:
    """Threads of a process, and pages of memory that it holds."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()  # proc(5): from the third field on
    return int(fields[17]), int(fields[21])


def _settle(inbox: int, outbox: int, error: int) -> None:
    """Make three descriptors stdin, stdout and stderr, and close all others but 3 and 4."""
    high = [_dup_high(d) for d in (inbox, outbox, error)]
    for place, descriptor in enumerate(high):
        os.dup2(descriptor, place)
    os.closerange(5, 4096)


def _dup_high(descriptor: int) -> int:
    import fcntl

    return fcntl.fcntl(descriptor, fcntl.F_DUPFD, 40)


def fork_called(header: Dict[str, Any], inbox: int, outbox: int) -> int:
    """Fork the process of a program whose functions are called."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        high = [_dup_high(inbox), _dup_high(outbox)]
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)
        null = _dup_high(os.open(os.devnull, os.O_RDWR))
        _settle(null, null, null)
        program.confine(header["limits"], header["limits"]["total_s"])
        program.main_calls(header, 3, 4)
    finally:
        os._exit(70)


def calls(header: Dict[str, Any]) -> Dict[str, Any]:
    """Program and tests in two processes. Returns how it ended."""
    watch = Watch(header["limits"])
    asked_r, asked_w = os.pipe()
    said_r, said_w = os.pipe()
    programme = fork_called(header, asked_r, said_w)
    os.close(asked_r)
    os.close(said_w)
    alive_r, alive_w = os.pipe()
    judge = os.fork()
    if not judge:
        code = 71
        try:
            os.close(alive_r)
            program.confine(header["limits"], header["limits"]["total_s"])
            tester.main(header, read_frame(), Channel(said_r, asked_w), programme)
            code = 0
        finally:
            os._exit(code)
    for descriptor in (asked_w, said_r, alive_w):
        os.close(descriptor)
    why, total = "", header["limits"]["total_s"]
    while not why and not select.select([alive_r], [], [], TICK)[0]:
        watch.reap()
        why = watch.excess()
        if not why and watch.late(watch.started, total, programme, 0.0):
            why = "time"
    if why:
        watch.kill(programme, judge)
    ended = watch.wait_for(judge)
    if programme not in watch.ended:
        watch.reap()
    status = watch.ended.get(programme)
    watch.kill(programme)
    return {"why": why, "tester": ended, "program": status}


class Script:
    """One run of a program as a script, with its input, its output and their limits."""

    def __init__(self, header: Dict[str, Any], test: Dict[str, Any], watch: Watch) -> None:
        self.limits, self.watch = header["limits"], watch
        self.pending = memoryview(test["stdin"].encode("utf-8", "surrogatepass"))
        self.most = min(int(test["most"]), self.limits["output"])
        in_r, self.stdin = os.pipe()
        self.stdout, out_w = os.pipe()
        self.stderr, err_w = os.pipe()
        self.output, self.errors = b"", b""
        self.started = time.monotonic()
        self.pid = self._fork(header, in_r, out_w, err_w)
        for descriptor in (in_r, out_w, err_w):
            os.close(descriptor)
        for descriptor in (self.stdin, self.stdout, self.stderr):
            os.set_blocking(descriptor, False)
        self.open = [self.stdout, self.stderr]

    def _fork(self, header: Dict[str, Any], *ends: int) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 70
        try:
            os.setsid()
            _settle(*ends)
            os.closerange(3, 5)
            program.confine(self.limits, self.limits["test_s"])
            code = program.run_script(header["program"], header["usual"])
        finally:
            os._exit(code & 255)

    def run(self) -> Dict[str, Any]:
        """Serve its pipes until it ends or a limit is reached."""
        why = ""
        while not why and self.pid not in self.watch.ended:
            self._serve(TICK)
            self.watch.reap()
            if len(self.output) > self.most:
                why = "output"
            elif self.watch.late(self.started, self.limits["test_s"], self.pid, 0.0):
                why = "time"
            else:
                why = self.watch.excess()
        self.watch.kill(self.pid)
        status = self.watch.wait_for(self.pid)
        while self.open and len(self.output) <= self.most and self._serve(0.0):
            pass
        for descriptor in (self.stdin, self.stdout, self.stderr):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        if len(self.output) > self.most:
            why = why or "output"
        said = self.errors[-2000:].decode("utf-8", "replace")
        out = self.output[: self.most].decode("utf-8", "replace")
        return {"out": out, "status": status, "why": why, "err": said}

    def _serve(self, timeout: float) -> bool:
        feeding = [self.stdin] if self.pending is not None else []
        readable, writable, _ = select.select(self.open, feeding, [], timeout)
        for descriptor in readable:
            part = os.read(descriptor, 65536)
            if not part:
                self.open.remove(descriptor)
            elif descriptor == self.stdout:
                self.output += part
            else:
                self.errors = (self.errors + part)[-4000:]
        if writable:
            self._feed()
        return bool(readable)

    def _feed(self) -> None:
        try:
            self.pending = self.pending[os.write(self.stdin, self.pending[:65536]) :]
        except BlockingIOError:
            return
        except OSError:
            self.pending = self.pending[:0]  # it reads no more
        if not self.pending:
            os.close(self.stdin)
            self.stdin, self.pending = -1, None  # type: ignore[assignment]


def scripts(header: Dict[str, Any]) -> Dict[str, Any]:
    """One run for each input; the first that takes too long is the last."""
    watch = Watch(header["limits"])
    for number, test in enumerate(header["tests"]):
        if time.monotonic() - watch.started > header["limits"]["total_s"]:
            return {"why": "time"}
        row = Script(header, test, watch).run()
        emit(test=number, **row)
        if row["why"] in ("time", "memory", "processes"):
            break
    return {"why": ""}


def hide() -> None:
    """Make this process and its forks untraceable for other processes of the same user."""
    try:
        import _ctypes  # a third of what ctypes takes

        handle = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]  # as ctypes itself does
        failed = _ctypes.call_function(
            _ctypes.dlsym(handle, "prctl"), (PR_SET_DUMPABLE, 0, 0, 0, 0)
        )
    except (ImportError, AttributeError):
        import ctypes

        failed = ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    if failed:
        raise OSError("prctl(PR_SET_DUMPABLE) failed")


def main() -> None:
    """Read a job from stdin, write its report to stdout."""
    hide()
    # Process 1 is reached from inside only by signals that it handles.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # The program may write to the folder that it was started in.
    here = ("", os.getcwd(), os.path.dirname(os.path.abspath(sys.argv[0])))
    sys.path[:] = [entry for entry in sys.path if entry not in here]
    header = read_frame()
    emit(ready=list(sys.version_info[:3]))
    end = scripts(header) if header["mode"] == "script" else calls(header)
    emit(end=end)
    os._exit(0)  # nothing is left to be tidied up
