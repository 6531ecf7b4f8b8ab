"""Several trainings one after another in the processes that torchrun started: they import once.

python -m torch.distributed.run --nproc_per_node=2 -m tests.many_trainings REQUEST.json...
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from distill.students.sft import Job


def write(folder: Path, dataset: Path, config: dict[str, Any]) -> Path:
    """Prepare a training in `folder`; returns its request."""
    folder.mkdir(parents=True, exist_ok=True)
    Job(dataset, folder, config).prepare()
    request = folder.with_suffix(".json")
    request.write_text(json.dumps({"data": str(dataset), "out": str(folder), "config": config}))
    return request


def run(requests: list[Path], processes: int = 2) -> None:
    """Train them all; their `fit.json` and students are in their folders afterwards."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--local-addr", "localhost", f"--nproc_per_node={processes}"]
    command += ["-m", "tests.many_trainings", *map(str, requests)]
    threads = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "GLOO_SOCKET_IFNAME": "lo"}
    # Root: pytest's own folder may be another one.
    root = Path(__file__).parent.parent
    subprocess.run(command, env={**os.environ, **threads}, cwd=root, check=True, timeout=300)


def main() -> None:
    from distill.students.fit import fit
    from distill.students.loading import prepare

    for name in sys.argv[1:]:
        told = json.loads(Path(name).read_text())
        job = Job(Path(told["data"]), Path(told["out"]), told["config"])
        fit(job, prepare(job.config["student"]))


if __name__ == "__main__":
    main()
