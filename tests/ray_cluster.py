"""A Ray cluster of two nodes on this machine, with replicas by scripts/cluster/ray_serve.py.

    python -m tests.ray_cluster PORT MODEL [--engine JSON]

Run with an interpreter that has ray[serve] and vllm, by tests/test_ray_real.py. A line `kill` on
stdin takes the second node away at once, with all that ran on it; the end of stdin ends the rest.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "cluster" / "ray_serve.py"


def main(port: str, model: str, engine: str) -> None:
    """Start the cluster, serve, and obey."""
    from ray.cluster_utils import Cluster

    # Logical CPUs: a replica takes two (its own and its engine's), so each node holds one.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    second = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    threading.Thread(target=obey, args=(cluster, second), daemon=True).start()
    spec = importlib.util.spec_from_file_location("ray_serve", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    arguments = [model, "--address", cluster.address, "--port", port, "--replicas", "2"]
    arguments += ["--cpus", "1", "--max-model-len", "512", "--engine", engine]
    script.main(arguments)


def obey(cluster: Any, second: Any) -> None:
    """Commands from stdin."""
    for line in sys.stdin:
        if line.strip() == "kill":
            cluster.remove_node(second, allow_graceful=False)
            print("killed", flush=True)
    import ray

    ray.shutdown()
    cluster.shutdown()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
