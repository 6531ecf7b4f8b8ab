"""Attacks of a program on its sandbox, each really tried, and the host looked at afterwards."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from distill.errors import UsageError
from distill.grade import sandbox as boxes
from distill.grade import sandbox_http
from distill.grade.sandbox import Limits, SandboxFailed, open_sandbox, run_job
from distill.grade.sandbox_bwrap import Bubblewrap, interpreter
from distill.grade.sandbox_docker import Container
from distill.grade.sandbox_http import Service
from distill.grade.sandbox_seccomp import program_for

SMALL = Limits(test_s=2.0, total_s=6.0, memory=256 << 20, processes=16)


@pytest.fixture(scope="module")
def bwrap() -> boxes.Sandbox:
    try:
        return open_sandbox("bwrap")
    except UsageError as error:
        pytest.skip(f"no bubblewrap that works: {error.message}")


def script(box: boxes.Sandbox, program: str, limits: Limits = SMALL, stdin: str = "") -> Any:
    """The row of one run as a script."""
    header = {"mode": "script", "program": textwrap.dedent(program), "usual": False}
    report = run_job(box, {**header, "tests": [{"stdin": stdin, "most": 1 << 20}]}, limits)
    return report.rows[0] if report.rows else report


TRY = """
import json, os, socket, ctypes, sys
def tried(what, *args, **kw):
    try:
        return repr(what(*args, **kw))[:200]
    except BaseException as error:
        return type(error).__name__
