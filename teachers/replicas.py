"""Local servers on one node: started on the GPUs they share out, watched, restarted, stopped.

Works for any server command that takes a port and answers GET /health; `distill.teachers.served`
uses it for `vllm serve`. A restarted server keeps its port, so its URL stays valid.
"""

from __future__ import annotations

import http.client
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from distill.errors import ModelError, RecipeError

log = logging.getLogger(__name__)

KEEPER = Path(__file__).with_name("keeper.py")
LOOK_S = 0.25
HEALTH_EVERY_S = 10.0
SILENT_S = 120.0
"""A server that answers /health no more for so long is taken for hung and restarted."""
DEATHS_WITHIN_S = 3600.0
"""Deaths longer ago do not count against a server."""
TELL_EVERY_S = 60.0

CAUSES = (
    (
        r"out of memory|OutOfMemory|No available memory for the cache|Free memory on device",
        "the model does not fit: raise options.tensor_parallel_size, lower options.max_model_len, "
        "or set options.gpu_memory_utilization (and see what else uses the GPU)",
    ),
    (
        r"larger than the (available KV cache|maximum number of tokens)|KV cache is needed",
        "the context does not fit into the cache: lower options.max_model_len, or raise "
        "options.gpu_memory_utilization",
    ),
    (
        r"unrecognized arguments|invalid choice|expected one argument|invalid \w+ value",
        "teacher.options are arguments of `vllm serve`: correct the one named above",
    ),
    (r"No module named 'vllm'", "name an interpreter that has vllm: interpreters.sample"),
)
"""What a log says -> what to do."""

NOISE = r"\s*- (leaked|\.\.\. skipped)|nanobind:|See https://nanobind"
"""What Triton's bindings say at every exit, however a server ended."""


