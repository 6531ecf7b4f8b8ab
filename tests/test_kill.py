"""kill -9 at random moments: the same command goes on, and ends as an undisturbed run does."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

KILLS = 20
COMMAND = [sys.executable, "-m", "distill.cli", "run", "pocket", "variant=smoke", "--quiet"]
SETTINGS = ["train.save_every=2", "teacher.options.batch_size=32"]


def start(runs: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, *SETTINGS, "--runs", str(runs)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def result_of(runs: Path) -> dict[str, Any]:
    """What must be equal: kept traces, the data set's bytes, the student's weights, the scores."""
    run = json.loads(next(runs.glob("pocket-*/run.json")).read_text())
    assert run["status"] == "done"
    folders = {name: runs / step["folder"] for name, step in run["steps"].items()}
    weights = folders["train"] / "student" / "model.safetensors"
    results = json.loads((folders["evaluate"] / "results.json").read_text())
    return {
        "folders": {name: folder.name for name, folder in folders.items()},
        "verdicts": (folders["select"] / "verdicts.jsonl").read_bytes(),
        "dataset": (folders["select"] / "dataset.jsonl").read_bytes(),
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "scores": results["tasks"]["heldout"]["models"],
    }


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    undisturbed = tmp_path / "undisturbed"
    began = time.monotonic()
    assert start(undisturbed).wait() == 0
    whole = time.monotonic() - began

    chance, kills, rounds = random.Random(7), 0, 0
    while kills < KILLS:
        rounds += 1
        disturbed = tmp_path / f"disturbed-{rounds}"
        kills += finish_under_fire(disturbed, chance, whole, at_most=KILLS - kills)
        assert result_of(disturbed) == result_of(undisturbed), f"after {kills} kills"


def finish_under_fire(runs: Path, chance: random.Random, whole: float, at_most: int) -> int:
    """Start, kill, start again, until the run is done. Returns how often it was killed."""
    kills = 0
    while True:
        process = start(runs)
        # Long enough now and then to reach the later stages, short enough to be cruel.
        patience = chance.uniform(0.5, whole / 2) if kills < at_most else None
        try:
            assert process.wait(timeout=patience) == 0
            return kills
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
