"""Several processes for one training: who starts them, with what around them, and what went wrong.

    distributed   called by the trainer: torchrun on this node, its part of several, Slurm or Ray
    follow        what `distill train` does on every node but the first
    check         what can be refused before anything is paid for

Each process runs `launch_worker.py`; a node's torchrun lives in `launch_agent.py`; what goes wrong
is told by `launch_errors.py`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import DistillError, MissingExtra, UsageError
from distill.students.launch_errors import ERROR, FAILURES, LOGS, why

log = logging.getLogger(__name__)

WORKER = "distill.students.launch_worker"
AGENT = "distill.students.launch_agent"
PORT = 29500
END_S = 15
"""Seconds that processes get to end by themselves."""
WAIT_S = 3600
"""Seconds that a node waits for the first one to start training; DISTILL_WAIT_S changes it."""


@dataclass(frozen=True)
class Node:
    """This machine among several: its number, and where the first one listens."""

    rank: int
    address: str
    port: int


# -- who starts what ---------------------------------------------------------------------------


def inside() -> bool:
    """Whether torchrun (or another launcher) started this process as one of several."""
    # Some clusters set RANK and WORLD_SIZE for machines; LOCAL_RANK is set for processes alone.
    environment = os.environ
    return "LOCAL_RANK" in environment and int(environment.get("WORLD_SIZE", "1")) > 1


def processes(train: Mapping[str, Any]) -> int:
    """All processes of a training, on all nodes."""
    return int(train.get("processes") or 1) * int(train.get("nodes") or 1)


def several(train: Mapping[str, Any]) -> bool:
    """Whether the training runs in other processes than its parent; Ray's one may be elsewhere."""
    return processes(train) > 1 or train.get("launcher") == "ray"


def launcher(train: Mapping[str, Any]) -> str:
    """`torchrun`, `slurm` or `ray`: what `train.launcher` comes to here. Raises UsageError."""
    asked, nodes = train.get("launcher") or "auto", int(train.get("nodes") or 1)
    if asked == "slurm" and "SLURM_JOB_ID" not in os.environ:
        raise UsageError(
            "train.launcher: slurm, and this is no Slurm allocation (SLURM_JOB_ID is not set)",
            "submit it: sbatch --nodes=2 scripts/cluster/train.sbatch RECIPE",
        )
    if asked == "slurm" and not shutil.which("srun"):
        raise UsageError("train.launcher: slurm, and there is no `srun` in PATH")
    if asked == "auto" and nodes > 1 and this_node() is None:
        here = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
        return "slurm" if here > 1 and shutil.which("srun") else "torchrun"
    return "torchrun" if asked == "auto" else str(asked)


def this_node() -> Node | None:
    """This machine's place as the environment says it, in torchrun's names; None without one.

    `NODE_RANK` and `MASTER_ADDR` (`MASTER_PORT`), each also as `PET_...`; on clusters that number
    machines by `RANK`, that; in a Slurm step of one task a node, Slurm's own. Raises UsageError.
    """
    rank = _told("NODE_RANK")
    if rank is None and "LOCAL_RANK" not in os.environ and _told("MASTER_ADDR"):
        rank = os.environ.get("RANK")
    address, port = _told("MASTER_ADDR"), _told("MASTER_PORT")
    step = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if rank is None and step > 1 and os.environ.get("SLURM_STEP_NUM_NODES") == str(step):
        rank = os.environ["SLURM_NODEID"]
        address = address or _first_host(os.environ["SLURM_STEP_NODELIST"])
        port = port or str(20000 + int(os.environ["SLURM_JOB_ID"]) % 20000)
    if rank is None:
        return None
    endpoint = _told("RDZV_ENDPOINT")
    if endpoint and not address:
        address, _, port = endpoint.rpartition(":") if ":" in endpoint else (endpoint, "", None)
    if not address:
        raise UsageError(
            f"NODE_RANK is {rank}, and nothing says where the first node is",
            "set MASTER_ADDR to its name or address",
        )
    try:
        return Node(int(rank), address.strip("[]"), int(port or PORT))
    except ValueError:
        raise UsageError(f"NODE_RANK = {rank!r}, MASTER_PORT = {port!r}: not numbers") from None


def _told(name: str) -> str | None:
    return os.environ.get(f"PET_{name}") or os.environ.get(name) or None


