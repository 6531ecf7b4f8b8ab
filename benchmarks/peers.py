"""Wall time against other samplers, and what each loses at kill -9, on one stub server.

    python -m benchmarks.peers [--prompts 600] [--in-flight 100] [--seconds 1.0] [--rounds 1]

Sampled are the same prompts, one answer each, by distill, distilabel and bespokelabs-curator, with
the same number of requests in flight, each as its documentation shows it. Each runs as a process
of its own: wall time is from its start to its end, imports and all. A second time each is killed
with all its children (SIGKILL) once the server has answered half of the prompts, and started again.
The server counts: `paid twice` are prompts that it answered more than once over the two runs
(requests that were under way at the kill are sent again by everybody), `missing` those without an
answer in the final output; a program that does not come to an end within --limit-s leaves none.

The peers live in environments of their own, made on first use below --envs:

    python -m venv ENVS/distilabel
    ENVS/distilabel/bin/pip install "distilabel[openai]==1.5.3" requests
    python -m venv ENVS/curator
    ENVS/curator/bin/pip install "bespokelabs-curator==0.1.31"

A peer that cannot be installed or run is said so and left out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peer_programs import PEERS, Peer

GOAL = 1.0
TOKENS = 64
ROOT = Path(__file__).parent.parent


class Stub:
    """Answers chats after `seconds`, streamed or whole, and counts the answers to each prompt."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.answered: Counter[str] = Counter()

    async def serve(self) -> None:
        """Serve on a free port until killed; prints the port first."""
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0, backlog=4096)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                lengths = [
                    line.partition(":")[2]
                    for line in head.splitlines()
                    if line.lower().startswith("content-length:")
                ]
                body = await reader.readexactly(int(lengths[0])) if lengths else b""
                await self._answer(head.split(" ", 2), body, writer)
        writer.close()

    async def _answer(self, head: list[str], body: bytes, writer: asyncio.StreamWriter) -> None:
        method, path = head[0], head[1]
        if path == "/counts":
            _write(writer, json.dumps(self.answered))
        elif path == "/reset":
            self.answered.clear()
            _write(writer, "{}")
        elif method == "GET":
            _write(writer, '{"object": "list", "data": [{"id": "stub", "object": "model"}]}')
        else:
            asked = json.loads(body)
            if not asked["messages"]:  # how curator asks for its rate limits
                _write(writer, json.dumps(_whole()))
                return
            content = asked["messages"][-1]["content"]
            prompt = content if isinstance(content, str) else content[0]["text"]
            await asyncio.sleep(self.seconds)
            if writer.is_closing():
                return
            if asked.get("stream"):
                _write(writer, "".join(_events()), "text/event-stream")
            else:
                _write(writer, json.dumps(_whole()))
            await writer.drain()
            self.answered[prompt] += 1


def _write(writer: asyncio.StreamWriter, text: str, kind: str = "application/json") -> None:
    data = text.encode()
    writer.write(
        f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n\r\n".encode()
        + data
    )


def _whole() -> dict[str, Any]:
    message = {"role": "assistant", "content": " wait" * TOKENS}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1764000000,
        "model": "stub",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 20, "completion_tokens": TOKENS, "total_tokens": 20 + TOKENS},
    }


def _events() -> Iterator[str]:
    base = {**_whole(), "object": "chat.completion.chunk"}
    usage = base.pop("usage")
    for number in range(TOKENS + 1):
        delta = {"content": " wait"} if number < TOKENS else {}
        finish = None if number < TOKENS else "stop"
        choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
        yield f"data: {json.dumps({**base, 'choices': choices})}\n\n"
    yield f"data: {json.dumps({**base, 'choices': [], 'usage': usage})}\n\n"
    yield "data: [DONE]\n\n"


@contextlib.contextmanager
def stub(seconds: float) -> Iterator[str]:
    """The base URL of a stub server in a process of its own, without `/v1`."""
    command = [sys.executable, "-m", "benchmarks.peers", "--serve", "--seconds", str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def fetch(url: str) -> dict[str, int]:
    with urllib.request.urlopen(url, timeout=60) as answer:
        counts: dict[str, int] = json.load(answer)
    return counts


def python_of(peer: Peer, envs: Path) -> str | None:
    """The interpreter that can run a peer, installed on first use; None where that fails."""
    if not peer.pip:
        return sys.executable
    python = envs / peer.name / "bin" / "python"
    marker = envs / peer.name / "installed"
    if marker.exists():
        return str(python)
    print(f"installing {peer.name}: pip install {' '.join(peer.pip)}", flush=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", envs / peer.name], check=True, timeout=120)
        subprocess.run(
            [python, "-m", "pip", "install", "-q", *peer.pip],
            check=True,
            timeout=600,
            capture_output=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error).encode()
        print(f"{peer.name} is left out, it cannot be installed: {said.decode()[-300:].strip()}")
        return None
    marker.touch()
    return str(python)


@dataclass(slots=True)
class Sampler:
    """A peer at work in a folder of its own."""

    peer: Peer
    python: str
    url: str
    prompts: Path
    in_flight: int
    work: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        program = self.work / "program.py"
        program.write_text(self.peer.program, encoding="utf-8")
        out = self.work / "out.json"
        out.unlink(missing_ok=True)
        command = [self.python, str(program), f"{self.url}/v1", str(self.prompts)]
        command += [str(self.in_flight), str(self.work), str(out)]
        with (self.work / "log.txt").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self.work,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "DISTILL_PROGRESS": "0"},
                start_new_session=True,
            )

    def kill(self) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def finish(self, limit_s: float) -> list[str] | None:
        """The prompts that the output answers; None where the program failed."""
        assert self.process is not None
        try:
            self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
        out = self.work / "out.json"
        if not out.exists():
            tail = (self.work / "log.txt").read_text(errors="replace")[-600:]
            print(f"{self.peer.name} did not come to an end; its log ends:\n{tail}")
            return None
        done: list[str] = json.loads(out.read_text(encoding="utf-8"))
        return done


