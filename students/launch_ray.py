"""The processes of a training as Ray Train workers, on the nodes of a Ray cluster.

The step's folder must be visible to all nodes: the data that was prepared is read from it, and
checkpoints are written to it.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import DistillError, MissingExtra, UsageError
from distill.students import launch, launch_errors

WAIT_S = 60
"""Seconds to wait for a cluster that grows; DISTILL_WAIT_S changes it."""


def train(told: Mapping[str, Any], out: Path) -> None:
    """Run the training that `told` describes in `processes` x `nodes` Ray workers.

    Raises the DistillError of a worker; UsageError where the cluster is too small.
    """
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        raise MissingExtra(error.name or "ray", "ray", "train.launcher: ray") from None
    settings = told["config"]["train"]
    count = launch.processes(settings)
    ours = not ray.is_initialized()
    if ours:
        names = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE")
        passed = {name: os.environ[name] for name in names if name in os.environ}
        ray.init(logging_level=logging.ERROR, runtime_env={"env_vars": passed})
    mark = out / f".seen-{uuid.uuid4().hex}"
    mark.touch()
    try:
        gpu = ray.cluster_resources().get("GPU", 0) >= 1
        _wait_for(ray, "GPU" if gpu else "CPU", count)
        trainer = TorchTrainer(
            worker,
            train_loop_config={**told, "mark": str(mark), "gpu": gpu},
            torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=count,
                use_gpu=gpu,
                placement_strategy="SPREAD" if int(settings.get("nodes") or 1) > 1 else "PACK",
            ),
            run_config=RunConfig(
                name=f"distill-{mark.name[6:18]}",
                storage_path=str(out / "scratch"),
                failure_config=FailureConfig(max_failures=0),
            ),
        )
        trainer.fit()
        shutil.rmtree(out / "scratch", ignore_errors=True)
    except Exception as error:
        # Ray's errors are of several families, by version; all carry the worker's words.
        if not type(error).__module__.startswith("ray."):
            raise
        raise launch_errors.read_error(out) or _told(error) from None
    finally:
        mark.unlink(missing_ok=True)
        if ours:
            ray.shutdown()


def _wait_for(ray: Any, kind: str, count: int) -> None:
    """Raise UsageError unless the cluster has, or soon gets, `count` of a resource."""
    patience = float(os.environ.get("DISTILL_WAIT_S", WAIT_S))
    end = time.monotonic() + patience
    while (found := ray.cluster_resources().get(kind, 0)) < count:
        if time.monotonic() > end:
            raise UsageError(
                f"the training wants {count} {kind}s (train.processes x train.nodes), and the Ray "
                f"cluster of {len(ray.nodes())} nodes has {found:g}",
                "lower them, or add nodes; DISTILL_WAIT_S is how long to wait for a cluster that "
                "grows",
            )
        time.sleep(1)


def _told(error: Exception) -> DistillError:
    """The worker's own error out of Ray's, else Ray's last line."""
    for rank, failure in sorted(getattr(error, "worker_failures", {}).items()):
        cause = getattr(failure, "cause", None) or failure
        if isinstance(cause, DistillError):
            return cause
        said = str(failure).strip().splitlines() or [type(failure).__name__]
        return DistillError(
            f"Ray worker {rank}: {said[-1]}", f"Ray's log has more; {launch_errors.AGAIN}"
        )
    said = str(error).strip().splitlines() or [type(error).__name__]
    return DistillError(f"Ray Train: {said[-1]}", launch_errors.AGAIN)


def worker(told: Mapping[str, Any]) -> None:
    """What runs in each Ray worker; Ray has set the processes' environment and group up."""
    from distill.students.fit import fit
    from distill.students.loading import prepare
    from distill.students.sft import Job

    out = Path(told["out"])
    if not told["gpu"]:
        os.environ["ACCELERATE_USE_CPU"] = "1"
    if not _appears(Path(told["mark"])):
        import socket

        # Not left in a file: nobody else would find it.
        raise UsageError(
            f"a Ray worker on {socket.gethostname()} does not see {out}", launch_errors.SHARED
        )
    job = Job(Path(told["dataset"]), out, told["config"])
    try:
        fit(job, prepare(job.config["student"]))
    except DistillError as error:
        launch_errors.leave_error(out, error)
        raise


def _appears(path: Path) -> bool:
    end = time.monotonic() + 15
    while not path.exists():
        if not path.parent.is_dir() or time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
