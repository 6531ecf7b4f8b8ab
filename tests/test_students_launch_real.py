"""Trainings of several processes for real: Slurm's and torchrun's nodes on this machine, kills."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from distill.students import launch
from distill.students.sft import SFT
from tests import launching, tiny_students

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes die with parents"),
]


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def close(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    for name in a:
        assert float((a[name] - b[name]).norm()) <= 1e-3 * float(a[name].norm()), name


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A base, a data set, and the student that one process makes of them."""
    folder = tmp_path_factory.mktemp("tiny")
    base, data = tiny_students.base(folder / "base"), folder / "dataset.jsonl"
    tiny_students.dataset(data, 21)
    return base, data, SFT().train(data, folder / "one", tiny_students.config(base))


def test_slurm_starts_a_torchrun_on_each_node(
    tmp_path: Path, tiny: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, data, one = tiny
    (tmp_path / "srun").write_text(launching.SRUN)
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SRUN_LOG", str(tmp_path / "log"))
    for name, value in (("ID", "71"), ("NUM_NODES", "2")):
        monkeypatch.setenv(f"SLURM_JOB_{name}", value)
    monkeypatch.setenv("SLURMD_NODENAME", "localhost")
    out = tmp_path / "out"
    two = SFT().train(data, out, tiny_students.config(base, nodes=2))
    close(one, two)
    assert summary(out)["processes"] == 2
    (words,) = (tmp_path / "log").read_text().splitlines()
    assert "--nodes=2 --ntasks=2 --ntasks-per-node=1 --kill-on-bad-exit=1" in words
    assert "--rdzv-backend c10d" in words
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def until(what: Any, process: subprocess.Popen[Any], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, f"it ended with {process.returncode} before that"
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


def in_a_folder_of_its_own(hidden: Path) -> list[str]:
    """Begins a command that does not see `hidden`, as another machine would not."""
    command = ["bwrap", "--dev-bind", "/", "/", "--tmpfs", str(hidden), "--die-with-parent"]
    try:
        works = subprocess.run([*command, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        works = False
    return command if works else []


class TwoNodes:
    """A training on two "nodes": the trainer's module leads, `distill train` follows."""

    def __init__(self, folder: Path, base: Path, data: Path, **changes: Any) -> None:
        self.folder, self.out = folder, folder / "mine" / "out"
        self.out.parent.mkdir()
        config = tiny_students.config(base, nodes=2, **changes)
        self.request = folder / "config.json"
        told = {"dataset": str(data), "out": str(self.out), "config": config}
        self.request.write_text(json.dumps(told))
        self.recipe = folder / "two.yaml"
        self.recipe.write_text(f"name: two\nstudent: {base}\ntrain: {{nodes: 2}}\n")
        self.apart = in_a_folder_of_its_own(self.out.parent)

    def start(self) -> list[subprocess.Popen[str]]:
        """Leader and follower; their words go to files."""
        place = {
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(free_port()),
            "DISTILL_WAIT_S": "90",
        }
        lead = [sys.executable, "-m", "distill.students.sft", str(self.request)]
        join = [*self.apart, sys.executable, "-m", "distill.cli", "train", str(self.recipe)]
        return [self._run(lead, 0, place), self._run(join, 1, place)]

    def _run(self, command: list[str], rank: int, place: dict[str, str]) -> subprocess.Popen[str]:
        with (self.folder / f"node-{rank}.log").open("w") as log:
            return subprocess.Popen(
                command,
                env={**os.environ, **place, "NODE_RANK": str(rank), "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def said(self, rank: int) -> str:
        return (self.folder / f"node-{rank}.log").read_text()


def workers_of(process: subprocess.Popen[Any]) -> list[int]:
    found = [(pid, launching.command_of(pid)) for pid in launching.children(process.pid)]
    return [pid for pid, line in found if launch.WORKER in line and launch.AGENT not in line]


def test_a_node_that_dies_ends_the_others_and_the_same_command_goes_on(
    tmp_path: Path, tiny: tuple[Path, Path, Path]
) -> None:
    base, data, _ = tiny
    changes = {"epochs": 40, "save_every": 5}
    one = SFT().train(data, tmp_path / "one", tiny_students.config(base, **changes))
    two = TwoNodes(tmp_path, base, data, **changes)
    leader, follower = two.start()
    try:
        until(lambda: list(two.out.glob("checkpoints/checkpoint-*/sealed.json")), leader)
        everybody = launching.children(leader.pid) + launching.children(follower.pid)
        for pid in workers_of(follower):
            os.kill(pid, signal.SIGKILL)
        assert follower.wait(60) == 1
        assert leader.wait(90) == 1
        assert "was ended by SIGKILL" in two.said(1)
        assert "Traceback" not in two.said(0) + two.said(1)
        assert "error: " in two.said(0)
        assert not [pid for pid in everybody if launching.alive(pid)]
        leader, follower = two.start()
        assert leader.wait(200) == 0, two.said(0)
        assert follower.wait(60) == 0, two.said(1)
    finally:
        for process in (leader, follower):
            process.kill()
    told = summary(two.out)
    assert told["resumed_from"] >= 5
    assert told["processes"] == 2
    assert ("did not see" in " ".join(told["notes"])) == bool(two.apart)
    close(one, two.out / "student")
