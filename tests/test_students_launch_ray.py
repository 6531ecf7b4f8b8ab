"""Ray Train on a two-node Ray cluster of this machine.

Needs an interpreter with ray, torch and distill: `make vllm`, or DISTILL_VLLM_PYTHON.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests import tiny_students

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROGRAM = """
import json, os, sys
from pathlib import Path
from ray.cluster_utils import Cluster
from distill.errors import DistillError
from distill.students.sft import SFT

data, out, config = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()
os.environ["RAY_ADDRESS"] = cluster.address
try:
    SFT().train(data, out / "ray", config)
    config["train"] |= {"learning_rate": 1e30, "max_grad_norm": 1e30}
    try:
        SFT().train(data, out / "nan", config)
    except DistillError as error:
        print(json.dumps({"said": str(error)}))
    config["train"]["nodes"] = 3
    os.environ["DISTILL_WAIT_S"] = "0"
    try:
        SFT().train(data, out / "three", config)
    except DistillError as error:
        print(json.dumps({"said": str(error)}))
finally:
    cluster.shutdown()
"""


@pytest.fixture
def python() -> str:
    found = os.environ.get("DISTILL_VLLM_PYTHON") or str(ROOT / ".venv-vllm" / "bin" / "python")
    there = [found, "-c", "import ray.train, torch, trl"]
    if not Path(found).is_file() or subprocess.run(there, capture_output=True).returncode:
        pytest.skip("no interpreter with ray and trl: run `make vllm`")
    return found


def test_ray_workers_train_the_same_student(tmp_path: Path, python: str) -> None:
    from distill.students.sft import SFT
    from tests.test_students_launch_real import close, summary

    base, data = tiny_students.base(tmp_path / "base"), tmp_path / "dataset.jsonl"
    tiny_students.dataset(data, 21)
    one = SFT().train(data, tmp_path / "one", tiny_students.config(base))
    config = tiny_students.config(base, nodes=2, launcher="ray")
    done = subprocess.run(
        [python, "-c", PROGRAM, str(data), str(tmp_path), json.dumps(config)],
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "CUDA_VISIBLE_DEVICES": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    close(one, tmp_path / "ray" / "student")
    assert summary(tmp_path / "ray")["processes"] == 2
    assert not list((tmp_path / "ray").glob(".*"))
    nan, three = (json.loads(line)["said"] for line in done.stdout.splitlines() if '"said"' in line)
    assert "the loss became" in nan
    assert "nan_batch.json" in nan
    assert "wants 3 CPUs" in three
    assert "has 2" in three
