"""The Slurm scripts with a Slurm of three small fakes and a server that only answers /health."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distill.recipe import Recipe

SCRIPTS = Path(__file__).parent.parent / "scripts" / "cluster"

pytestmark = pytest.mark.skipif(
    not (shutil.which("bash") and shutil.which("curl")), reason="the scripts need bash and curl"
)

SRUN = """#!/bin/bash
# Runs the command once for each node, as srun does; dies with all of them.
trap 'kill $(jobs -p) 2>/dev/null; wait; exit 143' TERM
for a in "$@"; do case $a in --nodes=*) nodes=${a#*=};; esac; done
while [[ $1 == --* ]]; do shift; done
for ((i = 0; i < nodes; i++)); do SLURM_NODEID=$i "$@" & done
status=0
for job in $(jobs -p); do wait "$job" || { status=$?; kill $(jobs -p) 2>/dev/null; }; done
exit $status
"""
SCONTROL = "#!/bin/bash\necho 127.0.0.1\necho node2\n"
VLLM = f"""#!{sys.executable}
import http.server, json, os, sys, time
with open(os.environ["ARGS_LOG"], "a") as log:
    row = {{"pid": os.getpid(), "args": sys.argv[1:], "key": os.environ.get("VLLM_API_KEY")}}
    log.write(json.dumps(row) + "\\n")
if os.environ.get("VLLM_FAILS"):
    sys.exit(3)
if "--headless" in sys.argv:
    time.sleep(600)
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *args): pass
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer.allow_reuse_address = True
http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()
"""
DISTILL = '#!/bin/bash\nprintf "%s\\n" "$DISTILL_API_KEY" "$@"\n'


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a job: fakes first in the path, a shared folder, a free port."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    programs = {"srun": SRUN, "scontrol": SCONTROL, "vllm": VLLM, "distill": DISTILL}
    for name, text in programs.items():
        (bin_ / name).write_text(text, encoding="utf-8")
        (bin_ / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        "PATH": f"{bin_}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "SERVERS": str(tmp_path / "servers"),
        "ARGS_LOG": str(tmp_path / "args.jsonl"),
        "PORT": str(port),
        "LOOK_S": "0.1",
        "SLURM_JOB_ID": "71",
        "SLURM_ARRAY_JOB_ID": "70",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_SUBMIT_DIR": str(SCRIPTS.parent.parent),
    }


def until(what: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


@contextlib.contextmanager
def serving(env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        ["bash", str(SCRIPTS / "serve.sbatch")],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def started(env: dict[str, str]) -> list[dict[str, object]]:
    """What `vllm` was called with, one row a call."""
    path = Path(env["ARGS_LOG"])
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def alive(pid: object) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


def servers(env: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPTS / "servers.sh"), env["SERVERS"], *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)


def test_a_replica_over_two_nodes_announces_itself_and_leaves_nothing_behind(
    cluster: dict[str, str],
) -> None:
    entry = Path(cluster["SERVERS"]) / "70_3.url"
    with serving(cluster) as job:
        until(entry.exists)
        url = f"http://127.0.0.1:{cluster['PORT']}/v1"
        assert entry.read_text() == f"{url}\n"
        assert json.loads(servers(cluster, "1", "5").stdout) == [url]
        key = Path(cluster["SERVERS"]) / "key"
        assert (len(key.read_text()), key.stat().st_mode & 0o777) == (48, 0o600)
        rows = sorted(started(cluster), key=lambda row: "--headless" in str(row["args"]))
        assert {row["key"] for row in rows} == {key.read_text()}
        head, worker = (list(map(str, row["args"])) for row in rows)  # type: ignore[call-overload]
        assert head[:2] == ["serve", "deepseek-ai/DeepSeek-R1"]
        text = " ".join(head)
        assert "--tensor-parallel-size 8 --pipeline-parallel-size 2" in text
        assert "--nnodes 2 --node-rank 0 --master-addr 127.0.0.1" in text
        assert text.endswith("--max-model-len 40960")
        assert "--headless" not in head
        assert "--node-rank 1" in " ".join(worker)
        assert "--headless" in worker
        job.send_signal(signal.SIGTERM)
        assert job.wait(20) == 0
        assert not entry.exists()
        until(lambda: not any(alive(row["pid"]) for row in rows))


def test_a_server_that_dies_is_started_again_under_its_url(cluster: dict[str, str]) -> None:
    cluster |= {"SLURM_JOB_NUM_NODES": "1", "TENSOR": "2", "KEY": "no"}
    entry = Path(cluster["SERVERS"]) / "70_3.url"
    with serving(cluster):
        until(entry.exists)
        first = started(cluster)[0]
        assert "--data-parallel-size 4" in " ".join(map(str, first["args"]))  # type: ignore[call-overload]
        assert first["key"] is None
        assert not (entry.parent / "key").exists()
        os.kill(int(str(first["pid"])), signal.SIGKILL)
        until(lambda: len(started(cluster)) == 2 and entry.exists())
        assert entry.read_text() == f"http://127.0.0.1:{cluster['PORT']}/v1\n"


def test_a_server_that_never_starts_is_given_up(cluster: dict[str, str]) -> None:
    cluster |= {"SLURM_JOB_NUM_NODES": "1", "RESTARTS": "2", "VLLM_FAILS": "1"}
    with serving(cluster) as job:
        assert job.wait(20) == 1
    assert len(started(cluster)) == 3
    assert not list(Path(cluster["SERVERS"]).glob("*.url"))


def test_gpus_that_cannot_be_shared_out_are_refused(cluster: dict[str, str]) -> None:
    cluster |= {"TENSOR": "3"}
    with serving(cluster) as job:
        assert job.wait(20) == 2
    assert not started(cluster)


def test_too_few_servers_are_said(cluster: dict[str, str]) -> None:
    folder = Path(cluster["SERVERS"])
    folder.mkdir()
    (folder / "1_0.url").write_text("http://127.0.0.1:9/v1\n")
    asked = servers(cluster, "1", "0")
    assert (asked.returncode, asked.stdout) == (1, "")
    assert "only 0 of the 1 servers wanted answer" in asked.stderr


def test_the_sampler_gets_the_announced_servers_the_key_and_its_arguments(
    cluster: dict[str, str],
) -> None:
    folder = Path(cluster["SERVERS"])
    cluster |= {"SLURM_JOB_NUM_NODES": "1"}
    with serving(cluster):
        until((folder / "70_3.url").exists)
        (folder / "70_4.url").write_text("http://node9:8000/v1\n")
        command = ["bash", str(SCRIPTS / "sample.sbatch"), "7b", "variant=17k"]
        done = subprocess.run(
            command, env=cluster, capture_output=True, text=True, check=True, timeout=60
        )
    key, verb, recipe, *overrides = done.stdout.splitlines()
    assert (key, verb, recipe) == ((folder / "key").read_text(), "select", "7b")
    assert "1 of 2 announced servers answer" in done.stderr
    read = Recipe.load("7b", overrides=overrides)
    assert read.teacher.base_urls == [
        f"http://127.0.0.1:{cluster['PORT']}/v1",
        "http://node9:8000/v1",
    ]
    assert read.teacher.options == {"served_name": "teacher", "return_token_ids": True}
    assert read.teacher.api_key_env == "DISTILL_API_KEY"
    assert read.sampling.concurrency == 512
    assert read.problems.limit == 30000


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.s*")), ids=lambda path: path.name)
def test_the_scripts_parse_and_shellcheck_likes_them(path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(path)]).returncode == 0
    if shutil.which("shellcheck"):
        assert subprocess.run(["shellcheck", "--shell=bash", str(path)]).returncode == 0


def test_the_page_shows_what_the_arithmetic_prints() -> None:
    command = [sys.executable, str(SCRIPTS / "arithmetic.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    *table, facts = printed.splitlines()
    page = (SCRIPTS.parent.parent / "docs" / "many-gpus.md").read_text(encoding="utf-8")
    assert "\n".join(table) in page
    assert f"{json.loads(facts)['tokens_per_s']:,} tokens/s in all" in page
    # 600,000 / 0.5 + 200,000 samples of 5,355 tokens, 512 GPUs at 180,000 a day.
    assert "| 50% | 1.4M | 7.5B | 95,573 | 7.8 |" in page
