"""Runs a job of untrusted Python in a sandbox, and refuses where there is none.

A job is one program with its inputs or tests. It is done by three processes whose modules are
sent into the sandbox as text (`sandbox_supervisor`, `sandbox_program`, `sandbox_tester`), whatever
the sandbox is: bubblewrap, a container, or a service over HTTP.
"""

from __future__ import annotations

import binascii
import contextlib
import functools
import json
import marshal
import os
import selectors
import subprocess
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

from distill.errors import DistillError, UsageError

INSIDE = (
    "sandbox_wire",
    "sandbox_program",
    "sandbox_remote",
    "sandbox_tester",
    "sandbox_supervisor",
)
"""Modules that are sent into a sandbox, in the order in which they import one another."""

MOST_REPORT = 64 << 20
"""Longest report that is read from a sandbox, in bytes."""

START_S = 20.0
"""What a sandbox may take to start and to end, on top of a job's own time, in seconds."""

INSTALL = "Debian, Ubuntu: apt-get install bubblewrap; Fedora: dnf install bubblewrap"


class SandboxFailed(DistillError):
    """The sandbox did not do its work: nothing is known about the program."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use. Times in seconds, sizes in bytes.

    `test_s` holds for one test, `total_s` for all of a program's; time spent waiting for a
    processor is not counted. `memory` holds for each process and nearly for all together,
    `processes` for their threads.
    """

    test_s: float = 6.0
    total_s: float = 60.0
    memory: int = 1 << 30
    processes: int = 64
    file_size: int = 16 << 20
    files: int = 64
    output: int = 4 << 20
    scratch: int = 64 << 20

    @property
    def deadline_s(self) -> float:
        """When the machine outside gives up: well after the supervisor inside should have."""
        return 2 * self.total_s + START_S


@dataclass(frozen=True, slots=True)
class Output:
    """What came out of a sandbox: its report, the end of what it complained about, exit code."""

    report: bytes
    complaint: str
    code: int | None


class Sandbox(Protocol):
    """Something that runs `script()` with a job on its stdin, cut off from everything else."""

    name: str

    def run(self, job: bytes, limits: Limits) -> Output:
        """Raises SandboxFailed where the job could not be run."""
        ...


@dataclass(frozen=True, slots=True)
class Report:
    """The rows of a job's tests in order, and how the job ended.

    `broken` is why no test could be run: the program does not compile, or fails on its own.
    """

    rows: Sequence[Mapping[str, Any]]
    end: Mapping[str, Any]
    broken: str = ""


def run_job(
    sandbox: Sandbox, header: Mapping[str, Any], limits: Limits, tests: Any = None
) -> Report:
    """Run one job. Raises SandboxFailed unless a whole report came back."""
    plain = {
        "test_s": limits.test_s,
        "total_s": limits.total_s,
        "memory": limits.memory,
        "processes": limits.processes,
        "file_size": limits.file_size,
        "files": limits.files,
        "output": limits.output,
    }
    job = frame({**header, "limits": plain}) + (b"" if tests is None else frame(tests))
    return read_report(sandbox.run(job, limits))


def frame(message: Any) -> bytes:
    """A message as the supervisor reads it: its length in 19 digits, a line feed, ASCII JSON."""
    body = json.dumps(message).encode("ascii")
    return b"%019d\n" % len(body) + body


def read_report(output: Output) -> Report:
    """The report of a job. Raises SandboxFailed where it does not begin or end as it should."""
    rows = []
    with contextlib.suppress(ValueError):
        rows = [json.loads(line) for line in output.report.splitlines()]
    if not rows or "ready" not in rows[0]:
        raise SandboxFailed(
            f"the sandbox did not start (exit code {output.code})"
            f": {output.complaint or 'it said nothing'}"
        )
    if "end" not in rows[-1]:
        raise SandboxFailed(
            f"the sandbox ended before its work did (exit code {output.code})"
            + (f": {output.complaint}" if output.complaint else "")
        )
    broken = next((str(row["broken"]) for row in rows if "broken" in row), "")
    return Report([row for row in rows if "test" in row], rows[-1]["end"], broken)


@functools.cache
def script(*, compiled: bool = False) -> str:
    """The Python program that a sandbox runs: the modules of INSIDE and a call of `main`.

    `compiled` for an interpreter of the same version as this one, which saves it half of its start.
    """
    folder = resources.files("distill.grade")
    texts = {f"distill.grade.{name}": (folder / f"{name}.py").read_text("utf-8") for name in INSIDE}
    if compiled:
        codes = [compile(text, name, "exec", optimize=2) for name, text in texts.items()]
        packed = binascii.b2a_base64(zlib.compress(marshal.dumps(codes)), newline=False).decode()
        load = (
            "import binascii, marshal, zlib\n"
            f"codes = marshal.loads(zlib.decompress(binascii.a2b_base64({packed!r})))\n"
        )
    else:
        load = (
            "import json\n"
            f"texts = json.loads({json.dumps(texts)!r})\n"
            "codes = [compile(text, name, 'exec') for name, text in texts.items()]\n"
        )
    return (
        "import sys, types\n"
        f"{load}"
        "sys.modules['distill'] = types.ModuleType('distill')\n"
        "package = sys.modules['distill.grade'] = types.ModuleType('distill.grade')\n"
        "for code in codes:\n"
        "    name = code.co_filename\n"
        "    module = sys.modules[name] = types.ModuleType(name)\n"
        "    setattr(package, name.rpartition('.')[2], module)\n"
        "    exec(code, module.__dict__)\n"
        "module.main()\n"
    )


