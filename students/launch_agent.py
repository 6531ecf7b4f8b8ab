"""A node's torchrun in a process of its own: it dies with its parent and says briefly what failed.

    python -m distill.students.launch_agent FAILURES --nnodes 2 ... -m MODULE ARGUMENTS

Everything after the first argument is torchrun's own command line. A failure goes to a file whose
name FAILURES begins; several nodes may share its folder.

    python -m distill.students.launch_agent --exec PROGRAM ...

becomes another program that ends with its parent.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def main(failures: Path, command: list[str]) -> int:
    """Run torchrun; a failure is written to `failures` instead of being printed with tracebacks."""
    die_with_parent()
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        run.run(run.parse_args(command))
    except ChildFailedError as error:
        told = [_failure(rank, found) for rank, found in error.failures.items()]
        _write(failures, {"host": socket.gethostname(), "processes": told})
        return 1
    except SignalException as error:
        return 128 + int(error.sigval)
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # the boundary: torchrun's own failures are told by the parent
        _write(failures, {"host": socket.gethostname(), "torchrun": f"{error.__cause__ or error}"})
        return 1
    return 0


def die_with_parent(grace: int = signal.SIGTERM) -> None:
    """Have the kernel send `grace` to this process when its parent ends (Linux)."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, grace)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it ended before we could ask
        os.kill(os.getpid(), grace)


def _failure(rank: int, found: Any) -> dict[str, Any]:
    died = found.signal_name() if found.exitcode < 0 else ""
    return {
        "rank": rank,
        "pid": found.pid,
        "code": found.exitcode,
        "signal": "" if died == "<N/A>" else died,
        "at": int(found.timestamp),
    }


def _write(failures: Path, content: Mapping[str, Any]) -> None:
    path = failures.with_name(f"{failures.name}-{socket.gethostname()}-{os.getpid()}")
    path.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "--exec":
        die_with_parent()
        os.execvp(sys.argv[2], sys.argv[2:])
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
