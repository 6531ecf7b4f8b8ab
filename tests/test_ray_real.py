"""Ray Serve LLM on a two-node Ray cluster with real vLLM replicas, one node killed half-way.

Needs an interpreter with ray and vllm: `make vllm`, or DISTILL_VLLM_PYTHON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.records import read_jsonl
from tests.offline_vllm import ENGINE
from tests.test_chaos import bought, free_port

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "teachers" / "pocket"
PROBLEMS, N = 24, 8
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process of the cluster, and the URL that it answers at."""
    python = os.environ.get("DISTILL_VLLM_PYTHON") or str(ROOT / ".venv-vllm" / "bin" / "python")
    there = [python, "-c", "import ray.serve, vllm"]
    if not Path(python).is_file() or subprocess.run(there, capture_output=True).returncode:
        pytest.skip("no interpreter with ray and vllm: run `make vllm`")
    port = free_port()
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    engine = json.dumps({key: ENGINE[key] for key in ("dtype", "enforce_eager")})
    log = tmp_path / "ray.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [python, "-m", "tests.ray_cluster", str(port), str(MODEL), engine],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("["):
                break
        else:
            pytest.fail(log.read_text(encoding="utf-8")[-3000:])
        yield process, json.loads(line)[0]
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def recipe(folder: Path, url: str) -> Path:
    content: dict[str, Any] = {
        "name": "ray",
        "problems": {
            "sources": [
                {"task": "chain_sum", "size": PROBLEMS, "config": {"min_terms": 2, "max_terms": 3}}
            ]
        },
        "teacher": {
            "engine": "openai",
            "model": "pocket-teacher",
            "base_urls": [url],
            "options": {"served_name": "teacher", "outage_s": 900},
        },
        "sampling": {"n": N, "max_tokens": 160, "concurrency": 8, "retries": 60, "silence_s": 30},
        "evaluate": {"tasks": []},
    }
    path = folder / "ray.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_node_that_dies_costs_no_trace(
    tmp_path: Path, cluster: tuple[subprocess.Popen[str], str]
) -> None:
    process, url = cluster
    path = recipe(tmp_path, url)
    command = [sys.executable, "-m", "distill.cli", "sample", str(path), "--quiet"]
    with (tmp_path / "sampler.log").open("w") as log:
        sampler = subprocess.Popen(
            [*command, "--runs", str(tmp_path / "runs")], stdout=log, stderr=log
        )
    try:
        while sampler.poll() is None and bought(path) < 20_000:
            time.sleep(0.2)
        assert sampler.poll() is None, (tmp_path / "sampler.log").read_text()
        assert process.stdin is not None
        process.stdin.write("kill\n")
        process.stdin.flush()
        assert sampler.wait(timeout=1200) == 0, (tmp_path / "sampler.log").read_text()
    finally:
        sampler.kill()
    (step,) = tmp_path.glob("runs/steps/sample-*")
    keys = [(row["problem_id"], row["index"]) for row in read_jsonl(step / "traces.jsonl")]
    assert len(keys) == len(set(keys)) == PROBLEMS * N
    summary = json.loads((step / "summary.json").read_text())
    assert summary["failed"] == 0
    assert summary["bought"] == PROBLEMS * N
    print(f"all {len(keys)} traces once; retries: {summary.get('retries')}")