found = {}
"""


def tried(box: boxes.Sandbox, body: str, limits: Limits = SMALL) -> dict[str, str]:
    """What a program says about its own attempts."""
    row = script(box, f"{TRY}\n{textwrap.dedent(body)}\nprint(json.dumps(found))", limits)
    assert (row["why"], row["status"]) == ("", 0), row
    return dict(json.loads(row["out"]))


def test_a_program_runs(bwrap: boxes.Sandbox) -> None:
    row = script(bwrap, "print(int(input()) * 2)", stdin="21\n")
    assert row["out"] == "42\n"
    assert row["status"] == 0


def test_secrets_are_out_of_reach(
    bwrap: boxes.Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    secret = tmp_path / "secret.txt"
    secret.write_text("sk-secret")
    repository = Path(boxes.__file__).resolve().parents[2]
    found = tried(
        bwrap,
        f"""
        def read(path): return open(path).read()
        for path in ("/etc/shadow", "/etc/passwd", {str(secret)!r}, {boxes.__file__!r},
                     "/proc/1/environ", "/proc/1/mem", "/proc/1/fd/0", "/proc/kcore"):
            found[path] = tried(read, path)
        found["environment"] = sorted(os.environ)
        found["root"] = sorted(os.listdir("/"))
        found["home"] = tried(os.listdir, {str(Path.home())!r})
        found["repository"] = tried(os.listdir, {str(repository)!r})
        found["processes"] = [p for p in os.listdir("/proc") if p.isdigit()]
        os.symlink("/etc/shadow", "/tmp/link")
        found["link"] = tried(read, "/tmp/link")
        """,
    )
    text = json.dumps(found)
    assert "sk-secret" not in text
    refused = ("FileNotFoundError", "PermissionError")
    for path in [key for key in found if key.startswith("/")] + ["link"]:
        assert found[path] in refused, path
    assert "OPENAI_API_KEY" not in found["environment"]
    assert len(found["processes"]) == 2
    assert found["repository"] in refused
    listed = found["home"] + text
    assert ".ssh" not in listed
    assert ".cache" not in listed


def test_nothing_outside_can_be_written_or_deleted(bwrap: boxes.Sandbox, tmp_path: Path) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("here")
    before = sorted(os.listdir("/"))
    found = tried(
        bwrap,
        f"""
        import shutil
        def write(path): open(path, "w").write("x")
        for path in ("/x", "/usr/x", "/usr/lib/x", "/etc/x", "/dev/x", {str(tmp_path / "x")!r},
                     os.path.dirname(os.__file__) + "/x", sys.executable):
            found[path] = tried(write, path)
        found["remount"] = tried(ctypes.CDLL(None).mount, None, b"/", None, 32, None)
        for path in ("/tmp", os.path.dirname(json.__file__), "/dev"):
            shutil.rmtree(path, ignore_errors=True)
        found["library"] = tried(os.remove, json.__file__)
        found["kept"] = tried(os.remove, {str(kept)!r})
        """,
    )
    assert found.pop("remount") == "-1"
    assert set(found.values()) <= {"OSError", "PermissionError", "FileNotFoundError"}
    assert kept.read_text() == "here"
    assert sorted(os.listdir("/")) == before


def test_there_is_no_network(bwrap: boxes.Sandbox, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    abstract = f"\0distill-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as named,
    ):
        unix.bind(path)
        unix.listen()
        named.bind(abstract)
        named.listen()
        found = tried(
            bwrap,
            f"""
            def connect(family, address):
                socket.socket(family).connect(address)
            found["tcp"] = tried(connect, socket.AF_INET, ("127.0.0.1", {tcp.getsockname()[1]}))
            found["out"] = tried(connect, socket.AF_INET, ("1.1.1.1", 443))
            found["unix"] = tried(connect, socket.AF_UNIX, {path!r})
            found["abstract"] = tried(connect, socket.AF_UNIX, {abstract!r})
            found["dns"] = tried(socket.getaddrinfo, "example.org", 80)
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            found["udp"] = tried(udp.sendto, b"x", ("1.1.1.1", 53))
            for name in ("AF_VSOCK", "AF_NETLINK", "AF_PACKET"):
                found[name] = tried(socket.socket, getattr(socket, name), socket.SOCK_RAW)
            """,
        )
    assert set(found.values()) <= {
        "ConnectionRefusedError",
        "FileNotFoundError",
        "OSError",
        "PermissionError",
        "gaierror",
    }, found


def test_the_kernel_gives_no_more_rights(bwrap: boxes.Sandbox) -> None:
    calls = {"ptrace": (101, 16, 1), "keyctl": (250, 0, -3), "add_key": (248,), "bpf": (321,)}
    calls |= {"unshare": (272, 0x10000000), "memfd": (319, 0, 0), "io_uring": (425, 1, 0)}
    calls |= {"shmget": (29, 0, 1 << 20, 0o1777), "setns": (308, 0, 0), "chroot": (161, 0)}
    calls |= {"readv": (310, 1), "clone": (56, 0x10000011, 0, 0, 0, 0), "clone3": (435, 0, 0)}
    found = tried(
        bwrap,
        f"""
        libc = ctypes.CDLL(None, use_errno=True)
        if os.uname().machine == "x86_64":
            for name, call in {calls!r}.items():
                ctypes.set_errno(0)
                result = libc.syscall(*call)
                found[name] = [result, ctypes.get_errno()]
        found["setuid"] = tried(os.setuid, 0)
        found["setgroups"] = tried(os.setgroups, [0])
        found["raise"] = tried(__import__("resource").setrlimit, 7, (10**6, 10**6))
        found["status"] = [l for l in open("/proc/self/status") if l.startswith(("Cap", "NoNew"))]
        found["ids"] = [os.getuid(), os.getgid(), os.getppid()]
        """,
    )
    for name in calls:
        if name in found:
            assert found[name] == [-1, 38 if name == "clone3" else 1], name
    assert found["setuid"] in ("OSError", "PermissionError")
    assert found["raise"] == "ValueError"
    assert found["ids"] == [65534, 65534, 1]
    assert all(line.split()[1].strip("0") in ("", "1") for line in found["status"])
    assert "NoNewPrivs:\t1\n" in found["status"]


BOMB = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
MEMORY = "x = []\nwhile True:\n    x.append(bytearray(10_000_000))"
SHARED = """
import os, time
for i in range(12):
    if os.fork() == 0:
        x = bytearray(100_000_000)
        time.sleep(60)
time.sleep(60)
"""
DEAF = "import signal, time\nsignal.pthread_sigmask(0, range(1, 65))\ntime.sleep(99)"
LARGE = "open('/tmp/x', 'wb').write(bytes(99_000_000))"
OPEN = "x = [open('/dev/null') for i in range(1000)]"
FILES = """
import os
for i in range(1000):
    with open(f"/tmp/{i}", "wb") as f:
        f.write(bytes(10_000_000))
