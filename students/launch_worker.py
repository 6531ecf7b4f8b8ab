"""One process of a training of several: learns what to do, trains, and says why when it fails.

    torchrun --nproc_per_node 8 -m distill.students.sft CONFIG.json

ends up here in every process. The first one reads the file, prepares and writes the result; the
others are told over the store (`launch_meeting.py`) and may be on machines without the file.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import DistillError
from distill.students import launch_errors
from distill.students.launch_agent import die_with_parent
from distill.students.launch_meeting import Meeting

if TYPE_CHECKING:
    from distill.students.sft import Job

log = logging.getLogger(__name__)

SENT = ("tokens", "validation", "prepared.json")


def main(arguments: list[str]) -> int:
    """Take part as torchrun's environment says.

    The first process reads `arguments[0]`; on a node of followers its first one writes there what
    it was told.
    """
    die_with_parent(signal.SIGKILL)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    told = None
    request = Path(arguments[0])
    if int(os.environ["RANK"]) == 0:
        if not request.is_file():
            print(
                f"error: this node sees no file {request}: {launch_errors.SHARED}", file=sys.stderr
            )
            return 2
        told = json.loads(request.read_text(encoding="utf-8"))
    try:
        take_part(told, None if told else request)
    except Exception as error:
        # A parent finds error and traceback in files; they need not be on the terminal twice.
        if told is not None and told.get("fitted"):
            return 1
        if not isinstance(error, DistillError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def take_part(told: Mapping[str, Any] | None, heard: Path | None = None) -> Path | None:
    """Train with all other processes; the first returns the student's folder.

    `told` is the first process's request, `{"dataset", "out", "config"}`; with `"fitted": true`
    somebody else completes the step. The others are told, and write a summary of it to `heard`
    where there is no such file. Raises DistillError.
    """
    from distill.students.sft import Job

    meeting = Meeting()
    if meeting.rank == 0:
        assert told is not None
        job = Job(Path(told["dataset"]), Path(told["out"]), told["config"])
    else:
        request = meeting.hear("request")
        if heard is not None and meeting.local == 0 and not heard.exists():
            heard.write_text(json.dumps({"stage": request.get("stage")}), encoding="utf-8")
        if request.get("done"):
            return None
        job = Job(Path(request["dataset"]), Path(request["out"]), request["config"])
        job._fingerprint = request["fingerprint"]
        _to_file(job.out, meeting.rank)
    with _Failing(meeting, job) as failing:
        if meeting.rank == 0:
            assert told is not None
            return _lead(meeting, job, bool(told.get("fitted")))
        _follow(meeting, job, failing)
        return None


def _lead(meeting: Meeting, job: Job, fitted: bool) -> Path:
    from distill.students.fit import fit

    started = time.monotonic()
    if job.done():
        meeting.tell("request", {"done": True, "stage": job.config.get("stage")})
        return job.student
    job.out.mkdir(parents=True, exist_ok=True)
    prepared = job.prepare()
    known = {"fingerprint": job.fingerprint, "stage": job.config.get("stage")}
    meeting.tell("request", {**job.as_json(), **known})
    meeting.watch(lambda why: launch_errors.leave_error(job.out, _as_error(why), force=True))
    meeting.same_folder(job.out)
    if apart := _apart(meeting):
        _send(meeting, job, len(apart))
    fit(job, prepared)
    student = job.student if fitted else job.finish(time.monotonic() - started)
    meeting.end()
    return student


def _apart(meeting: Meeting) -> list[int]:
    from distill.students import checkpoints

    found = meeting.apart()
    if found:  # then the first process, which resumes and sends, writes all of a checkpoint
        os.environ[checkpoints.APART] = "1"
    return found


def _send(meeting: Meeting, job: Job, receivers: int) -> None:
    from distill.students import checkpoints

    if (job.train.get("shard") or "none") != "none":
        raise DistillError(
            f"train.shard = {job.train['shard']}: {receivers} of {meeting.nodes} nodes do not see "
            f"{job.out}, and each would keep its own shards of a checkpoint",
            launch_errors.SHARED,
        )
    names = [name for name in SENT if (job.out / name).exists()]
    if last := checkpoints.last_complete(job.out / "checkpoints"):
        names.append(f"checkpoints/{last.name}")
    job.notes.append(
        f"{receivers} of {meeting.nodes} nodes did not see the step's folder: files were sent"
    )
    meeting.send(job.out, names, receivers)


def _follow(meeting: Meeting, job: Job, failing: _Failing) -> None:
    from distill.students.fit import fit
    from distill.students.loading import prepare

    meeting.watch(lambda why: print(f"error: {_as_error(why)}", file=sys.stderr, flush=True))
    if not meeting.same_folder(job.out):
        job.out = failing.folder = _receive(meeting)
    _apart(meeting)
    fit(job, prepare(job.config["student"]))
    meeting.end()
    log_file = job.out / launch_errors.LOGS / f"rank-{meeting.rank}.log"
    if log_file.is_file() and not log_file.stat().st_size:
        log_file.unlink()


def _receive(meeting: Meeting) -> Path:
    """A folder of this node with what the first process prepared; one process a node fills it."""
    key = f"folder/{meeting.node}"
    if meeting.local == 0:
        folder = Path(tempfile.mkdtemp(prefix="distill-node-"))
        meeting.receive(folder)
        meeting.tell(key, str(folder))
    return Path(meeting.hear(key))


class _Failing:
    """Whatever ends a process early is told to all nodes and kept in files; folders are removed."""

    def __init__(self, meeting: Meeting, job: Job) -> None:
        self.meeting, self.job = meeting, job
        self.folder: Path | None = None

    def __enter__(self) -> _Failing:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        # On a node that does not see the step's folder there is none to leave a file in.
        out = self.job.out if self.folder is None and self.job.out.is_dir() else None
        if isinstance(error, DistillError):
            if out is not None:
                launch_errors.leave_error(out, error)
            self.meeting.fail(launch_errors.plain(error))
        elif isinstance(error, Exception):
            # Also where a user looks for it: the processes' own output is long.
            where = _keep_traceback(out, self.meeting.rank) if out is not None else ""
            self.meeting.fail({"message": f"{kind.__name__}: {error}", "hint": where})
        if self.folder is not None and self.meeting.local == 0:
            shutil.rmtree(self.folder, ignore_errors=True)


def _keep_traceback(out: Path, rank: int) -> str:
    path = out / launch_errors.LOGS / f"rank-{rank}.traceback"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(traceback.format_exc(), encoding="utf-8")
    return f"the traceback is in {path}"


def _to_file(out: Path, rank: int) -> None:
    """From here on the words of this process go to `logs/rank-N.log`: the first one's are enough.

    Not where the folder is another machine's.
    """
    if not out.is_dir():
        return
    folder = out / launch_errors.LOGS
    folder.mkdir(exist_ok=True)
    with (folder / f"rank-{rank}.log").open("w", encoding="utf-8") as file:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _as_error(why: Mapping[str, Any]) -> DistillError:
    who = f"process {why['rank']} on {why['host']}: " if "rank" in why else ""
    return DistillError(f"{who}{why['message']}", str(why.get("hint") or launch_errors.AGAIN))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