def _first_host(hosts: str) -> str:
    done = subprocess.run(
        ["scontrol", "show", "hostnames", hosts], capture_output=True, text=True, check=False
    )
    names = done.stdout.split()
    if not names:
        raise UsageError(f"scontrol does not name the hosts of {hosts}: {done.stderr.strip()}")
    return names[0]


def follows(train: Mapping[str, Any]) -> bool:
    """Whether `distill train` here only takes part in what the first node or process leads."""
    if inside():
        return os.environ.get("RANK") != "0"
    if int(train.get("nodes") or 1) < 2 or launcher(train) != "torchrun":
        return False
    node = this_node()
    return node is not None and node.rank > 0


def check(train: Mapping[str, Any], *, own: bool = True) -> None:
    """Refuse what cannot be started here: too many processes, no launcher, no other node.

    `own` says that this interpreter will train. Needs no torch. Raises UsageError, MissingExtra.
    """
    if inside():
        return
    kind, per_node = launcher(train), int(train.get("processes") or 1)
    nodes = int(train.get("nodes") or 1)
    if kind == "ray":
        if own and importlib.util.find_spec("ray") is None:
            raise MissingExtra("ray", "ray", "train.launcher: ray")
        return
    found = visible_gpus()
    if found and per_node > found:
        raise UsageError(
            f"train.processes = {per_node}, and this machine shows {found} GPU(s)"
            + (f" (CUDA_VISIBLE_DEVICES={_visible()})" if _visible() is not None else ""),
            f"set train.processes={found}, or train.nodes for more machines",
        )
    here = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    if kind == "slurm" and nodes > here:
        raise UsageError(f"train.nodes = {nodes}, and the Slurm allocation has {here}")
    named = _told("NNODES")
    if kind == "torchrun" and nodes > 1 and this_node() is None:
        raise UsageError(
            f"train.nodes = {nodes}, and nothing says which of them this is",
            "on node I of the nodes: NODE_RANK=I MASTER_ADDR=(first node) distill train ...; "
            "docs/launching.md has Slurm and Ray",
        )
    if kind == "torchrun" and nodes > 1 and named and named.isdigit() and int(named) != nodes:
        raise UsageError(f"train.nodes = {nodes}, and NNODES says {named}")


def _visible() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def visible_gpus() -> int:
    """NVIDIA or AMD GPUs that a process of ours would see; 0 where there are none. Torch-free."""
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        if (told := os.environ.get(name)) is not None:
            listed = [part.strip() for part in told.split(",") if part.strip()]
            # As CUDA reads it: what follows the first impossible number is not there.
            return next((i for i, part in enumerate(listed) if part.startswith("-")), len(listed))
    found = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    if not found and (program := shutil.which("nvidia-smi")):
        try:
            done = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20)
            found = sum(line.startswith("GPU ") for line in done.stdout.splitlines())
        except (OSError, subprocess.TimeoutExpired):
            found = 0
    nodes = Path("/sys/class/kfd/kfd/topology/nodes").glob("*/properties")
    return found or sum("simd_count 0\n" not in path.read_text() for path in nodes)


# -- starting ----------------------------------------------------------------------------------


def distributed(told: Mapping[str, Any], out: Path) -> None:
    """Run the training that `told` describes in all its processes and wait for them.

    Without a GPU they use gloo and share the cores. A DistillError of a process is raised here;
    nothing is left running, however it ends.
    """
    train = told["config"]["train"]
    check(train)
    kind = launcher(train)
    told = {**told, "fitted": True}
    # What an earlier start left would be taken for this one's.
    for path in [out / ERROR, *out.glob(f"{FAILURES}*"), *(out / LOGS).glob("rank-*")]:
        path.unlink(missing_ok=True)
    if kind == "ray":
        from distill.students import launch_ray

        launch_ray.train(told, out)
        return
    request = out / ".request.json"
    request.write_text(json.dumps(told), encoding="utf-8")
    try:
        if kind == "slurm":
            from distill.students import launch_slurm

            code = launch_slurm.train(request, train)
        else:
            node = this_node() if int(train.get("nodes") or 1) > 1 else None
            code = run(torchrun(train, node, out, [str(request)]), environment(train))
    finally:
        request.unlink(missing_ok=True)
    if code:
        raise why(out, code)
    with contextlib.suppress(OSError):
        (out / LOGS).rmdir()  # nobody but the first process had anything to say