"""


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (BOMB, "processes"),
        ("while True: print('x' * 1000)", "output"),
        ("import time\ntime.sleep(1000)", "time"),
        pytest.param(SHARED, "memory", marks=pytest.mark.slow),
        pytest.param("x = 7 ** (10 ** 9)", "time", marks=pytest.mark.slow),
        pytest.param(DEAF, "time", marks=pytest.mark.slow),
    ],
    ids=["fork", "output", "sleep", "memory", "arithmetic", "deaf"],
)
def test_what_never_ends_is_ended(bwrap: boxes.Sandbox, program: str, why: str) -> None:
    seconds = 0.3 if why == "time" else 20.0
    limits = Limits(test_s=seconds, total_s=30.0, memory=256 << 20, processes=16)
    assert script(bwrap, program, limits)["why"] == why


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (MEMORY, "MemoryError"),
        pytest.param(FILES, "No space left on device", marks=pytest.mark.slow),
        pytest.param(LARGE, "File too large", marks=pytest.mark.slow),
        pytest.param(OPEN, "Too many open files", marks=pytest.mark.slow),
    ],
    ids=["memory", "disk", "file", "descriptors"],
)
def test_limits_of_one_process(bwrap: boxes.Sandbox, program: str, said: str) -> None:
    row = script(bwrap, program)
    assert row["status"] != 0
    assert said in row["err"]


def test_nobody_is_left_and_nobody_else_was_hurt(bwrap: boxes.Sandbox) -> None:
    marker = f"marker-{os.getpid()}-{time.monotonic_ns()}"
    command = [sys.executable, "-c", f"import time; time.sleep(60)  # {marker}"]
    neighbour = subprocess.Popen(command)
    try:
        row = script(
            bwrap,
            f"""
            import os, signal, subprocess, sys
            for number in range(1, 65):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError):
                    pass
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    start = [sys.executable, "-sS", "-c", "import time; time.sleep(60)  # {marker}"]
                    subprocess.Popen(start)
                os._exit(0)
            try:
                os.wait()
            except ChildProcessError:
                pass
            for process in (1, os.getppid(), -1, {os.getpid()}, {neighbour.pid}):
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGSTOP, signal.SIGKILL):
                    if process == -1 and number != signal.SIGTERM:
                        continue
                    try:
                        os.kill(process, number)
                    except OSError:
                        pass
            print("still here")
            """,
        )
        assert row["out"] == "still here\n"
        assert neighbour.poll() is None
        with_marker = [pid for pid in _processes() if marker in _command(pid)]
        assert with_marker == [neighbour.pid]
    finally:
        neighbour.kill()
        neighbour.wait()


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


@pytest.mark.slow
def test_a_sandbox_dies_with_the_process_that_started_it(bwrap: boxes.Sandbox) -> None:
    marker = f"marker-{os.getpid()}-{time.monotonic_ns()}"
    code = f"""
import threading
from distill.grade.sandbox import Limits, open_sandbox, run_job
program = "import os\\nos.execv({interpreter(None)[1][0]!r}, ['x', '-sS', '-c', " \\
    "'import time; time.sleep(60)  # {marker}'])"
