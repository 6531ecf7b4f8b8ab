"""Bubblewrap as a sandbox: namespaces of its own, and nothing mounted but an interpreter.

Inside there is a read-only root with the interpreter and the system's libraries, a small private
/tmp, a /proc of its own processes, no network, no capabilities and no other user's files. A
system call filter closes what namespaces leave open.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from importlib.util import MAGIC_NUMBER
from pathlib import Path

from distill.errors import UsageError
from distill.grade.sandbox import INSTALL, Limits, Output, SandboxFailed, communicate, script
from distill.grade.sandbox_seccomp import program_for

NOBODY = "65534"

LIBRARIES = ("/lib", "/lib32", "/lib64", "/libx32", "/usr/lib", "/usr/lib32", "/usr/lib64")

ASK = """
import importlib.util, json, sys
base = getattr(sys, "_base_executable", "") or sys.executable
magic = importlib.util.MAGIC_NUMBER.hex()
print(json.dumps([base, sys.executable, sys.base_prefix, sys.prefix, magic]))
"""


class Bubblewrap:
    """Each job in a new sandbox, which takes about 20 ms and an interpreter's start."""

    name = "bwrap"

    def __init__(self, python: str | None = None) -> None:
        self.program = shutil.which("bwrap")
        if self.program is None:
            raise UsageError("code is graded in a sandbox, and there is no 'bwrap' here", INSTALL)
        self.mounts, self.start, self.same = interpreter(python)

    def run(self, job: bytes, limits: Limits) -> Output:
        filters = program_for(os.uname().machine)
        reading, writing = os.pipe()
        try:
            os.write(writing, filters)  # far less than a pipe holds
            os.close(writing)
            return communicate(
                self.command(limits, reading if filters else None),
                job,
                limits,
                pass_fds=(reading,),
                env={},
            )
        finally:
            os.close(reading)

    def command(self, limits: Limits, filters: int | None) -> list[str]:
        """The command line; `filters` is the descriptor that holds the system call filter."""
        if self.program is None:
            raise SandboxFailed("there is no bwrap")
        options = ["--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"]
        options += ["--new-session", "--as-pid-1", "--cap-drop", "ALL", "--hostname", "sandbox"]
        options += ["--uid", NOBODY, "--gid", NOBODY, "--clearenv"]
        for name, value in ENVIRONMENT.items():
            options += ["--setenv", name, value]
        options += self.mounts
        options += ["--proc", "/proc", "--dev", "/dev"]
        options += ["--size", str(1 << 20), "--tmpfs", "/dev/shm"]
        options += ["--size", str(limits.scratch), "--tmpfs", "/tmp", "--chdir", "/tmp"]
        options += ["--remount-ro", "/dev", "--remount-ro", "/"]
        if filters is not None:
            options += ["--seccomp", str(filters)]
        return [self.program, *options, *self.start, "-c", script(compiled=self.same)]


ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
"""All of a program's environment. The hash seed is fixed so that a grade can be had again;
memory that every thread reserves for itself would be counted against the limit."""


@functools.cache
def interpreter(python: str | None) -> tuple[list[str], list[str], bool]:
    """What to mount for an interpreter, how it is started, and whether it reads our byte code.

    None is the interpreter that runs distill, without its packages: the standard library alone.
    """
    known = [getattr(sys, "_base_executable", "") or sys.executable, sys.executable]
    known += [sys.base_prefix, sys.base_prefix, MAGIC_NUMBER.hex()]
    if python is not None:
        known = _asked(python)
    base, own, base_prefix, prefix, magic = known
    paths = _needed(Path(base_prefix), Path(base).resolve())
    if python is not None and prefix != base_prefix:
        paths += _needed(Path(prefix), Path(own))
        paths.append(Path(prefix) / "pyvenv.cfg")
    mounts: list[str] = []
    for library in LIBRARIES:
        if os.path.islink(library):
            mounts += ["--symlink", os.readlink(library), library]
        elif os.path.isdir(library):
            mounts += ["--ro-bind", library, library]
    mounts += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for path in paths:
        if not str(path).startswith(LIBRARIES):
            mounts += ["--ro-bind-try", str(path), str(path)]
    if python is None:
        return mounts, [str(Path(base).resolve()), "-s", "-S", "-B"], True
    start = own if prefix != base_prefix else str(Path(base).resolve())
    return mounts, [start, "-s", "-B"], magic == MAGIC_NUMBER.hex()


def _needed(prefix: Path, executable: Path) -> list[Path]:
    return [prefix / "lib", prefix / "lib64", executable]


def _asked(python: str) -> list[str]:
    try:
        done = subprocess.run([python, "-c", ASK], capture_output=True, text=True, timeout=60)
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise UsageError(
            f"code: python '{python}' cannot be asked where it is installed: {error}",
            "name an interpreter, as in {code: {python: /opt/env/bin/python}}",
        ) from None
    return [str(value) for value in found]
