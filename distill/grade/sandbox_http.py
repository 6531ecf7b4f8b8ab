"""A service as a sandbox: whatever speaks SandboxFusion's `POST /run_code`.

(bytedance/SandboxFusion: sandbox/server/sandbox_api.py.) The service must isolate what it runs;
our supervisor there keeps program and tests apart, and times them. SandboxFusion returns no more
than the first MiB of what a program prints.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from typing import Any

from distill.grade.sandbox import MOST_REPORT, START_S, Limits, Output, SandboxFailed, script

AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses after which the same request may succeed."""

PAUSES = (1.0, 4.0)
"""Seconds before a second and a third attempt, once the service has ever answered."""


class Service:
    """Each job is one request to `ADDRESS/run_code`."""

    def __init__(self, address: str) -> None:
        base = address.rstrip("/")
        self.name = base
        self.url = base if base.endswith("/run_code") else f"{base}/run_code"
        self.answered = False

    def run(self, job: bytes, limits: Limits) -> Output:
        body = {
            "code": script(),
            "language": "python",
            "stdin": job.decode("ascii"),
            "run_timeout": limits.deadline_s,
            # What all processes of a program may have together; less is held inside.
            "memory_limit_MB": (limits.memory >> 20) + 256,
        }
        request = urllib.request.Request(
            self.url,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        data = self._fetch(request, limits.deadline_s + START_S)
        self.answered = True
        if len(data) > MOST_REPORT:
            raise SandboxFailed(f"{self.url} reported more than {MOST_REPORT >> 20} MiB")
        return self._output(data)

    def _fetch(self, request: urllib.request.Request, timeout_s: float) -> bytes:
        pauses = iter(PAUSES if self.answered else ())
        while True:
            try:
                with urllib.request.urlopen(request, timeout=timeout_s) as reply:
                    return bytes(reply.read(MOST_REPORT + 1))
            except (OSError, http.client.HTTPException) as error:
                lasting = isinstance(error, urllib.error.HTTPError) and error.code not in AGAIN
                pause = None if lasting or isinstance(error, TimeoutError) else next(pauses, None)
                if pause is None:
                    raise SandboxFailed(f"{self.url}: {_told(error)}") from None
            time.sleep(pause)

    def _output(self, data: bytes) -> Output:
        try:
            answer: Any = json.loads(data)
            result = answer["run_result"]
            report = str(result["stdout"] or "").encode()
        except (ValueError, KeyError, TypeError, RecursionError):
            raise SandboxFailed(
                f"{self.url} answered with something else: {data[:200]!r}"
            ) from None
        if answer.get("status") == "SandboxError":
            raise SandboxFailed(f"{self.url} failed: {str(answer.get('message'))[:300]}")
        complaint = " ".join(str(result.get("stderr") or "").split())[-300:]
        if result.get("status") == "TimeLimitExceeded":
            complaint = f"took longer than the service allows; {complaint}"
        return Output(report, complaint, result.get("return_code"))


def _told(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}: {error.read(300).decode('utf-8', 'replace')}"
    return f"{type(error).__name__}: {error}"
