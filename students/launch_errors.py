"""What went wrong in a training of several processes: the first cause, out of what each one left.

A process leaves its error (`leave_error`), its traceback and its log; a node's torchrun leaves how
its processes ended. `why` makes one error of it.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import distill.errors
from distill.errors import DistillError

ERROR = ".error.json"
FAILURES = ".failures"
LOGS = "logs"
AGAIN = "the same command goes on from the last checkpoint"
SHARED = "let `--runs` (or DISTILL_RUNS) be a folder that all nodes share"


def why(out: Path, code: int) -> BaseException:
    """The error of a training whose launcher ended with `code`: the first process's, as itself."""
    if code in (130, -signal.SIGINT):
        return KeyboardInterrupt()
    failed = [
        {**process, "host": told.get("host")}
        for told in _told_by(out)
        for process in told.get("processes", [])
    ]
    # Whom the kernel killed ended the others, who then complain of a lost connection; NCCL aborts
    # a process whose peer has gone, and that one's error says more.
    killed = [p for p in failed if p["signal"] not in ("", "SIGTERM", "SIGINT")]
    error = read_error(out)
    if killed and (error is None or any(p["signal"] != "SIGABRT" for p in killed)):
        first = min(killed, key=lambda p: p["at"])
        hint = "most likely for want of memory; " if first["signal"] == "SIGKILL" else ""
        return DistillError(
            f"training process {first['rank']} on {first['host']} was ended by {first['signal']}",
            hint + AGAIN,
        )
    if error is not None:
        return error
    for told in _told_by(out):
        if "torchrun" in told:
            return DistillError(f"torchrun on {told['host']}: {told['torchrun']}", AGAIN)
    if code < 0:
        return DistillError(f"the training's launcher was ended by signal {-code}", AGAIN)
    return _last_words(out, failed, code)


def _told_by(out: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in out.glob(f"{FAILURES}-*")]


def _last_words(out: Path, failed: Sequence[Mapping[str, Any]], code: int) -> DistillError:
    if not failed:
        return DistillError(f"the training's launcher ended with code {code}", AGAIN)
    first = min(failed, key=lambda p: p["at"])
    who = f"training process {first['rank']} on {first['host']}"
    for kind in ("traceback", "log"):
        file = out / LOGS / f"rank-{first['rank']}.{kind}"
        if file.is_file():
            said = file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            words = "\n  ".join(said[-1:] if kind == "traceback" else said[-10:])
            return DistillError(f"{who}: {words}", f"all of it is in {file}; {AGAIN}")
    return DistillError(
        f"{who} ended with code {first['code']}", f"its own words are above; {AGAIN}"
    )


def plain(error: DistillError) -> dict[str, Any]:
    """An error as JSON; `read_error` makes it one again."""
    return {"type": type(error).__name__, "message": error.message, "hint": error.hint}


def leave_error(out: Path, error: DistillError, *, force: bool = False) -> None:
    """Write a process's error where its parent looks for it; the first one stays."""
    several = force or int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not several or not out.is_dir() or (out / ERROR).exists():
        return
    temporary = out / f"{ERROR}.{os.getpid()}"
    temporary.write_text(json.dumps(plain(error)), encoding="utf-8")
    os.replace(temporary, out / ERROR)


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
