"""Local servers: started on their share of the GPUs, watched, restarted, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.errors import MissingExtra, ModelError, RecipeError, TeacherError
from distill.lineup import ModelRef, build_engine
from distill.protocols import Request, SamplingParams, Teacher
from distill.records import Problem, problem_id
from distill.schema import Evaluation, Sampling, TeacherSpec
from distill.teachers import replicas as module
from distill.teachers.replicas import Replicas, share_out, visible_gpus
from distill.teachers.served import ServedVLLM, flags
from distill.teachers.vllm import VLLMTeacher, identity_of
from tests import char_models, fake_vllm

FAKE = [sys.executable, "-S", str(Path(fake_vllm.__file__))]


def until(true: Callable[[], Any], seconds: float = 20) -> Any:
    """What `true()` returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)
    return found


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def pids_in(log: Path) -> list[int]:
    """The helpers of the servers that wrote this log."""
    return [int(pid) for pid in re.findall(r"^helper (\d+)", log.read_text(), re.M)]


def crash(url: str) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    connection.request("POST", "/die", headers={"content-length": "0"})
    with pytest.raises((OSError, http.client.HTTPException)):
        connection.getresponse()
    connection.close()


def servers(tmp_path: Path, count: int = 2, **more: Any) -> Replicas:
    devices = more.pop("devices", [()] * count)
    more = {"start_s": 30, "backoff_s": 0.05, "logs": tmp_path / "logs", **more}
    return Replicas(lambda port: [*FAKE, "m", "--port", str(port)], devices, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer and a config: all of a model that is needed on this side of the wire."""
    path = tmp_path_factory.mktemp("models") / "m"
    char_models.tokenizer().save_pretrained(path)
    char_models.config("llama").save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.02)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_gpus_are_shared_out() -> None:
    eight = [str(i) for i in range(8)]
    assert share_out("auto", 2, eight) == [("0", "1"), ("2", "3"), ("4", "5"), ("6", "7")]
    assert share_out("auto", 3, eight) == [("0", "1", "2"), ("3", "4", "5")]
    assert share_out(3, 1, ["GPU-a", "GPU-b", "GPU-c"]) == [("GPU-a",), ("GPU-b",), ("GPU-c",)]
    assert share_out(2, 4, []) == [(), ()]
    assert share_out("auto", 4, []) == [()]
    with pytest.raises(RecipeError, match="3 replicas of 4 GPUs each need 12, and 8 are visible"):
        share_out(3, 4, eight)
    with pytest.raises(RecipeError, match="1 replicas of 16 GPUs each need 16"):
        share_out("auto", 16, eight)


def test_visible_gpus_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-abc,7")
    assert visible_gpus() == ["2", "GPU-abc", "7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert visible_gpus() == []


def test_arguments_become_flags() -> None:
    words = flags(
        {
            "tensor_parallel_size": 2,
            "enforce_eager": True,
            "enable_chunked_prefill": False,
            "hf_overrides": {"a": 1},
            "quantization": None,
        }
    )
    expected = "--tensor-parallel-size 2 --enforce-eager --no-enable-chunked-prefill"
    assert words == [*expected.split(), "--hf-overrides", '{"a": 1}']
    with pytest.raises(RecipeError, match="'--port 1' is no engine argument"):
        flags({"--port 1": 2})


def test_a_recipe_says_replicas_and_means_vllm() -> None:
    spec = TeacherSpec(model="x", replicas="auto")
    assert spec.engine == "vllm"
    assert spec.identity() == TeacherSpec(model="x", engine="vllm").identity()
    assert Evaluation(replicas=2).engine == "vllm"
    with pytest.raises(ValueError, match="local vllm servers, and the engine is 'openai'"):
        TeacherSpec(model="x", engine="openai", replicas=2)
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        TeacherSpec(model="x", replicas=0)


def test_they_start_serve_and_leave_nothing_behind(tmp_path: Path) -> None:
    pool = servers(tmp_path, devices=[("0", "1"), ("2", "3")])
    urls = pool.urls
    pool.start()
    pool.start()
    assert len(set(urls)) == 2
    logs = [tmp_path / "logs" / f"replica-{i}.log" for i in range(2)]
    told = [re.findall(r" on (\S+)$", log.read_text(), re.M) for log in logs]
    assert told == [["0,1"], ["2,3"]]
    helpers = [pid for log in logs for pid in pids_in(log)]
    assert len(helpers) == 2
    assert all(map(alive, helpers))
    pool.stop()
    assert not any(map(alive, helpers))
    assert not pool.running
    assert pool.notes == []
    pool.start()
    assert pool.urls == urls
    pool.stop()
    assert not any(alive(pid) for log in logs for pid in pids_in(log))


def test_one_that_dies_at_its_start_is_told_with_its_log(tmp_path: Path) -> None:
    pool = servers(tmp_path, environment={"FAKE_START": "die"})
    with pytest.raises(ModelError, match=r"replica \d .* ended with exit code 1 before") as error:
        pool.start()
    said = str(error.value)
    assert "OutOfMemoryError: CUDA out of memory" in said
    assert "Engine core initialization failed" in said
    assert "frame 3 of" not in said
    assert "raise options.tensor_parallel_size" in error.value.hint
    assert f"the whole log is {tmp_path / 'logs' / 'replica-'}" in error.value.hint
    assert not any(alive(p) for log in (tmp_path / "logs").iterdir() for p in pids_in(log))


def test_a_command_that_is_none_is_told(tmp_path: Path) -> None:
    pool = Replicas(lambda port: ["/no/such/vllm"], [()], logs=tmp_path, start_s=30)
    with pytest.raises(ModelError, match="cannot start /no/such/vllm"):
        pool.start()


@pytest.mark.slow
def test_one_that_never_answers_is_given_up(tmp_path: Path) -> None:
    pool = servers(tmp_path, 1, environment={"FAKE_START": "hang"}, start_s=1.0)
    with pytest.raises(ModelError, match=r"does not answer 1 s after its start"):
        pool.start()
    assert not any(map(alive, pids_in(tmp_path / "logs" / "replica-0.log")))


def test_one_that_dies_is_started_again_at_its_port(tmp_path: Path) -> None:
    pool = servers(tmp_path)
    pool.start()
    try:
        first = pids_in(tmp_path / "logs" / "replica-0.log")
        crash(pool.urls[0])
        until(lambda: not alive(first[0]))  # its helper held the GPU's memory
        until(lambda: pool._replicas[0].ready and pool._replicas[0].deaths)
        assert module._healthy(pool._replicas[0].port, 5)
        (note,) = pool.notes
        assert re.match(r"replica 0 .* ended with exit code 137 and was started again", note)
    finally:
        pool.stop()
    assert not any(alive(p) for log in (tmp_path / "logs").iterdir() for p in pids_in(log))


@pytest.mark.slow
def test_one_that_keeps_dying_is_given_up_and_the_last_ends_it(tmp_path: Path) -> None:
    told: list[str] = []
    pool = servers(
        tmp_path,
        restarts=2,
        environment={"FAKE_START": "die-again", "FAKE_MARK": str(tmp_path / "mark")},
        when_failed=lambda: told.append("failed"),
    )
    pool.start()
    try:
        crash(pool.urls[0])
        until(lambda: pool._replicas[0].given_up)
        assert "was given up after 2 restarts" in pool.notes[-1]
        assert not pool.failure
        assert module._healthy(pool._replicas[1].port, 5)
        crash(pool.urls[1])
        until(lambda: told)
        assert pool.failure.startswith("all 2 servers died; the last log ends:")
        assert "out of memory" in pool.failure
    finally:
        pool.stop()


def parent_of_two(tmp_path: Path) -> tuple[subprocess.Popen[bytes], list[int], list[int]]:
    """A process that runs two servers; its keepers, and the servers' helpers."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import time\n"
        "from pathlib import Path\n"
        "from distill.teachers.replicas import Replicas\n"
        f"pool = Replicas(lambda port: [*{FAKE!r}, 'm', '--port', str(port)], [(), ()],\n"
        f"                logs=Path({str(tmp_path / 'logs')!r}))\n"
        "pool.start()\n"
        "print(*(one.process.pid for one in pool._replicas), flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    keepers = [int(pid) for pid in parent.stdout.readline().split()]
    helpers = [pids_in(tmp_path / "logs" / f"replica-{i}.log")[0] for i in range(2)]
    assert all(map(alive, [*keepers, *helpers]))
    return parent, keepers, helpers


def parent_pid(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_nothing_outlives_a_kill_9_of_who_started_it(tmp_path: Path) -> None:
    parent, keepers, helpers = parent_of_two(tmp_path)
    servers = [parent_pid(pid) for pid in helpers]
    parent.kill()
    parent.wait()
    until(lambda: not any(map(alive, [*servers, *keepers, *helpers])))
    assert not any(map(alive, servers))


def test_a_server_dies_with_its_keeper(tmp_path: Path) -> None:
    parent, keepers, helpers = parent_of_two(tmp_path)
    server = parent_pid(helpers[0])
    try:
        os.kill(keepers[0], signal.SIGKILL)
        until(lambda: not alive(server))
    finally:
        parent.kill()
        parent.wait()
        os.kill(helpers[0], signal.SIGKILL)
    until(lambda: not alive(helpers[1]))
    assert not alive(server)


@pytest.mark.slow
def test_a_keeper_that_is_told_twice_to_end_leaves_nothing_behind() -> None:
    told = (
        "import subprocess, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True)"
    )
    slow = "import signal; signal.signal(15, lambda *_: (time.sleep(0.3), exit(0)))"
    command = [sys.executable, "-c", f"{told}; {slow}; time.sleep(60)"]
    keeper = subprocess.Popen(
        [sys.executable, "-I", "-S", str(module.KEEPER), str(os.getpid()), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert keeper.stdout is not None
    helper = int(keeper.stdout.readline())
    try:
        for _ in range(2):
            keeper.terminate()
            time.sleep(0.1)
        keeper.wait(30)
        assert not alive(helper)
    finally:
        keeper.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(helper, signal.SIGKILL)
        keeper.communicate()


def test_a_log_that_somebody_deleted_ends_no_watching(tmp_path: Path) -> None:
    one = module.Replica(0, 1, (), log=tmp_path / "gone" / "replica-0.log")
    assert "cannot be read" in module.tail(one)


# -- the teacher on top ----------------------------------------------------------------------------


def teacher(folder: Path, tmp_path: Path, **options: Any) -> ServedVLLM:
    spec = {"engine": "vllm", "model": str(folder), "replicas": options.pop("replicas", 2)}
    wanted = {"serve_command": FAKE, "logs": str(tmp_path / "logs"), **options}
    return VLLMTeacher.from_spec({**spec, "options": wanted, "timeout_s": 20})  # type: ignore[return-value]


def ask(content: str = "1+2", **more: Any) -> Request:
    params = SamplingParams(max_tokens=more.pop("max_tokens", 5))
    return Request(
        key="p/0/0", prompt=[{"role": "user", "content": content}], params=params, **more
    )


def test_servers_are_stopped_where_the_teacher_cannot_be_opened(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        raise ModelError("no tokenizer")

    asked = teacher(folder, tmp_path, replicas=1)
    monkeypatch.setattr(asked, "_load_chat", broken)
    with pytest.raises(ModelError, match="no tokenizer"):
        asyncio.run(asked.open())
    assert not asked._replicas.running
    (helper,) = pids_in(tmp_path / "logs" / "replica-0.log")
    until(lambda: not alive(helper))


def test_without_vllm_it_says_how_to_install_it(folder: Path) -> None:
    with pytest.raises(MissingExtra, match=r"teacher\.replicas .* needs .* 'vllm'") as error:
        ServedVLLM(str(folder), python=_bare_python())
    assert "distill[vllm]" in error.value.hint
    with pytest.raises(RecipeError, match="cannot run '/no/python'"):
        ServedVLLM(str(folder), python="/no/python")


def problem(content: str) -> Problem:
    messages = ({"role": "user", "content": content},)
    return Problem(id=problem_id(messages), messages=messages)


def _bare_python() -> str:
    return os.path.realpath(sys.executable)


def test_the_teacher_asks_in_tokens_and_answers_as_the_engine_in_process(
    folder: Path, tmp_path: Path
) -> None:
    engine = teacher(folder, tmp_path, tensor_parallel_size=1, dtype="float32")
    assert isinstance(engine, Teacher)
    where = engine._where
    assert engine.identity == identity_of(where, None, None, {}, {"dtype": "float32"}, False)
    assert engine.capabilities.prefix
    assert engine.capabilities.token_ids
    told: list[int] = []

    async def main() -> None:
        first = await engine.complete(ask(seed=1), told.append)
        expected = fake_vllm.answer(list(first.prompt_ids or ()), 1, 5)
        assert first.token_ids == tuple(expected)
        assert first.prompt == "<user>1+2<bot>"
        assert first.finish_reason == "length"
        assert first.usage.completion_tokens == sum(told) == 5
        more = await engine.complete(ask(seed=1, prefix_ids=first.token_ids))
        assert more.token_ids is not None
        assert more.token_ids[:5] == first.token_ids
        assert more.usage.completion_tokens == 5
        full = await engine.complete(ask("1" * 90, max_tokens=50))
        assert full.flags == ("context",)
        with pytest.raises(TeacherError, match="the context of m 96"):
            await engine.complete(ask("1" * 96))
        await engine.close()

    asyncio.run(main())
    log = (tmp_path / "logs" / "replica-0.log").read_text()
    for words in ["--max-model-len", "--no-enable-chunked-prefill", "--load-format"]:
        assert (words in log) == (words != "--max-model-len")
    assert not any(alive(p) for one in (tmp_path / "logs").iterdir() for p in pids_in(one))


@pytest.mark.slow
def test_sampling_survives_a_replica_that_is_killed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distill.sample import sample

    monkeypatch.setenv("FAKE_PACE", "0.01")
    engine = teacher(folder, tmp_path)
    problems = [problem(f"{i}+1") for i in range(20)]
    killed: list[str] = []

    async def complete(request: Request, on_tokens: Any = None) -> Any:
        found = await whole(request, on_tokens)
        if len(killed) < 1:
            killed.append(engine._replicas.urls[0])
            await asyncio.to_thread(crash, killed[0])
        return found

    whole, engine.complete = engine.complete, complete  # type: ignore[method-assign]
    found = sample(
        problems,
        engine,
        Sampling(n=4, max_tokens=30, concurrency=8),
        seed=0,
        pool_root=tmp_path / "pool",
    )
    keys = [(trace.problem_id, trace.index) for trace in found.traces]
    assert len(keys) == len(set(keys)) == 80
    assert found.failures == []
    assert "exit code 137" in engine.notes[0]


@pytest.mark.slow
def test_with_no_server_left_sampling_ends_with_the_reason(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_PACE", "0.05")
    engine = teacher(folder, tmp_path, replicas=1, restarts=0)

    async def until_fatal(under_way: Any) -> None:
        while True:  # the sampler tries again what may pass
            try:
                await under_way
            except TeacherError as error:
                if error.fatal:
                    raise
            await asyncio.sleep(0.05)
            under_way = engine.complete(ask())

    async def main() -> None:
        await engine.open()
        waiting = asyncio.ensure_future(engine.complete(ask(max_tokens=60)))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(crash, engine._replicas.urls[0])
        with pytest.raises(TeacherError, match="all 1 servers died") as error:
            await until_fatal(waiting)
        assert error.value.fatal
        await engine.close()

    asyncio.run(main())


def test_evaluation_uses_the_same_servers_for_all_its_calls(folder: Path, tmp_path: Path) -> None:
    from distill.sample import sample

    options = {"serve_command": FAKE, "logs": str(tmp_path / "logs")}
    ref = ModelRef(
        role="base", path=str(folder), engine="vllm", options=options, spec={"replicas": 1}
    )
    engine = build_engine(ref, tmp_path)
    problems = [problem("1+1")]
    with engine.kept():
        for seed in (1, 2):
            sampling = Sampling(n=1, max_tokens=4)
            sample(problems, engine, sampling, seed=seed, pool_root=tmp_path / "pool")
    log = tmp_path / "logs" / "replica-0.log"
    (helper,) = pids_in(log)
    assert not alive(helper)
    assert log.read_text().count("serving") == 1