def follow(payload: Mapping[str, Any]) -> None:
    """Take part on a node (or in a process) that does not lead; returns when the training is over.

    `payload` is `{"train": ...}` of the recipe. Raises DistillError.
    """
    train = payload["train"]
    if inside():
        from distill.students.launch_worker import take_part

        take_part(None)
        return
    node = this_node()
    assert node is not None
    last = False
    while not last:
        _wait_for(node)
        with tempfile.TemporaryDirectory(prefix="distill-node-") as folder:
            out, heard = Path(folder), Path(folder) / "request.json"
            code = run(torchrun(train, node, out, [str(heard)]), environment(train))
            if code:
                raise why(out, code)
            told = json.loads(heard.read_text(encoding="utf-8"))
        number, of = told.get("stage") or (0, 1)
        last = number + 1 >= of


def _wait_for(node: Node) -> None:
    patience = float(os.environ.get("DISTILL_WAIT_S", WAIT_S))
    end = time.monotonic() + patience
    told = False
    while True:
        try:
            socket.create_connection((node.address, node.port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise DistillError(
                    f"the first node did not start to train at {node.address}:{node.port} within "
                    f"{patience:.0f} s ({error})",
                    "start it, or set DISTILL_WAIT_S to wait longer; all nodes must reach the port",
                ) from None
        if not told:
            where = f"{node.address}:{node.port}"
            print(f"waiting for the first node to train at {where}", file=sys.stderr, flush=True)
            told = True
        time.sleep(1)


def torchrun(
    train: Mapping[str, Any], node: Node | None, out: Path, request: Sequence[str]
) -> list[str]:
    """The command that starts this node's processes; `node` is None where it is the only one."""
    rank = node.rank if node else 0
    if node is None:
        # The port is torchrun's: it opens one that is free and keeps it.
        meet = ["--standalone", "--local-addr", "localhost"]
    else:
        # A fixed place for each node, so that the first one's processes lead.
        meet = ["--nnodes", str(train["nodes"]), "--node-rank", str(rank)]
        meet += ["--rdzv-backend", "static", "--rdzv-id", "distill"]
        meet += ["--master-addr", node.address, "--master-port", str(node.port)]
    return agent(out / FAILURES, train, meet, request)


def agent(
    failures: Path, train: Mapping[str, Any], meet: Sequence[str], request: Sequence[str]
) -> list[str]:
    """The command of a node's torchrun that meets the others as `meet` says.

    `failures` begins the name of a file that it leaves when a process of its own fails.
    """
    count = ["--nproc-per-node", str(int(train.get("processes") or 1)), "--max-restarts", "0"]
    command = [sys.executable, "-m", AGENT, str(failures), *meet, *count]
    return [*command, "-m", WORKER, *request]


def environment(train: Mapping[str, Any]) -> dict[str, str]:
    """What the processes get: ours without another launcher's words, threads, loopback for one."""
    taken = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
    settings = {
        key: value
        for key, value in os.environ.items()
        if key not in taken and not key.startswith(("PET_", "TORCHELASTIC_"))
    }
    if not visible_gpus() and not _torch_sees_a_gpu():
        settings["ACCELERATE_USE_CPU"] = "1"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    per_node = int(train.get("processes") or 1)
    settings.setdefault("OMP_NUM_THREADS", str(max(1, (cores or 1) // per_node)))
    settings["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(END_S)
    if int(train.get("nodes") or 1) == 1 and Path("/sys/class/net/lo").exists():
        # A host name that resolves to nowhere must not matter on one machine.
        settings.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return settings


def _torch_sees_a_gpu() -> bool:
    # In a container without the driver's files only torch knows.
    import torch

    return bool(torch.cuda.is_available())


def run(command: Sequence[str], settings: Mapping[str, str]) -> int:
    """Run a command to its end; whatever ends us ends it, within twice `END_S`."""
    with subprocess.Popen(command, env=dict(settings), stdin=subprocess.DEVNULL) as child:
        try:
            return child.wait()
        except BaseException:
            _end(child)
            raise


def _end(child: subprocess.Popen[bytes]) -> None:
    # A second Ctrl-C must not leave processes behind.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child.terminate()
        try:
            child.wait(timeout=2 * END_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    finally:
        signal.signal(signal.SIGINT, before)
