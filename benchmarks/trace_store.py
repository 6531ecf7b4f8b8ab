"""Opening a pool of a million traces, against reading its JSONL again with `json`.

    python -m benchmarks.trace_store [--traces 1000000] [--size 300] [--rounds 3]

Builds the pool in a temporary folder by `TracePool.append` (batches of 64), then by turns, each in
a process of its own: opens it by its indexes, and reads every line of its files with `json.loads`,
keeping nothing. Opening with the indexes away is timed once. Times leave out starting Python and
importing numpy; memory is what the process grew by (resident), and at most held, while opening.
`ratio` is the time to open by indexes over the time to read with `json`, medians.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from distill.records import Trace
from distill.store import TracePool

GOAL = 0.2
BATCH = 64
WRITERS = 4

OPEN = """
import sys, time
from pathlib import Path
import numpy
from distill.store import TracePool

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

before = memory("VmRSS")
begin = time.perf_counter()
pool = TracePool.open(Path(sys.argv[1]), write=False)
seconds = time.perf_counter() - begin
print(len(pool), seconds, memory("VmRSS") - before, memory("VmHWM") - before)
"""

READ = """
import json, sys, time
from pathlib import Path

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

before = memory("VmRSS")
begin = time.perf_counter()
count = 0
for path in sorted(Path(sys.argv[1]).glob("*.jsonl")):
    with path.open("rb") as file:
        for line in file:
            json.loads(line)
            count += 1
seconds = time.perf_counter() - begin
print(count, seconds, memory("VmRSS") - before, memory("VmHWM") - before)
"""


def build(folder: Path, count: int, size: int) -> float:
    """Write `count` traces of about `size` bytes, by four writers in turn; traces per second."""
    rng = random.Random(0)
    text = "".join(rng.choices("abcdefgh 0123456789+=\n", k=100_000))
    each = [count * i // WRITERS for i in range(WRITERS + 1)]
    begin = time.perf_counter()
    for first, last in itertools.pairwise(each):
        # A writer has one file; the number in its name makes the files of one process differ.
        with TracePool.open(folder, write=True) as pool:
            for start in range(first, last, BATCH):
                pool.append(_trace(i, text, size) for i in range(start, min(start + BATCH, last)))
    return count / (time.perf_counter() - begin)


def _trace(number: int, text: str, size: int) -> Trace:
    begin = number * 37 % (len(text) - size)
    # What a line holds besides the text is about 250 bytes.
    body = text[begin : begin + max(1, size - 250)]
    return Trace(problem_id=f"{number // 4:016x}", index=number % 4, text=body, max_tokens=1024)


def measure(code: str, folder: Path) -> dict[str, float]:
    """What a process says of itself: traces, seconds, bytes it kept and at most held."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    figures = map(float, done.stdout.split())
    return dict(zip(("traces", "seconds", "kept", "most"), figures, strict=True))


def compare(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """The medians of each way of opening, taken by turns."""
    seen: dict[str, list[dict[str, float]]] = {"index": [], "json": [], "no index": []}
    for _ in range(rounds):
        seen["index"].append(measure(OPEN, folder))
        seen["json"].append(measure(READ, folder))
    for path in folder.glob("*.idx"):
        path.unlink()
    seen["no index"].append(measure(OPEN, folder))
    return {
        name: {key: statistics.median(r[key] for r in results) for key in results[0]}
        for name, results in seen.items()
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Print the table and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=300, help="bytes of a line, about")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON too")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="trace_store-") as name:
        folder = Path(name)
        speed = build(folder, options.traces, options.size)
        data = sum(p.stat().st_size for p in folder.glob("*.jsonl"))
        index = sum(p.stat().st_size for p in folder.glob("*.idx"))
        print(
            f"{options.traces:,} traces, {data / 1e6:,.0f} MB of JSONL, {index / 1e6:,.1f} MB of"
            f" indexes; appended at {speed:,.0f} traces/s"
        )
        medians = compare(folder, options.rounds)
    print(f"{'opened by':<12}{'traces':>12}{'seconds':>10}{'bytes/trace':>13}{'at most':>10}")
    for way, row in medians.items():
        kept, most = row["kept"] / row["traces"], row["most"] / row["traces"]
        print(f"{way:<12}{row['traces']:>12,.0f}{row['seconds']:>10.3f}{kept:>13.1f}{most:>10.1f}")
    ratio = medians["index"]["seconds"] / medians["json"]["seconds"]
    if options.json:
        print(json.dumps({"appended_per_s": speed, "medians": medians, "ratio": ratio}))
    print(f"trace_store ratio={ratio:.4f} goal={GOAL}")
    return {"ratio": ratio, "medians": medians, "appended_per_s": speed}


if __name__ == "__main__":
    main()
