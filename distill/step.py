"""Steps: a name, a config and inputs hash to a folder; what is done is never done again.

    step = Step("grade", config, inputs={"traces": sample_step}, version="1")
    folder = workspace.run(step, lambda out: grade_traces(..., out=out))

The done-marker is written last and atomically, carries the identity and a hash of every file the
step wrote, and is checked before a step is reused. An interrupted step leaves no marker; its
folder stays, so that the step itself can go on from what it wrote.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from distill.errors import StoreError

log = logging.getLogger(__name__)

DONE = "done.json"
SCRATCH = ("checkpoints", "scratch")
"""Folders of a step that help it to resume and are no part of its result."""

CARDS = "README.md"
"""Model cards are completed when the results are known; they are read by people alone."""


@dataclass(frozen=True)
class Step:
    """One arrow with an identity. `config` holds only what can change the result."""

    name: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Step] = field(default_factory=dict)
    version: str = "1"

    @cached_property
    def identity(self) -> str:
        """SHA-256 over name, version, config and the identities of the inputs, in hex."""
        plain = {
            "name": self.name,
            "version": self.version,
            "config": self.config,
            "inputs": {key: step.identity for key, step in self.inputs.items()},
        }
        text = json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def folder_name(self) -> str:
        return f"{self.name}-{self.identity[:12]}"


@dataclass
class Done:
    """What `Workspace.run` reports of a step; `label` is what a run calls it."""

    step: Step
    folder: Path
    seconds: float
    reused: bool
    label: str = ""


class Workspace:
    """The folder `runs/`: steps, trace pools and runs."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def pool(self) -> Path:
        return self.root / "pool"

    def folder(self, step: Step) -> Path:
        return self.root / "steps" / step.folder_name

    def is_done(self, step: Step) -> bool:
        """True if the step's marker is there, is its own, and all it names is unchanged."""
        return self._marker(step) is not None

    def run(self, step: Step, work: Callable[[Path], None]) -> Done:
        """Do the step's work in its folder unless it is done. Raises StoreError if it is locked."""
        folder = self.folder(step)
        marker = self._marker(step)
        if marker is not None:
            return Done(step, folder, float(marker["seconds"]), reused=True)
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / ".lock", f"step {step.folder_name}"):
            marker = self._marker(step)
            if marker is not None:
                return Done(step, folder, float(marker["seconds"]), reused=True)
            (folder / DONE).unlink(missing_ok=True)
            started = time.monotonic()
            work(folder)
            seconds = time.monotonic() - started
            self._finish(step, folder, seconds)
        return Done(step, folder, seconds, reused=False)

    def _finish(self, step: Step, folder: Path, seconds: float) -> None:
        marker = {
            "name": step.name,
            "identity": step.identity,
            "version": step.version,
            "config": step.config,
            "inputs": {key: upstream.folder_name for key, upstream in step.inputs.items()},
            "seconds": round(seconds, 3),
            "files": {name: _describe(folder / name) for name in _result_files(folder)},
        }
        write_atomically(folder / DONE, json.dumps(marker, ensure_ascii=False, indent=1))

    def _marker(self, step: Step) -> dict[str, Any] | None:
        folder = self.folder(step)
        try:
            marker = json.loads((folder / DONE).read_text(encoding="utf-8"))
            files = dict(marker["files"])
            float(marker["seconds"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            log.warning("%s is damaged; the step is run again", folder / DONE)
            return None
        if marker.get("identity") != step.identity:
            log.warning("%s belongs to another step; the step is run again", folder / DONE)
            return None
        for name, described in files.items():
            fault = _fault(folder / name, described)
            if fault:
                log.warning("%s %s since it was written; the step is run again", name, fault)
                return None
        return dict(marker)


def write_atomically(path: Path, text: str) -> None:
    """Write to a temporary name in the same folder, fsync and rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def exclusive(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock file that dies with the process; refused with the holder's pid."""
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "another process"
            raise StoreError(
                f"{what} is being worked on by process {holder}",
                "wait for it, or stop it; then run the same command again",
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def _result_files(folder: Path) -> list[str]:
    names = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        scratch = relative.parts[0] in SCRATCH
        described = relative.name in (DONE, CARDS)
        if path.is_file() and not hidden and not scratch and not described:
            names.append(relative.as_posix())
    return names


def _describe(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"sha256": file_sha256(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _fault(path: Path, described: Mapping[str, Any]) -> str:
    try:
        status = path.stat()
    except FileNotFoundError:
        return "has gone"
    if status.st_size != described["size"]:
        return "has changed"
    # Hashing terabytes at every start would be absurd; an untouched file is believed.
    if status.st_mtime_ns == described["mtime_ns"]:
        return ""
    return "" if file_sha256(path) == described["sha256"] else "has changed"