header = {{"mode": "script", "program": program, "usual": False}}
run_job(open_sandbox(), {{**header, "tests": [{{"stdin": "", "most": 9}}]}}, Limits(test_s=60.0))
"""
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        _until(lambda: any(marker in _command(p) for p in _processes() if p != child.pid))
    finally:
        child.kill()
        child.wait()
    _until(lambda: not any(marker in _command(p) for p in _processes()))


def _until(condition: Any) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen in 30 s")


def test_the_report_cannot_be_written_by_the_program(bwrap: boxes.Sandbox) -> None:
    found = tried(
        bwrap,
        """
        def write(path): open(path, "w").write('{"end": {}}')
        for number in range(64):
            if number > 2:
                found[number] = tried(os.write, number, b"{}")
        for number in range(12):
            found[f"/proc/{number}"] = tried(write, f"/proc/1/fd/{number}")
            found[f"link {number}"] = tried(os.readlink, f"/proc/1/fd/{number}")
        """,
    )
    assert set(found.values()) <= {"OSError", "PermissionError", "FileNotFoundError"}


@pytest.mark.slow
def test_another_interpreter_with_its_packages() -> None:
    try:
        box = open_sandbox("bwrap", sys.executable)
    except UsageError as error:
        pytest.skip(error.message)
    assert script(box, "import numpy\nprint(int(numpy.sum([1, 2])))")["out"] == "3\n"
    bare = script(open_sandbox("bwrap"), "import numpy")
    assert "ModuleNotFoundError" in bare["err"]
    with pytest.raises(UsageError, match="cannot be asked"):
        open_sandbox("bwrap", "/nowhere/python")


# -- other sandboxes, and none -----------------------------------------------------------------


def test_without_a_sandbox_it_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="there is no 'bwrap'") as caught:
        Bubblewrap()
    assert "apt-get install bubblewrap" in caught.value.hint
    with pytest.raises(UsageError, match="there is no 'podman'"):
        Container("podman")
    with pytest.raises(UsageError, match="no sandbox 'chroot'"):
        open_sandbox("chroot")


def test_a_sandbox_that_does_not_start_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    open_sandbox.cache_clear()
    try:
        with pytest.raises(UsageError, match="No permissions to create new namespace") as caught:
            open_sandbox("bwrap")
    finally:
        open_sandbox.cache_clear()
    assert "unprivileged_userns_clone" in caught.value.hint


def test_a_report_that_breaks_off_is_the_sandboxs_fault() -> None:
    whole = b'{"ready": [3]}\n{"test": 0}\n{"end": {"why": ""}}\n'
    assert len(boxes.read_report(boxes.Output(whole, "", 0)).rows) == 1
    for cut in (b"", whole[:20], whole[:-21], b"Traceback\n"):
        with pytest.raises(SandboxFailed):
            boxes.read_report(boxes.Output(cut, "killed", 137))


def test_the_filter_knows_the_machines_it_runs_on() -> None:
    for machine in ("x86_64", "aarch64"):
        program = program_for(machine)
        assert len(program) % 8 == 0
        assert 300 < len(program) < 4096
    assert program_for("riscv64") == b""


class _Fusion(BaseHTTPRequestHandler):
    """A small service that speaks SandboxFusion's protocol; it isolates by our own bubblewrap."""

    busy = 0

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if _Fusion.busy:
            _Fusion.busy -= 1
            self.send_error(503)
            return
        if asked["language"] != "python" or self.path != "/run_code":
            self.send_error(404)
            return
        box = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--tmpfs", "/tmp"]
        done = subprocess.run(
            [*box, "--dev", "/dev", "--proc", "/proc", sys.executable, "-S", "-c", asked["code"]],
            input=asked["stdin"].encode(),
            capture_output=True,
            timeout=asked["run_timeout"],
        )
        result = {
            "status": "Finished",
            "return_code": done.returncode,
            "stdout": done.stdout.decode(),
            "stderr": done.stderr.decode(),
        }
        status = "Failed" if done.returncode else "Success"
        body = json.dumps({"status": status, "message": "", "run_result": result}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def service(bwrap: boxes.Sandbox) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Fusion)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_service_over_http(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_http, "PAUSES", (0.01,))
    box = open_sandbox(service)
    _Fusion.busy = 1  # asked again
    assert script(box, "print(input()[::-1])", stdin="abc")["out"] == "cba\n"
    with pytest.raises(UsageError, match="HTTP 404"):
        open_sandbox(f"{service}/elsewhere")


def test_a_service_that_is_not_there_or_talks_nonsense(service: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(UsageError, match="does not work here"):
        open_sandbox(f"http://127.0.0.1:{port}")
    for answer in (b"[]", b"{}", b"\xff", b'{"run_result": null}'):
        with pytest.raises(SandboxFailed, match="something else"):
            Service(service)._output(answer)
    failed = b'{"status": "SandboxError", "message": "no pod", "run_result": {"stdout": ""}}'
    with pytest.raises(SandboxFailed, match="no pod"):
        Service(service)._output(failed)


def unusable(engine: str) -> str:
    """Why an engine cannot be used here; empty if its daemon answers."""
    if shutil.which(engine) is None:
        return f"there is no '{engine}'"
    done = subprocess.run([engine, "version"], capture_output=True, text=True, timeout=30)
    said = (done.stderr or done.stdout).strip().splitlines()
    return "" if done.returncode == 0 else said[-1]


def test_a_container(tmp_path: Path) -> None:
    engine = next((name for name in ("docker", "podman") if not unusable(name)), "")
    if not engine:
        pytest.skip(f"no container engine: {unusable('docker')}")
    try:
        box = open_sandbox(engine)
    except UsageError as error:
        pytest.skip(error.message)
    assert script(box, "print(6 * 7)")["out"] == "42\n"
    assert script(box, BOMB)["why"] == "processes"


def test_a_containers_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "docker"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    command = Container("docker").command("name", SMALL)
    text = " ".join(command)
    for part in ("--network none", "--read-only", "--cap-drop ALL", "--user 65534:65534"):
        assert part in text
    assert "--pids-limit 20" in text
    assert "--memory 402653184 --memory-swap 402653184" in text
    assert "/var/run/docker.sock" not in text
