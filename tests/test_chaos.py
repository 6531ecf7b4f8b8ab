"""A server that is killed and lies, a sampler that is killed: nothing lost, nothing bought twice.

The teacher's answer depends on prompt and seed alone, so that what an undisturbed run accepts is
what the disturbed one must accept.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.records import Verdict, read_jsonl, read_records
from distill.store import TracePool

PROBLEMS, N = 40, 4
SAMPLER_KILLS, SERVER_KILLS = 4, 8
FAULTS = 0.1
ROOT = Path(__file__).parent.parent


class Servers:
    """Two server processes, one of which a thread kills and starts again and again."""

    def __init__(self, *, faults: float, pause: float) -> None:
        self.options = ["--faults", str(faults), "--pause", str(pause)]
        self.ports = [free_port(), free_port()]
        self.kills = 0
        self._running = [self._start(port) for port in self.ports]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._trouble)

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}/v1" for port in self.ports]

    def _start(self, port: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.fake_server", "--port", str(port), *self.options]
        return subprocess.Popen(command, cwd=ROOT)

    def _trouble(self) -> None:
        chance = random.Random(3)
        while not self._stop.wait(chance.uniform(0.5, 2.0)) and self.kills < SERVER_KILLS:
            which = chance.randrange(2)
            self._running[which].kill()
            self._running[which].wait()
            self.kills += 1
            self._stop.wait(chance.uniform(0.1, 1.0))
            self._running[which] = self._start(self.ports[which])

    @contextlib.contextmanager
    def troubled(self) -> Iterator[None]:
        """Kill servers while the block runs; both are up at its end."""
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()

    def close(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def recipe(folder: Path, urls: list[str], sampling: dict[str, Any]) -> Path:
    folder.mkdir()
    rows = [{"problem": f"What is {i} + {i * 7}?", "answer": str(i * 8)} for i in range(PROBLEMS)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "name": "chaos",
        "problems": {"sources": [{"file": "sums.jsonl"}]},
        "teacher": {"engine": "openai", "model": "m", "base_urls": urls},
        "sampling": {
            "max_tokens": 512,
            "concurrency": 16,
            "retries": 60,
            "timeout_s": 5,
            "silence_s": 1,
            **sampling,
        },
        "filters": ["truncated", "correct", "format"],
        "evaluate": {"tasks": []},
    }
    path = folder / "chaos.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def distill(verb: str, path: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "distill.cli", verb, str(path), "--quiet"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = (path.parent / "log").open("ab")
    command += ["--runs", str(path.parent / "runs")]
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def sample_under_fire(path: Path) -> int:
    """Start the sampler, kill it, start it again, until it is done. Returns the kills."""
    chance, kills = random.Random(5), 0
    begin = time.monotonic()
    while kills < SAMPLER_KILLS:
        before, process = bought(path), distill("sample", path)
        # Time enough to come up and to buy a little, however slow the machine is today.
        while process.poll() is None and bought(path) == before:
            time.sleep(0.05)
        try:
            process.wait(timeout=chance.uniform(0.1, 1.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        else:
            if process.returncode == 0:
                break
        assert time.monotonic() - begin < 200
    return kills


def bought(path: Path) -> int:
    return sum(p.stat().st_size for p in path.parent.glob("runs/pool/*/*.jsonl"))


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of the pool's files whose checksum holds, read without the store's own code."""
    found = []
    for file in sorted(path.parent.glob("runs/pool/*/*.jsonl")):
        for line in file.read_bytes().split(b"\n"):
            body, _, tail = line.rpartition(b',"_crc":"')
            if body and int(tail[:8], 16) == zlib.crc32(body):
                found.append(json.loads(line))
    return found


def accepted(path: Path) -> set[tuple[str, int]]:
    """Run the filters and return what they keep."""
    assert distill("filter", path).wait(timeout=120) == 0, (path.parent / "log").read_text()
    verdicts = read_records(Verdict, step(path, "filter") / "verdicts.jsonl")
    return {(v.problem_id, v.index) for v in verdicts if v.kept}


def listed(path: Path) -> list[dict[str, Any]]:
    return list(read_jsonl(step(path, "sample") / "traces.jsonl"))


def step(path: Path, name: str) -> Path:
    """The folder of a step of the recipe's latest run."""
    runs = path.parent / "runs"
    latest = max(runs.glob("chaos-*/run.json"), key=lambda file: file.stat().st_mtime)
    return runs / str(json.loads(latest.read_text())["steps"][name]["folder"])


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("sampling", [{"n": N}, {"want": 2, "max": 8}], ids=["fixed", "adaptive"])
def test_chaos_changes_nothing(tmp_path: Path, sampling: dict[str, Any]) -> None:
    calm, wild = Servers(faults=0.0, pause=0.0), Servers(faults=FAULTS, pause=0.4)
    try:
        undisturbed = recipe(tmp_path / "calm", calm.urls, sampling)
        disturbed = recipe(tmp_path / "wild", wild.urls, sampling)
        assert distill("sample", undisturbed).wait(timeout=120) == 0
        with wild.troubled():
            kills = sample_under_fire(disturbed)
        last = distill("sample", disturbed).wait(timeout=200)
        assert last == 0, (disturbed.parent / "log").read_text()
        kept = accepted(disturbed)
        assert kept == accepted(undisturbed)
    finally:
        calm.close()
        wild.close()
    assert kills >= 2
    assert wild.kills >= 2
    assert len(kept) > PROBLEMS

    traces = listed(disturbed)
    keys = [(row["problem_id"], row["index"]) for row in traces]
    assert len(set(keys)) == len(keys)
    texts = {(r["problem_id"], r["index"]): r["text"] for r in listed(undisturbed)}
    assert {(r["problem_id"], r["index"]): r["text"] for r in traces} == texts
    if "n" in sampling:
        assert len(keys) == PROBLEMS * N

    (folder,) = disturbed.parent.glob("runs/pool/*")
    with TracePool.open(folder, write=False) as pool:
        stored = list(pool.traces())
        assert pool.bad == 0
    # Every record was bought once, and nothing torn was taken for one.
    on_disk = [(r["problem_id"], r["index"], r.get("segment", 0)) for r in whole_lines(disturbed)]
    assert sorted(on_disk) == sorted(t.key for t in stored)
    assert len(set(on_disk)) == len(on_disk)
    assert all(t.finish_reason in ("stop", "length") for t in stored)
    assert {t.text for t in stored} >= set(texts.values())
