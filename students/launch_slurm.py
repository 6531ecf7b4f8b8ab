"""Several nodes of a Slurm allocation: `srun` starts one torchrun on each.

They meet at a store that this process opens on the first host and holds until the end, on a port
that the system picks and nobody can take in between.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import UsageError
from distill.students import launch, launch_errors


def train(request: Path, train: Mapping[str, Any]) -> int:
    """Run the training of a request file on `train.nodes` nodes; the exit code of `srun`."""
    nodes = int(train.get("nodes") or 1)
    here = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    if nodes > here:
        raise UsageError(
            f"train.nodes = {nodes}, and the Slurm allocation has {here}",
            f"ask for them: sbatch --nodes={nodes}, or set train.nodes={here}",
        )
    from torch.distributed import TCPStore

    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
    return launch.run(
        [*srun(nodes), *command(request, train, host, store.port)], launch.environment(train)
    )


def srun(nodes: int) -> list[str]:
    """One task on each of `nodes` nodes; a node that fails ends the others."""
    # Alone it would outlive a parent that is killed.
    words = [sys.executable, "-m", launch.AGENT, "--exec"]
    words += ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    words += ["--kill-on-bad-exit=1", "--export=ALL"]
    # srun does not take it over from sbatch since Slurm 22.05.
    if cores := os.environ.get("SLURM_CPUS_PER_TASK"):
        words.append(f"--cpus-per-task={cores}")
    if "SLURM_STEP_ID" in os.environ:
        words.append("--overlap")  # we are a step ourselves and hold what the new one needs
    return words


def command(request: Path, train: Mapping[str, Any], host: str, port: int) -> list[str]:
    """What runs on every node."""
    meet = ["--nnodes", str(train["nodes"]), "--rdzv-backend", "c10d", "--rdzv-conf", "is_host=0"]
    meet += ["--rdzv-id", os.environ.get("SLURM_JOB_ID", "distill")]
    meet += ["--rdzv-endpoint", f"[{host}]:{port}" if ":" in host else f"{host}:{port}"]
    return launch.agent(request.parent / launch_errors.FAILURES, train, meet, [str(request)])
