"""Whose traces a pool's folder holds, and which process may write to it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import StoreError
from distill.records import dumps
from distill.schema import Sampling

log = logging.getLogger(__name__)

NOT_GENERATION = frozenset(
    {"n", "max_tokens", "limits"}
    | {"want", "max", "give_up", "budget_tokens", "budget_cost", "floor"}
)


class PoolLocked(StoreError):
    """Another process is writing to the pool."""


def generation_key(
    teacher_identity: str, sampling: Sampling, seed: int
) -> tuple[str, dict[str, Any]]:
    """The 16 hex digits that own a pool, and the plain content they are the hash of.

    `n`, `max_tokens` and run-time fields are left out because they change no text that is
    already there. Unset fields are left out so that a field added later leaves the pools of
    today in use.
    """
    asked = {
        name: value
        for name, value in sampling.identity().items()
        if name not in NOT_GENERATION and value is not None and value != []
    }
    content = {"teacher": teacher_identity, "seed": seed, "sampling": asked}
    text = json.dumps(content, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16], content


def lock(folder: Path) -> int:
    """Make a pool's folder and take its lock, which `unlock` gives back.

    Raises PoolLocked if another process, or another pool of this one, is writing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(file, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(file)
        raise PoolLocked(
            f"process {pid} is writing to the trace pool {folder}",
            "wait for it or stop it, then run the same command again",
        ) from None
    except OSError as error:
        # Segment files have one writer each, so the worst is that a trace is bought twice.
        log.warning("%s cannot be locked (%s): start one run at a time", folder, error)
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        for left in folder.glob(".*.idx.*.tmp"):
            left.unlink(missing_ok=True)
    except BaseException:
        unlock(file)
        raise
    return file


def unlock(file: int) -> None:
    """Give back what `lock` returned."""
    # A forked child may hold the same descriptor; unlocking frees it for all.
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


def check_content(folder: Path, content: Mapping[str, Any], *, write: bool) -> None:
    """Compare a folder's `pool.json` with the content of a generation key; a writer makes it.

    Raises StoreError if the folder holds traces of other sampling, or the file is damaged.
    """
    path = folder / "pool.json"
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise StoreError(
                f"{path} is damaged: {error}", "delete that one file; the traces are elsewhere"
            ) from None
        if found != json.loads(json.dumps(content)):
            raise StoreError(
                f"{folder} holds traces of other sampling: {dumps(found)}",
                f"expected {dumps(content)}; move the folder away",
            )
    elif write:
        temporary = path.with_name(f".pool.json.{os.getpid()}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
