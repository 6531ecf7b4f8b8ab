"""What the tests of launching share: two "nodes" on this machine, and a stand-in for a worker.

python -m tests.launching FOLDER      the stand-in: leaves its pid there and sleeps
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

SRUN = f"""#!{sys.executable}
# Runs the command once for each node, as srun does; a task that fails ends the others.
import os, signal, subprocess, sys, time
words = sys.argv[1:]
with open(os.environ["SRUN_LOG"], "a") as log:
    log.write(" ".join(words) + "\\n")
nodes = 1
while words[0].startswith("--"):
    word = words.pop(0)
    if word.startswith("--nodes="):
        nodes = int(word.partition("=")[2])
tasks = [
    subprocess.Popen(words, env={{**os.environ, "SLURM_NODEID": str(i), "SLURM_STEP_ID": "0"}})
    for i in range(nodes)
]
def end(*_):
    for task in tasks:
        task.terminate()
signal.signal(signal.SIGTERM, end)
code = 0
while any(task.poll() is None for task in tasks):
    for task in tasks:
        if task.poll() and not code:
            code = task.returncode
            end()
    time.sleep(0.05)
sys.exit(abs(code))
"""


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state.split()[0] != "Z"


def children(pid: int) -> list[int]:
    """All descendants of a process."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents.setdefault(parent, []).append(int(stat.parent.name))
    found, todo = [], [pid]
    while todo:
        below = parents.get(todo.pop(), [])
        found += below
        todo += below
    return found


def command_of(pid: int) -> str:
    """The command line of a process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def stand_in(folder: Path) -> None:
    """What a worker does before it trains, then nothing."""
    from distill.students.launch_agent import die_with_parent

    die_with_parent(signal.SIGKILL)
    (folder / f"rank-{os.environ['RANK']}").write_text(str(os.getpid()))
    time.sleep(600)


if __name__ == "__main__":
    stand_in(Path(sys.argv[1]))