def communicate(command: Sequence[str], job: bytes, limits: Limits, **popen: Any) -> Output:
    """Run a command with `job` on its stdin; reads no more than MOST_REPORT of what it says.

    Raises SandboxFailed if it cannot be started or is past the deadline.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **popen,
        )
    except OSError as error:
        raise SandboxFailed(f"{command[0]} cannot be started: {error}") from None
    try:
        report, complaint = _pump(process, job, time.monotonic() + limits.deadline_s)
        process.wait(timeout=START_S)
    except subprocess.TimeoutExpired:
        raise SandboxFailed(f"{command[0]} did not end after its report") from None
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None and not stream.closed:
                stream.close()
    text = " ".join(complaint.decode("utf-8", "replace").split())[-300:]
    return Output(report, text, process.returncode)


def _pump(process: subprocess.Popen[bytes], job: bytes, until: float) -> tuple[bytes, bytes]:
    """Feed stdin, gather stdout and the end of stderr, never more than there is room for."""
    assert process.stdin
    assert process.stdout
    assert process.stderr
    report, complaint, view = bytearray(), b"", memoryview(job)
    with selectors.DefaultSelector() as ready:
        for stream, event in (
            (process.stdin, selectors.EVENT_WRITE),
            (process.stdout, selectors.EVENT_READ),
            (process.stderr, selectors.EVENT_READ),
        ):
            os.set_blocking(stream.fileno(), False)
            ready.register(stream, event)
        while ready.get_map():
            if time.monotonic() > until:
                raise SandboxFailed("the sandbox did not answer in time")
            for key, _ in ready.select(timeout=1.0):
                if key.fileobj is process.stdin:
                    view = _write(key.fd, view)
                    if not view:
                        ready.unregister(process.stdin)
                        process.stdin.close()
                    continue
                part = os.read(key.fd, 1 << 16)
                if not part:
                    ready.unregister(key.fileobj)
                elif key.fileobj is process.stdout:
                    report += part
                else:
                    complaint = (complaint + part)[-4000:]
            if len(report) > MOST_REPORT:
                raise SandboxFailed(f"the sandbox reported more than {MOST_REPORT >> 20} MiB")
    return bytes(report), complaint


def _write(descriptor: int, view: memoryview) -> memoryview:
    try:
        return view[os.write(descriptor, view[: 1 << 16]) :]
    except BlockingIOError:
        return view
    except BrokenPipeError:
        return view[:0]


def probe(sandbox: Sandbox) -> str:
    """Really run a small program in the sandbox; empty if that works, else what failed."""
    limits = Limits(test_s=20.0, total_s=20.0)
    header = {"mode": "script", "program": "print(6 * 7)", "usual": False}
    try:
        report = run_job(sandbox, {**header, "tests": [{"stdin": "", "most": 100}]}, limits)
    except SandboxFailed as error:
        return error.message
    row = report.rows[0] if report.rows else {}
    return "" if row.get("out") == "42\n" else f"a small program did not run: {dict(row)!r:.300}"


@functools.cache
def open_sandbox(setting: str = "bwrap", python: str | None = None, image: str = "") -> Sandbox:
    """The sandbox that a recipe names, tried out once in this process.

    `setting` is `bwrap`, `docker`, `podman` or the address of a service; `python` another
    interpreter for `bwrap`, whose packages programs may then import; `image` a container's. Raises
    UsageError, with what failed and what to do, where it does not work: nothing runs unprotected.
    """
    if setting == "bwrap":
        from distill.grade.sandbox_bwrap import Bubblewrap

        sandbox: Sandbox = Bubblewrap(python)
        hint = INSTALL + (
            "; where user namespaces are forbidden, allow them (sysctl "
            "kernel.unprivileged_userns_clone=1, or kernel.apparmor_restrict_unprivileged_userns=0)"
            ", or set another one: {code: {sandbox: docker}} or an http address"
        )
    elif setting in ("docker", "podman"):
        from distill.grade.sandbox_docker import Container

        container = Container(setting, image)
        sandbox = container
        hint = (
            f"fetch the image with `{setting} pull {container.image}`, and see that "
            f"`{setting} run --rm {container.image} true` works for this user"
        )
    elif setting.startswith(("http://", "https://")):
        from distill.grade.sandbox_http import Service

        sandbox = Service(setting)
        hint = "it must speak SandboxFusion's POST /run_code; see docs/grading-code.md"
    else:
        raise UsageError(
            f"no sandbox '{setting}'", "it is one of bwrap, docker, podman, or an http address"
        )
    failed = probe(sandbox)
    if failed:
        raise UsageError(
            f"code is graded in a sandbox, and '{setting}' does not work here: {failed}", hint
        )
    return sandbox
