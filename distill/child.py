"""One function in a process of its own: JSON arguments, JSON result, dies with its parent.

Models are trained, sampled and evaluated in children, so that a GPU is free for the next step
and a library that reseeds or blocks cannot harm the pipeline. A child may have its own interpreter.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill import errors
from distill.errors import DistillError

PR_SET_PDEATHSIG = 1


def call(
    target: str,
    payload: Mapping[str, Any],
    *,
    python: str | None = None,
    log_file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    distributed: bool = False,
) -> Any:
    """Run `package.module:function(payload)` in a child and return its JSON result.

    `environment` is put on top of ours. Where torchrun started us, only a `distributed` child is
    told so: another one, which evaluates or samples, would wait for processes that do not come.

    The child's stderr is ours (its progress line is the user's). A DistillError in the child is
    raised here as itself; any other failure becomes a DistillError that names the traceback's
    file. Raises KeyboardInterrupt when the child was interrupted.
    """
    with tempfile.TemporaryDirectory(prefix="distill-") as scratch:
        request, reply = Path(scratch) / "request.json", Path(scratch) / "reply.json"
        request.write_text(
            json.dumps({"target": target, "payload": payload, "parent": os.getpid()}),
            encoding="utf-8",
        )
        command = [python or sys.executable, "-m", "distill.child", str(request), str(reply)]
        # Threads that spin while they wait for each other halt everything when the cores are
        # shared with other work: docs/results.md has figures.
        ours = dict(os.environ) if distributed else without_launcher(os.environ)
        settings = {"GOMP_SPINCOUNT": "10000", **ours, **(environment or {})}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, env=settings)
        code = _wait(process)
        try:
            answer = json.loads(reply.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            raise _died(target, code) from None
    if "error" in answer:
        raise _error_of(answer["error"], log_file)
    return answer["result"]


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without torchrun's word that its process is one of several."""
    if "LOCAL_RANK" not in environment:
        return dict(environment)
    begins = ("LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "PET_")
    taken = {"RANK", "WORLD_SIZE", "NODE_RANK", "ACCELERATE_TORCH_DEVICE"}
    return {
        key: value
        for key, value in environment.items()
        if key not in taken and not key.startswith(begins)
    }


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait()
    except BaseException:
        # Ctrl-C reached the child too; give it a moment to put down what it holds. It may have
        # processes of its own to end, on several nodes.
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=45)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


def _died(target: str, code: int) -> BaseException:
    if code in (-signal.SIGINT, 130):
        return KeyboardInterrupt()
    if code == -signal.SIGKILL:
        return DistillError(
            f"the process of {target} was killed",
            "most likely for want of memory; the same command goes on from where it was",
        )
    return DistillError(f"the process of {target} ended with exit code {code} and no result")


def _error_of(error: Mapping[str, Any], log_file: Path | None) -> BaseException:
    if error["type"] == "KeyboardInterrupt":
        return KeyboardInterrupt()
    kind = getattr(errors, error["type"], None)
    if isinstance(kind, type) and issubclass(kind, DistillError):
        rebuilt = DistillError(error["message"], error["hint"])
        # Rebuilt as its own class without its constructor, whose arguments differ by class.
        rebuilt.__class__ = kind
        return rebuilt
    where = ""
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        log_file.write_text(error["traceback"], encoding="utf-8")
        where = f"the traceback is in {log_file}"
    if os.environ.get("DISTILL_DEBUG"):
        sys.stderr.write(error["traceback"])
    return DistillError(f"{error['type']}: {error['message']}", where)


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when process `parent` ends (Linux; elsewhere nothing)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we could ask
        os.kill(os.getpid(), signal.SIGKILL)


def main(request: str, reply: str) -> int:
    """The child's side: read the request, call the target, write the reply atomically."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    call_ = json.loads(Path(request).read_text(encoding="utf-8"))
    die_with_parent(call_["parent"])
    module, _, name = call_["target"].partition(":")
    code = 0
    try:
        answer: dict[str, Any] = {
            "result": getattr(importlib.import_module(module), name)(call_["payload"])
        }
    except BaseException as error:  # the boundary: whatever happened is handed to the parent
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
        answer = {
            "error": {
                "type": type(error).__name__,
                "message": getattr(error, "message", None) or str(error),
                "hint": getattr(error, "hint", ""),
                "traceback": traceback.format_exc(),
            }
        }
    temporary = Path(reply + ".tmp")
    temporary.write_text(json.dumps(answer), encoding="utf-8")
    os.replace(temporary, reply)
    return code


if __name__ == "__main__":
    sys.stdout = sys.stderr
    sys.exit(main(sys.argv[1], sys.argv[2]))
