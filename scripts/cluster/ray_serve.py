"""Replicas of a model on a Ray cluster, behind one URL on every node, by Ray Serve LLM.

    pip install "ray[serve,llm]"
    python scripts/cluster/ray_serve.py deepseek-ai/DeepSeek-R1 \\
        --replicas 32 --tensor 8 --pipeline 2

starts 32 replicas and keeps them up until it is interrupted; Ray places them, restarts them and
finds them other nodes. Every node with a replica answers at http://NODE:8000/v1, and each of these
URLs reaches all replicas, so the sampler goes on when a node is lost:

    distill run 7b "teacher.base_urls=[http://node1:8000/v1, http://node2:8000/v1]" \\
        teacher.options.served_name=teacher

`ray.sbatch` starts the cluster under Slurm. On CPUs (vLLM's CPU build) give `--cpus`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any


def llm_config(args: argparse.Namespace) -> dict[str, Any]:
    """What `ray.serve.llm.LLMConfig` takes."""
    engine = {
        "tensor_parallel_size": args.tensor,
        "pipeline_parallel_size": args.pipeline,
        "max_model_len": args.max_model_len,
        **args.engine,
    }
    config: dict[str, Any] = {
        "model_loading_config": {"model_id": args.served_name, "model_source": args.model},
        "engine_kwargs": engine,
        "deployment_config": {
            "num_replicas": args.replicas,
            "max_ongoing_requests": args.per_replica,
            # A health check must outlast a long prefill, and a stop the longest answer.
            "health_check_timeout_s": 120,
            "graceful_shutdown_timeout_s": 60,
        },
        # Ray's own statistics of vLLM need a GPU's environment and are not read by anybody here.
        "log_engine_metrics": False,
    }
    if args.accelerator:
        config["accelerator_type"] = args.accelerator
    if args.cpus:
        config["placement_group_config"] = {"bundles": [{"CPU": args.cpus}]}
    return config


def ingress_config(args: argparse.Namespace) -> dict[str, Any]:
    """Options of the ingress: two at least, for one may be lost with its node."""
    in_flight = args.replicas * args.per_replica
    config: dict[str, Any] = {
        "num_replicas": max(2, -(-args.replicas // 4)),
        "max_ongoing_requests": in_flight,
    }
    if args.cpus:
        config["ray_actor_options"] = {"num_cpus": 0}
    return config


def urls(port: int) -> list[str]:
    """The URL of each living node's proxy."""
    import ray

    nodes = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    return [f"http://{address}:{port}/v1" for address in sorted(nodes)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="hub name or folder")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--tensor", type=int, default=1, help="GPUs of a replica on one node")
    parser.add_argument("--pipeline", type=int, default=1, help="nodes of a replica")
    parser.add_argument("--max-model-len", type=int, default=40960)
    parser.add_argument("--per-replica", type=int, default=256, help="requests in flight")
    parser.add_argument("--accelerator", default="", help="a type that Ray knows, such as H100")
    parser.add_argument("--cpus", type=float, default=0, help="CPUs of a replica; no GPU is used")
    parser.add_argument("--engine", type=json.loads, default={}, help="further vLLM options, JSON")
    parser.add_argument("--served-name", default="teacher")
    parser.add_argument("--address", default="auto", help="of a running Ray cluster")
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args(argv)

    import ray
    from ray import serve
    from ray.serve.llm import LLMConfig, build_openai_app

    ray.init(address=args.address)
    serve.start(proxy_location="EveryNode", http_options={"host": "0.0.0.0", "port": args.port})
    app = build_openai_app(
        {
            "llm_configs": [LLMConfig(**llm_config(args))],
            "ingress_deployment_config": ingress_config(args),
        }
    )
    serve.run(app)
    print(json.dumps(urls(args.port)), flush=True)
    try:
        while True:
            time.sleep(60)
    except KeyboardInterrupt:
        serve.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
