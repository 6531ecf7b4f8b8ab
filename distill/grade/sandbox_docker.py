"""A container as a sandbox: docker or podman, without network, rights and a writable root."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import uuid

from distill.errors import UsageError
from distill.grade.sandbox import Limits, Output, communicate, script
from distill.grade.sandbox_bwrap import ENVIRONMENT, NOBODY

IMAGE = "python:3.11-slim"


class Container:
    """Each job in a new container, removed afterwards; `image` must hold a `python3`."""

    def __init__(self, engine: str, image: str = "") -> None:
        self.name, self.image = engine, image or IMAGE
        self.program = shutil.which(engine)
        if self.program is None:
            raise UsageError(
                f"code is graded in a sandbox, and there is no '{engine}' here",
                f"install {engine}, or use bubblewrap: {{code: {{sandbox: bwrap}}}}",
            )

    def run(self, job: bytes, limits: Limits) -> Output:
        name = f"distill-{uuid.uuid4().hex[:16]}"
        try:
            return communicate(self.command(name, limits), job, limits)
        finally:
            # Killing the client leaves the container; --rm has removed one that ended.
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(
                    [str(self.program), "rm", "--force", name],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    timeout=60,
                )

    def command(self, name: str, limits: Limits) -> list[str]:
        """The command line of one job; the supervisor is the container's first process."""
        memory = str(limits.memory + limits.scratch + (64 << 20))
        options = ["run", "--rm", "--interactive", "--name", name, "--network", "none"]
        options += ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        options += ["--user", f"{NOBODY}:{NOBODY}", "--pids-limit", str(limits.processes + 4)]
        options += ["--memory", memory, "--memory-swap", memory, "--ipc", "private"]
        options += ["--tmpfs", f"/tmp:rw,nosuid,nodev,size={limits.scratch},mode=1777"]
        options += ["--workdir", "/tmp", "--pull", "never", "--log-driver", "none"]
        for key, value in ENVIRONMENT.items():
            if key != "PATH":
                options += ["--env", f"{key}={value}"]
        start = ["--entrypoint", "python3", self.image, "-s", "-B", "-c", script()]
        return [str(self.program), *options, *start]