def visible_gpus() -> list[str]:
    """Names of the GPUs this process may use, as CUDA_VISIBLE_DEVICES would list them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    try:
        asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        found = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=True)
        return found.stdout.split()
    except (OSError, subprocess.SubprocessError):
        import torch

        return [str(number) for number in range(torch.cuda.device_count())]


def share_out(
    replicas: int | Literal["auto"], per_replica: int, gpus: Sequence[str]
) -> list[tuple[str, ...]]:
    """The GPUs of each replica; empty tuples on a machine without any.

    `auto` is as many as the GPUs bear, and one without GPUs. Raises RecipeError where they do
    not suffice.
    """
    if not gpus:
        return [()] * (1 if replicas == "auto" else replicas)
    count = len(gpus) // per_replica if replicas == "auto" else replicas
    if not count or count * per_replica > len(gpus):
        raise RecipeError(
            f"{max(count, 1)} replicas of {per_replica} GPUs each need "
            f"{max(count, 1) * per_replica}, and {len(gpus)} are visible: {', '.join(gpus)}",
            "lower replicas or options.tensor_parallel_size, or look at CUDA_VISIBLE_DEVICES",
        )
    return [tuple(gpus[i * per_replica : (i + 1) * per_replica]) for i in range(count)]


@dataclass(slots=True)
class Replica:
    """One server. `given_up` says that it died too often."""

    number: int
    port: int
    devices: tuple[str, ...]
    log: Path = Path(os.devnull)
    process: subprocess.Popen[bytes] | None = None
    log_start: int = 0
    started_at: float = 0.0
    restart_at: float = 0.0
    healthy_at: float = 0.0
    asked_at: float = 0.0
    ready: bool = False
    given_up: bool = False
    deaths: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        """For people."""
        where = f", GPU {','.join(self.devices)}" if self.devices else ""
        return f"replica {self.number} (port {self.port}{where})"


class Replicas:
    """Equal servers, one for each entry of `devices`.

    `command` gives the command line for a port. `environment` is added to this process's own.
    `start_s` is how long a server may take until it answers /health. One that dies is started
    again after 1, 2, 4, ... seconds (times `backoff_s`), at most `restarts` times an hour; then
    the others go on without it and `notes` says so. When none is left, `failure` says why and
    `when_failed` is called, in the watching thread.
    Logs go into `logs`, by default a temporary folder that is kept only if a server died.
    """

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        devices: Sequence[tuple[str, ...]],
        *,
        environment: Mapping[str, str] | None = None,
        logs: Path | None = None,
        start_s: float = 1800.0,
        restarts: int = 3,
        backoff_s: float = 1.0,
        when_failed: Callable[[], None] = lambda: None,
    ) -> None:
        self._command = command
        self._environment = dict(environment or {})
        self._logs = logs
        self._temporary = logs is None
        self._start_s, self._restarts, self._backoff_s = start_s, restarts, backoff_s
        self._when_failed = when_failed
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None
        self._lock = threading.Lock()
        ports = _free_ports(len(devices))
        self._replicas = [Replica(i, ports[i], gpus) for i, gpus in enumerate(devices)]
        self.notes: list[str] = []
        self.failure = ""

    @property
    def urls(self) -> list[str]:
        """Base URLs, in the order of the replicas; they stay the same."""
        return [f"http://127.0.0.1:{one.port}" for one in self._replicas]

    @property
    def running(self) -> bool:
        """True between `start` and `stop`."""
        return self._watcher is not None

    def start(self) -> None:
        """Start all and wait until each answers. Raises ModelError with the log of one that died.

        Does nothing where they run already.
        """
        with self._lock:
            if self.running:
                return
            self._make_logs()
            self._stopping.clear()
            self.failure = ""
            try:
                for one in self._replicas:
                    one.deaths, one.given_up = [], False
                    self._spawn(one)
                self._wait_until_ready()
            except BaseException:
                self._end_all()
                raise
            self._watcher = threading.Thread(target=self._watch, name="replicas", daemon=True)
            self._watcher.start()

    def stop(self) -> None:
        """End all servers and what belongs to them; also breaks off a `start` under way."""
        self._stopping.set()
        with self._lock:
            if self._watcher is not None:
                self._watcher.join()
                self._watcher = None
            self._end_all()
            died = self.notes or self.failure
            if self._temporary and self._logs is not None and not died:
                shutil.rmtree(self._logs, ignore_errors=True)
                self._logs = None

    # -- one server ----------------------------------------------------------------------------

    def _make_logs(self) -> None:
        if self._logs is None:
            self._logs = Path(tempfile.mkdtemp(prefix="distill-replicas-"))
        self._logs.mkdir(parents=True, exist_ok=True)
        for one in self._replicas:
            one.log = self._logs / f"replica-{one.number}.log"

    def _spawn(self, one: Replica) -> None:
        environment = {**os.environ, **self._environment}
        if one.devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(one.devices)
        command = [str(word) for word in self._command(one.port)]
        with one.log.open("ab") as out:
            out.write(f"# {' '.join(command)}\n".encode())
            out.flush()
            one.log_start = out.tell()
            one.process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(KEEPER), str(os.getpid()), *command],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                # Ctrl-C is for us: the servers are ended in order.
                start_new_session=True,
            )
        one.ready, one.started_at = False, time.monotonic()

    def _wait_until_ready(self) -> None:
        told = time.monotonic()
        while not all(one.ready for one in self._replicas):
            if self._stopping.wait(LOOK_S):
                raise ModelError("the servers were stopped while they were starting")
            for one in self._replicas:
                assert one.process is not None
                code = one.process.poll()
                if code is not None:
                    self._keep_logs()
                    raise _died_at_start(one, code)
                one.ready = one.ready or _healthy(one.port, 2.0)
                if not one.ready and time.monotonic() - one.started_at > self._start_s:
                    self._keep_logs()
                    raise ModelError(
                        f"{one.name} does not answer {self._start_s:g} s after its start; "
                        f"its log ends:\n{indent(tail(one))}",
                        f"raise options.start_s if it needs longer; the log is {one.log}",
                    )
            if time.monotonic() - told > TELL_EVERY_S:
                told = time.monotonic()
                ready = sum(one.ready for one in self._replicas)
                log.warning(
                    "%d of %d servers are ready; logs: %s", ready, len(self._replicas), self._logs
                )
        now = time.monotonic()
        for one in self._replicas:
            one.healthy_at = one.asked_at = now

    # -- watching ------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stopping.wait(LOOK_S):
            for one in self._replicas:
                if not one.given_up:
                    self._look_after(one)
            if all(one.given_up for one in self._replicas):
                last = self._replicas[-1]
                self.failure = (
                    f"all {len(self._replicas)} servers died; the last log ends:\n"
                    f"{indent(tail(last))}"
                )
                self._when_failed()
                return

    def _look_after(self, one: Replica) -> None:
        now = time.monotonic()
        if one.process is None:
            if now >= one.restart_at:
                try:
                    self._spawn(one)
                except OSError as error:
                    self._died(one, f"could not be started ({error})")
            return
        code = one.process.poll()
        if code is not None:
            self._died(one, f"ended with exit code {code}")
        elif not one.ready:
            if _healthy(one.port, 2.0):
                one.ready, one.healthy_at, one.asked_at = True, now, now
                log.warning("%s is back after %.0f s", one.name, now - one.started_at)
            elif now - one.started_at > self._start_s:
                self._died(one, f"did not answer {self._start_s:g} s after its start")
        elif now - one.asked_at > HEALTH_EVERY_S:
            one.asked_at = now
            if _healthy(one.port, HEALTH_EVERY_S):
                one.healthy_at = time.monotonic()
            elif time.monotonic() - one.healthy_at > SILENT_S:
                self._died(one, f"has not answered /health for {SILENT_S:g} s")

    def _died(self, one: Replica, what: str) -> None:
        _end([one])
        self._keep_logs()
        now = time.monotonic()
        one.deaths = [at for at in one.deaths if now - at < DEATHS_WITHIN_S] + [now]
        one.ready, one.process = False, None
        count = len(one.deaths)
        if count > self._restarts:
            one.given_up = True
            text = f"{one.name} {what} and was given up after {self._restarts} restarts"
        else:
            one.restart_at = now + self._backoff_s * 2 ** (count - 1)
            text = f"{one.name} {what} and was started again"
        log.warning("%s; its log is %s and ends:\n%s", text, one.log, indent(tail(one)))
        self.notes.append(f"{text} (log: {one.log})")

    def _keep_logs(self) -> None:
        self._temporary = False

    def _end_all(self) -> None:
        _end(self._replicas)
        for one in self._replicas:
            one.process, one.ready = None, False


def _end(replicas: Sequence[Replica]) -> None:
    """Close the keepers' pipes, all at once, and wait for them."""
    processes = [one.process for one in replicas if one.process is not None]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    for process in processes:
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _healthy(port: int, timeout: float) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; all are held until the last is chosen, so none comes twice."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def _died_at_start(one: Replica, code: int) -> ModelError:
    said = _said(one)
    hint = next((way for pattern, way in CAUSES if re.search(pattern, said, re.I)), "")
    return ModelError(
        f"{one.name} ended with exit code {code} before it was ready; its log says:\n"
        f"{indent(tail(one))}",
        f"{hint + '; ' if hint else ''}the whole log is {one.log}",
    )


def tail(one: Replica, count: int = 12) -> str:
    """The lines that name an error first, as causes stand far above the end; then the end."""
    said = [line.rstrip()[-400:] for line in _said(one).splitlines()]
    lines = [line for line in said if line.strip() and not re.match(NOISE, line)]
    end = lines[-count:]
    named = [line for line in lines[:-count] if re.search(r"\b\w*(Error|Exception)\b:", line)]
    return "\n".join([*dict.fromkeys(named[-4:]), *end]) or "(nothing)"


def _said(one: Replica) -> str:
    try:
        with one.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            # A server may have said gigabytes; what it died of is at the end.
            file.seek(max(one.log_start, size - 200_000))
            return file.read().decode(errors="replace")
    except OSError as error:
        return f"(the log cannot be read: {error})"  # whoever cleans /tmp ends no watching


def indent(text: str) -> str:
    """Each line four spaces further in."""
    return "\n".join(f"    {line}" for line in text.splitlines())