def timed(sampler: Sampler, limit_s: float) -> float | None:
    """Seconds for all prompts, from the start of the process to its end."""
    fetch(f"{sampler.url}/reset")
    begin = time.perf_counter()
    sampler.start()
    done = sampler.finish(limit_s)
    return None if done is None else time.perf_counter() - begin


def killed(sampler: Sampler, wanted: list[str], limit_s: float) -> dict[str, int] | None:
    """What the server counted and the output lacks after a kill in the middle and a new start."""
    fetch(f"{sampler.url}/reset")
    sampler.start()
    end = time.monotonic() + limit_s
    while sum(fetch(f"{sampler.url}/counts").values()) < len(wanted) / 2:
        assert sampler.process is not None
        if sampler.process.poll() is not None or time.monotonic() > end:
            print(f"{sampler.peer.name} ended before it could be killed")
            break
        time.sleep(0.05)
    sampler.kill()
    time.sleep(1.5)  # requests that the server still works on are answered into the void
    before = sum(fetch(f"{sampler.url}/counts").values())
    sampler.start()
    done = sampler.finish(limit_s)
    counts = fetch(f"{sampler.url}/counts")
    return {
        "answered before the kill": before,
        "paid twice": sum(count - 1 for count in counts.values()),
        "missing": len(wanted) if done is None else len(set(wanted) - set(done)),
        "came to an end": int(done is not None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=600)
    parser.add_argument("--in-flight", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=1.0, help="the server's time an answer")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--limit-s", type=float, default=180, help="longest time of one run")
    parser.add_argument("--envs", type=Path, default=Path.home() / ".cache/distill-peers")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(Stub(args.seconds).serve())
        return
    pythons = {peer: python_of(peer, args.envs) for peer in PEERS}
    with tempfile.TemporaryDirectory() as folder, stub(args.seconds) as url:
        prompts = [f"Question {i}: what is {i} times {i + 1}?" for i in range(args.prompts)]
        file = Path(folder) / "prompts.json"
        file.write_text(json.dumps(prompts), encoding="utf-8")
        compare(args, pythons, prompts, Path(folder), url)


def compare(
    args: argparse.Namespace,
    pythons: dict[Peer, str | None],
    prompts: list[str],
    folder: Path,
    url: str,
) -> None:
    """Run all by turns, print the table and the ratio."""
    walls: dict[str, list[float]] = {}
    lost: dict[str, dict[str, int]] = {}
    for turn in range(args.rounds + 1):
        for peer, python in pythons.items():
            if python is None or (turn and peer.name not in walls):
                continue
            work = folder / f"{peer.name}-{turn}"
            sampler = Sampler(peer, python, url, folder / "prompts.json", args.in_flight, work)
            if turn < args.rounds:
                wall = timed(sampler, args.limit_s)
                if wall is not None:
                    walls.setdefault(peer.name, []).append(wall)
            else:
                lost[peer.name] = killed(sampler, prompts, args.limit_s) or {}
    floor = args.seconds * -(-args.prompts // args.in_flight)
    print(
        f"{args.prompts} prompts, {args.in_flight} in flight, {args.seconds:g} s an answer:"
        f" {floor:g} s at least"
    )
    heads = ["answered before the kill", "paid twice", "missing", "came to an end"]
    print(f"{'':12}{'wall s':>8}" + "".join(f"{head:>{len(head) + 3}}" for head in heads))
    medians = {name: statistics.median(values) for name, values in walls.items()}
    for name, wall in medians.items():
        row = "".join(f"{lost[name].get(head, -1):>{len(head) + 3}}" for head in heads)
        print(f"{name:12}{wall:8.1f}{row}")
    rivals = [wall for name, wall in medians.items() if name != "distill"]
    if not rivals or "distill" not in medians:
        sys.exit("no peer could be run: there is no ratio")
    print(f"peers ratio={medians['distill'] / min(rivals):.2f} goal={GOAL:g}")


if __name__ == "__main__":
    main()
