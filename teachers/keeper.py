"""Runs one command and sees that nothing of it outlives the process that wanted it.

A server's helpers (vLLM's engine cores, its workers) survive a `kill -9` of the server and keep
their GPU memory, and a server survives a `kill -9` of whoever started it. So each server runs
under a keeper, a small process of its own:

    python keeper.py PARENT_PID COMMAND...

whose standard input is a pipe from the parent. When the pipe closes, or the parent has gone, the
command is asked to end (SIGTERM, then SIGKILL after GRACE_S); when the command has ended, whatever
its descendants left over is killed, and the keeper exits with the command's exit code (128 + signal
where a signal ended it). Runs as a file, on the standard library alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

GRACE_S = 20.0
"""Seconds for an orderly end."""

LOOK_S = 0.5
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str]) -> int:
    """Keep a command; returns its exit code."""
    parent, command = int(arguments[0]), arguments[1:]
    # Ctrl-C on the terminal is the parent's to handle: it closes the pipe when it is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    prctl = _prctl()
    # Orphans of the command come to us instead of to init, so that they can be found.
    prctl(PR_SET_CHILD_SUBREAPER, 1)

    def in_child() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=in_child,
        )
    except OSError as error:
        print(f"cannot start {command[0]}: {error}", file=sys.stderr, flush=True)
        return 127
    while process.poll() is None:
        if _released(parent) or asked:
            _end(process)
    _sweep(process.pid)
    code = process.returncode
    return 128 - code if code < 0 else code


def _released(parent: int) -> bool:
    """Wait a moment; true when the parent closed the pipe or has gone."""
    try:
        readable, _, _ = select.select([0], [], [], LOOK_S)
        if readable and not os.read(0, 64):
            return True
    except (OSError, ValueError):
        return True
    return os.getppid() != parent


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _sweep(group: int) -> None:
    """Kill what is left of the command's process group and of its orphans."""
    deadline = time.monotonic() + GRACE_S
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    while (left := _descendants()) and time.monotonic() < deadline:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        _reap()
        time.sleep(0.02)


def _descendants() -> list[int]:
    """Children of this process that still run; deeper ones become children when these end."""
    me, found = os.getpid(), []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == me and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _prctl() -> Callable[..., int]:
    """The system call, or nothing where there is none (macOS: orphans are then not found)."""
    if sys.platform.startswith("linux"):
        found: Callable[..., int] = ctypes.CDLL(None).prctl
        return found
    return lambda *_: 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
