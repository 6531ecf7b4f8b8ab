"""Speed of the filters per core, beside what other tools do, and the filter step on many traces.

    python -m benchmarks.filters [--data ../shared/data] [--rounds 5] [--synthetic 2000]

Texts are the published traces of ../shared/data/traces, read before the clock starts; MB are
10^6 bytes of UTF-8, seconds are CPU seconds of this one process, and both sides take turns. What
does not grow with the traces (indexing the evaluation's problems, loading a detector) is the
set-up, timed apart on both sides. The
peers are written anew in `filter_peers`: datatrove's repetition rules on each trace and open-r1's
n-gram overlap on its problem. Both sides apply every rule to every trace (as datatrove runs them,
it stops at the first broken rule: the line "stopping early"; most of these traces break the first,
because it counts blank lines as duplicates). `ratio` is the default chain's speed over theirs.

Then N synthetic traces of 20,000 characters go through the real step with all cores: time, memory
of all processes together, and what the main process keeps for each trace. `--synthetic 0` leaves
that out; 100,000 need 5 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import filter_peers
from distill.errors import DistillError
from distill.filter import KNOWN
from distill.filter.parts import Item, Part, build
from distill.filter.run import filter_traces
from distill.published import BadRow, read_trace
from distill.records import Grade, Problem, Trace, read_jsonl, to_row, write_jsonl
from distill.schema import DEFAULT_FILTERS, PartSpec
from distill.thinking import DEFAULT_TAGS

GOAL = 5.0
TASKS = ("aime24", "amc23", "gsm8k_test")
CHARS = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--synthetic", type=int, default=2000, metavar="N")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(run_step(asked.one)))
        return
    items = list(read_items(asked.data / "traces"))
    tasks = {name: read_task(asked.data / "problems" / f"{name}.jsonl") for name in TASKS}
    megabytes = sum(len(trace.text.encode()) for _, trace, _ in items) / 1e6
    print(f"{len(items)} traces, {megabytes:.1f} MB\n")
    print(f"{'filter':24}{'MB/s':>9}{'drops':>8}{'set-up s':>10}")
    for name in KNOWN:
        try:
            set_up, chain = timed(lambda n=name: ready([n], items, tasks))
            seconds, dropped = timed(lambda c=chain: ours(c, items))
        except DistillError as error:
            print(f"{name:24}{'-':>9}  {error.message}")
            continue
        print(f"{name:24}{megabytes / seconds:9.1f}{dropped:8}{set_up:10.2f}")
    ratio = compare(items, tasks, megabytes, asked.rounds)
    if asked.synthetic:
        synthetic(asked.synthetic)
    print(f"filters ratio={ratio:.2f} goal={GOAL:g}")


def spec_of(name: str) -> PartSpec:
    # The traces' problems are test problems themselves: their overlap is no mistake here.
    free = {"overlap": {"max_share": None, "max_heldout_share": None}, "difficulty": {"min": 0.1}}
    return PartSpec(name=name, params=free.get(name, {}))


def compare(
    items: list[Item], tasks: dict[str, list[Problem]], megabytes: float, rounds: int
) -> float:
    """Print the chain beside its peers, by turns; the ratio of the medians of their seconds."""
    sides: dict[str, tuple[Callable[[], Any], Callable[[Any], int]]] = {
        "our default chain": (
            lambda: ready(DEFAULT_FILTERS, items, tasks),
            lambda chain: ours(chain, items),
        ),
        "peers, every rule": (lambda: index(tasks), lambda leaks: peers(items, leaks, every=True)),
        "peers, stopping early": (
            lambda: index(tasks),
            lambda leaks: peers(items, leaks, every=False),
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    drops, set_ups = {}, {}
    for _ in range(rounds):
        for name, (prepare, side) in sides.items():
            set_ups[name], made = timed(prepare)
            spent, drops[name] = timed(lambda s=side, m=made: s(m))
            seconds[name].append(spent)
    print()
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    for name, median in medians.items():
        print(f"{name:24}{megabytes / median:9.1f}{drops[name]:8}{set_ups[name]:10.2f}")
    print()
    return medians["peers, every rule"] / medians["our default chain"]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def ready(names: Sequence[str], items: list[Item], tasks: dict[str, list[Problem]]) -> list[Part]:
    """The filters, with what they need besides the traces."""
    chain = build([spec_of(name) for name in names], Path())
    for part in chain:
        if hasattr(part.call, "begin"):
            part.call.begin({p.id: p for p, _, _ in items}, tasks)
        elif not part.needs_corpus:
            part.judge(items[0])  # loads the language detector
    return chain


def ours(chain: list[Part], items: list[Item]) -> int:
    """How many traces any of the filters drops; all are asked about every trace."""
    dropped: set[int] = set()
    for part in chain:
        if part.sketches:
            dropped |= compared(part.call, items)
            continue
        if part.needs_corpus:
            part.call.prepare(iter(items))  # type: ignore[attr-defined]
        dropped |= {at for at, item in enumerate(items) if part.judge(item) is not None}
    return len(dropped)


def compared(call: Any, items: list[Item]) -> set[int]:
    """What a filter that compares sketches drops."""
    rows = [(item[1].problem_id, item[1].index, call.sketch(*item)) for item in items]
    call.prepare_sketches(iter(rows))
    return {at for at, row in enumerate(rows) if call.judge_sketch(*row) is not None}


def index(tasks: dict[str, list[Problem]]) -> filter_peers.Leaks:
    return filter_peers.Leaks(p.question for found in tasks.values() for p in found)


def peers(items: list[Item], leaks: filter_peers.Leaks, *, every: bool) -> int:
    dropped = 0
    for problem, trace, _ in items:
        broken = filter_peers.gopher_repetition(trace.text, every=every)
        dropped += leaks(problem.question) or bool(broken)
    return dropped


def read_items(folder: Path) -> Iterator[Item]:
    """All published traces in canonical form."""
    for path in sorted(folder.glob("*.jsonl")):
        for number, row in enumerate(read_jsonl(path)):
            try:
                found = read_trace(row["trace"], None, (), DEFAULT_TAGS)
            except BadRow:
                continue
            asked = {"role": "user", "content": row["problem"]}
            problem = Problem(messages=(asked,), gold=str(row["answer"]))
            trace = Trace(
                problem_id=problem.id,
                index=number,
                text=found.text,
                reasoning=found.parts.reasoning,
                answer=found.parts.answer,
                finish_reason=found.finish_reason,
            )
            yield problem, trace, Grade(outcome="correct")


def read_task(path: Path) -> list[Problem]:
    return [
        Problem(messages=({"role": "user", "content": r["problem"]},)) for r in read_jsonl(path)
    ]


def synthetic(count: int) -> None:
    """Write `count` traces and filter them in a process of its own; print what that took."""
    with tempfile.TemporaryDirectory(prefix="distill-filters-") as name:
        folder = Path(name)
        start = time.monotonic()
        write_corpus(folder, count)
        write_corpus(folder / "warm", 100)
        size = (folder / "traces.jsonl").stat().st_size / 1e6
        print(f"{count} synthetic traces, {size:.0f} MB, made in {time.monotonic() - start:.0f} s")
        command = [sys.executable, "-m", "benchmarks.filters", "--one", name]
        ran = subprocess.run(
            command, env={**os.environ, "DISTILL_PROGRESS": "0"}, stdout=subprocess.PIPE, check=True
        )
        found = json.loads(ran.stdout)
        print(
            f"filtered in {found['seconds']:.1f} s by {found['processes']} processes: "
            f"{count / found['seconds']:.0f} traces/s, {size / found['seconds']:.0f} MB/s of file; "
            f"memory of all together {found['peak_mb']:.0f} MB at most, the main process "
            f"{found['main_mb']:.0f} MB; {found['bytes_per_trace']:.0f} bytes per trace; "
            f"kept {found['kept']}\n"
        )


def write_corpus(folder: Path, count: int) -> None:
    """Problems with four traces each, of sentences drawn from a pool; a few loop or are cut off."""
    rng = random.Random(1)
    letters = "etaoinshrdlu"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(3000)]
    pool = [" ".join(rng.choices(words, k=rng.randint(5, 20))) + ".\n" for _ in range(20_000)]
    problems = [
        Problem(messages=({"role": "user", "content": f"{n}: {rng.choice(pool)}"},), gold="7")
        for n in range(-(-count // 4))
    ]

    def traces() -> Iterator[Trace]:
        for number in range(count):
            body = "".join(rng.choices(pool, k=CHARS // 60))
            body = body[: 1000 if number % 20 == 0 else CHARS - 60]
            if number % 20 == 0:
                body *= CHARS // 1000
            cut = number % 25 == 0
            yield Trace(
                problem_id=problems[number // 4].id,
                index=number % 4,
                text=f"<think>\n{body}" + ("" if cut else "\n</think>\n\nIt is \\boxed{7}."),
                reasoning=body,
                answer="" if cut else "It is \\boxed{7}.",
                finish_reason="length" if cut else "stop",
                completion_tokens=len(body) // 4,
            )

    write_jsonl(folder / "problems.jsonl", problems)
    write_jsonl(folder / "traces.jsonl", traces())
    grade = to_row(Grade(outcome="correct", score=1.0, extracted="7"))
    rows = (
        {"problem_id": problems[n // 4].id, "index": n % 4, "segment": 0, **grade}
        for n in range(count)
    )
    write_jsonl(folder / "grades.jsonl", rows)


def run_step(folder: Path) -> dict[str, Any]:
    """The filter step on a folder's files, watched: seconds, memory, processes.

    What it keeps for each trace is told from a second run: the first loads the libraries.
    """
    filter_files(folder / "warm", workers=1)
    before, most, done = memory_of(os.getpid()), [0, 0], threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            found = [memory_of(pid) for pid in [os.getpid(), *children_of(os.getpid())]]
            most[:] = [max(most[0], sum(found)), max(most[1], len(found))]

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.monotonic()
    filter_files(folder)
    seconds = time.monotonic() - start
    done.set()
    watcher.join()
    summary = json.loads((folder / "out" / "summary.json").read_text())
    after = memory_of(os.getpid())
    return {
        "seconds": seconds,
        "peak_mb": most[0] / 1e6,
        "processes": most[1],
        "main_mb": after / 1e6,
        "bytes_per_trace": (after - before) / summary["traces"],
        "kept": summary["kept"],
    }


def filter_files(folder: Path, workers: int | None = None) -> None:
    files = [folder / f"{name}.jsonl" for name in ("problems", "traces", "grades")]
    specs = [PartSpec(name=name) for name in DEFAULT_FILTERS]
    filter_traces(
        specs, files[0], files[1], files[2], [], folder / "out", folder=folder, workers=workers
    )


def memory_of(pid: int) -> int:
    """Resident bytes of a process, 0 for one that is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, IndexError):
        return 0


def children_of(pid: int) -> list[int]:
    try:
        return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


if __name__ == "__main__":
    main()
