"""The file `metrics.jsonl` of a sampling job, and its figures in words for a terminal or a log."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.progress import duration
from distill.records import dumps

log = logging.getLogger(__name__)

FILE = "metrics.jsonl"
BARS = "▁▂▃▄▅▆▇█"


class MetricsFile:
    """A JSONL file, appended to in whole lines; a full disk ends the writing and nothing else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            size = os.fstat(self._fd).st_size
            if size and os.pread(self._fd, 1, size - 1) != b"\n":
                os.write(self._fd, b"\n")
        except OSError as error:
            self._give_up(error)

    def write(self, row: Mapping[str, Any]) -> None:
        data = (dumps(row) + "\n").encode()
        with self._lock:
            if self._fd is None:
                return
            try:
                written = os.write(self._fd, data)
                if written != len(data):
                    raise OSError(f"only {written} of {len(data)} bytes were written")
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def _give_up(self, error: OSError) -> None:
        log.warning("no more metrics are written to %s: %s", self.path, error)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, oldest first; a torn one (a power cut) is passed over."""
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def view(figures: Mapping[str, Any], seconds: float) -> list[str]:
    """The figures of a `Meter` after so many seconds: time, speed, pass rates and money, faults."""
    f = figures
    first = [duration(seconds)]
    if not (f["tokens"] or f["tokens_under_way"]):
        first.append("no token yet")
    if f["eta_s"]:
        first.append(f"about {duration(f['eta_s'])} left")
    tokens = f["tokens"] + f["tokens_under_way"]
    speed = [f"{f['tokens_per_s']:,.0f} tokens/s", f"{tokens:,} tokens"] if tokens else []
    if f["graded"]:
        speed.insert(0, f"accepted {f['accepted']:,} of {f['graded']:,}")
    if f["tokens_per_accepted"]:
        speed.append(f"{f['tokens_per_accepted']:,} tokens an accepted trace")
    middle = []
    if any(f["pass_rates"]):
        middle.append(f"pass rate 0 {bars(f['pass_rates'])} 1")
        short = f["problems_done"] - f["stopped"].get("enough", 0)
        middle += [f"stopped short {short:,}"] if short else []
    if f["priced"]:
        middle.append(f"cost {money(f['cost'])}")
        middle += [f"about {money(f['cost_to_come'])} to come"] if f["cost_to_come"] else []
    last = [f"{name} {f[name]:,}" for name in ("failed", "retries", "surplus") if f[name]]
    if f["servers"]:
        up = sum(bool(row.get("up", True)) for row in f["servers"])
        last.append(f"servers {up}/{len(f['servers'])} up")
    return ["  ".join(parts) for parts in (first, speed, middle, last) if parts]


def bars(counts: Sequence[int]) -> str:
    """A histogram in one line; a bin that is not empty is never drawn as empty."""
    most = max(counts, default=0)
    return "".join(BARS[max(1, -(-c * (len(BARS) - 1) // most))] if c else BARS[0] for c in counts)


def money(amount: float) -> str:
    """An amount with two decimals, small ones with three digits."""
    return f"{amount:,.2f}" if amount >= 1 or not amount else f"{amount:.3g}"
