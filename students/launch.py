"""Several processes for one training: torchrun, and errors that find their way back."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import distill.errors
from distill.errors import DistillError

MODULE = "distill.students.sft"
ERROR = ".error.json"


def distributed(told: Mapping[str, Any], out: Path, processes: int) -> None:
    """Run `python -m distill.students.sft` in `processes` processes of this machine and wait.

    Without a GPU they use gloo, and share the cores. A DistillError of a process is raised here.
    """
    import torch

    request = out / ".request.json"
    request.write_text(json.dumps(told), encoding="utf-8")
    (out / ERROR).unlink(missing_ok=True)
    environment = dict(os.environ)
    if not torch.cuda.is_available():
        environment["ACCELERATE_USE_CPU"] = "1"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (cores or 1) // processes)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", "-m", MODULE, str(request)]
    with subprocess.Popen(command, env=environment, preexec_fn=_die_with_parent) as child:
        try:
            code = child.wait()
        except BaseException:
            child.terminate()
            child.wait()
            raise
    request.unlink(missing_ok=True)
    if code:
        raise read_error(out) or DistillError(
            f"one of {processes} training processes ended with code {code}",
            "its own words are above; start again to go on from the last checkpoint",
        )


def leave_error(out: Path, error: DistillError) -> None:
    """Write a process's error where its parent looks for it; the first one stays."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or (out / ERROR).exists():
        return
    told = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
    (out / ERROR).write_text(json.dumps(told), encoding="utf-8")


def read_error(out: Path) -> DistillError | None:
    """The error that a process left, as its own type."""
    try:
        told = json.loads((out / ERROR).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    kind = getattr(distill.errors, told["type"], DistillError)
    error: DistillError = kind.__new__(kind)
    DistillError.__init__(error, told["message"], told["hint"])
    return error


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
