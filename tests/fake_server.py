"""A small server of the OpenAI kind on 127.0.0.1: it answers what a test tells it, faults included.

with FakeServer(lambda request: stream("<think>a</think>b")) as server:
    teacher = OpenAITeacher("m", base_urls=[server.url])

It runs on asyncio in a thread of its own, or as a process (`python -m tests.fake_server`), where
it does sums by prompt and seed and spoils a share of its answers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True)
class Asked:
    """A request that arrived. `body` is None for a GET."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any] | None


RESET, CLOSE = "reset", "close"
"""In `Reply.chunks`: end the connection here, with a RST or with a FIN, the answer unfinished."""


@dataclass(frozen=True)
class Reply:
    """What to send back. `chunks` are written one by one, floats between them are pauses (s)."""

    status: int = 200
    chunks: Sequence[bytes | float | str] = ()
    kind: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


Answerer = Callable[[Asked], Reply]


def as_json(body: Any, status: int = 200, **headers: str) -> Reply:
    return Reply(status, [json.dumps(body).encode()], headers=headers)


def error(status: int, message: str = "no", **headers: str) -> Reply:
    return as_json({"error": {"message": message, "code": status}}, status, **headers)


def chunk(delta: Any = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {"id": "x", "model": "served", "system_fingerprint": "fp1", "choices": choices, **more}


def sse(payloads: Sequence[Any], *, done: bool = True, pause: float = 0.0) -> Reply:
    """A stream of the given chunks (dicts, raw bytes, RESET or CLOSE, or pauses in seconds)."""
    out: list[bytes | float | str] = [b": keep-alive\n\n"]
    for payload in payloads:
        if isinstance(payload, bytes | float | str):
            out.append(payload)
        else:
            text = json.dumps(payload, ensure_ascii=False)
            if re.search("[\ud800-\udfff]", text):
                text = json.dumps(payload)  # half a pair travels escaped
            out += [pause, f"data: {text}\n\n".encode()]
    if done:
        out.append(b"data: [DONE]\n\n")
    return Reply(200, out, "text/event-stream; charset=utf-8")


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion}


def stream(
    content: str = "", reasoning: str = "", *, name: str = "reasoning_content", end: str = "stop"
) -> Reply:
    """A whole streamed chat answer, three characters a chunk."""
    pieces = [{name: reasoning[i : i + 3]} for i in range(0, len(reasoning), 3)]
    pieces += [{"content": content[i : i + 3]} for i in range(0, len(content), 3)]
    chunks = [chunk({"role": "assistant", "content": ""}), *map(chunk, pieces), chunk({}, end)]
    return sse([*chunks, chunk(usage=usage(5, len(pieces)))])


class FakeServer:
    """Serves `answer` for every POST, `models` at /v1/models (None: 404), and /health.

    `asked` are the POSTs that came, `most` how many were answered at once.
    """

    def __init__(
        self, answer: Answerer, models: Sequence[str] | None = ("m",), port: int = 0
    ) -> None:
        self.answer = answer
        self.models = models
        self.healthy: bool | None = True
        self.asked: list[Asked] = []
        self.checked: list[str] = []
        self.port = port
        self.now = self.most = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._ready = threading.Event()

    def greet(self, asked: Asked) -> Reply | None:
        """A refusal of /models, or None for the list."""
        return None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self._ready.clear()
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *args: object) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def serve(self) -> None:
        """Serve until stopped; every connection still open is reset then."""
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(
            self._talk, "127.0.0.1", self.port, limit=1 << 24, backlog=4096
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        # A client that hangs up is part of some tests.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await self._serve_one(reader, writer):
                pass
        self._writers.discard(writer)
        writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ", 2)
        headers = {name.title(): value for name, _, value in (h.partition(": ") for h in head[1:])}
        length = int(headers.get("Content-Length", 0))
        body = json.loads(await reader.readexactly(length)) if length else None
        asked = Asked(path, headers, body)
        if method != "POST":
            self.checked.append(path)
            return await self._send(writer, self._get(asked))
        self.asked.append(asked)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await self._send(writer, self.answer(asked))
        finally:
            self.now -= 1

    def _get(self, asked: Asked) -> Reply:
        if asked.path == "/health" and self.healthy is not None:
            return Reply(200 if self.healthy else 503)
        if self.models is None or not asked.path.endswith("/models"):
            return error(404)
        return self.greet(asked) or as_json({"data": [{"id": name} for name in self.models]})

    async def _send(self, writer: asyncio.StreamWriter, reply: Reply) -> bool:
        """Send a reply in chunked encoding; False where the connection is at its end."""
        lines = [f"HTTP/1.1 {reply.status} X", "transfer-encoding: chunked"]
        lines += [f"content-type: {reply.kind}"] if reply.kind else []
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in reply.headers.items()]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        for part in reply.chunks:
            if part == RESET:
                writer.transport.abort()
                return False
            if part == CLOSE:
                return False
            if isinstance(part, bytes):
                if part:
                    writer.write(b"%x\r\n%s\r\n" % (len(part), part))
                await writer.drain()
            elif part:
                await asyncio.sleep(float(part))
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


def solve(asked: Asked) -> Reply:
    """The answer to `a + b` by prompt and seed alone: right, wrong or cut off."""
    assert asked.body
    question = asked.body["messages"][-1]["content"]
    a, b = map(int, re.findall(r"\d+", question)[:2])
    dice = random.Random(hashlib.sha256(f"{question}/{asked.body['seed']}".encode()).digest())
    kind = dice.choices(["right", "wrong", "cut"], [6, 3, 1])[0]
    thought = " ".join(f"step {i}: {dice.randrange(1000)}" for i in range(dice.randrange(2, 20)))
    if kind == "cut":
        return stream("", thought, end="length")
    return stream(f"\\boxed{{{a + b + (kind == 'wrong')}}}", thought)


def spoiled(reply: Reply, dice: random.Random) -> Reply:
    """An answer with a fault in it, of any kind that servers have."""
    chunks = list(reply.chunks)
    half = chunks[: len(chunks) // 2]
    return dice.choice(
        [
            Reply(200, [RESET], reply.kind),
            Reply(200, [*half, RESET], reply.kind),
            Reply(200, [*half, CLOSE], reply.kind),
            Reply(200, half, reply.kind),
            Reply(200, [*half, b'data: {"choi'], reply.kind),
            Reply(200, [*half, 30.0], reply.kind),
            Reply(200, [b"<html><h1>Bad gateway</h1></html>"], "text/html"),
            Reply(200, [b"<html>"], "text/html", {"x": "y"}),
            as_json({"choices": []}),
            stream(""),
            error(500, "CUDA error"),
            error(502, "bad gateway"),
            error(503, "loading", retry_after="0"),
            error(429, "slow down", retry_after="0.1"),
            sse([chunk({"content": "a"}), {"error": {"message": "engine died", "code": 500}}]),
            stream("half", end="abort"),
        ]
    )


def main() -> None:
    """Serve until killed. Prints the port once connections are taken."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--pause", type=float, default=0.0)
    args = parser.parse_args()
    dice = random.Random()

    def answer(asked: Asked) -> Reply:
        reply = solve(asked)
        if args.pause:
            chunks = list(reply.chunks)
            slow = [*chunks[:2], args.pause * dice.uniform(0.5, 1.5), *chunks[2:]]
            reply = Reply(reply.status, slow, reply.kind)
        return spoiled(reply, dice) if dice.random() < args.faults else reply

    asyncio.run(FakeServer(answer, port=args.port).serve())


if __name__ == "__main__":
    main()
