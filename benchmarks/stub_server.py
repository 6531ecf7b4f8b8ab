"""A server of the OpenAI kind that streams fixed chunks at a fixed pace, as cheaply as Python can.

    python -m benchmarks.stub_server --chunks 64 --seconds 2      prints its port

It costs a client what a real server costs it, and computes nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHUNK = {
    "id": "chatcmpl-4f1c7a2b9d3e4c5f8a6b7c8d9e0f1a2b",
    "object": "chat.completion.chunk",
    "created": 1764000000,
    "model": "stub",
}
WORD = " wait"


def chunks_of(count: int) -> list[bytes]:
    """A whole answer as vLLM streams one: a role, one token a chunk, a finish, the usage."""

    def choice(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        row = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**CHUNK, "choices": [{**row, "token_ids": None}]}

    rows: list[dict[str, Any]] = [choice({"role": "assistant", "content": ""})]
    rows += [choice({"content": WORD})] * count
    rows += [choice({"content": ""}, "stop")]
    usage = {"prompt_tokens": 20, "completion_tokens": count, "total_tokens": 20 + count}
    rows += [{**CHUNK, "choices": [], "usage": usage}]
    events = [f"data: {json.dumps(row)}\n\n".encode() for row in rows] + [b"data: [DONE]\n\n"]
    return [b"%x\r\n%s\r\n" % (len(event), event) for event in events]


class Stub(asyncio.Protocol):
    """One connection: answers every POST with the same chunks, spread over `seconds`."""

    def __init__(self, chunks: list[bytes], seconds: float) -> None:
        self.chunks, self.pause = chunks, seconds / len(chunks)
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        if head.startswith(b"GET"):
            self.buffer = body
            listed = b'{"data":[{"id":"stub"}]}'
            self._head(b"application/json", b"content-length: %d" % len(listed))
            self.transport.write(listed)
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(body) >= length:
            self.buffer = body[length:]
            self._head(b"text/event-stream", b"transfer-encoding: chunked")
            self.loop.call_later(self.pause, self._next, 0)

    def _head(self, kind: bytes, framing: bytes) -> None:
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n%s\r\n\r\n" % (kind, framing))

    def _next(self, number: int) -> None:
        if self.transport.is_closing():
            return
        if number == len(self.chunks):
            self.transport.write(b"0\r\n\r\n")
            return
        self.transport.write(self.chunks[number])
        self.loop.call_later(self.pause, self._next, number + 1)


async def serve(chunks: int, seconds: float) -> None:
    """Serve until killed; prints the port first."""
    loop, rows = asyncio.get_running_loop(), chunks_of(chunks)
    server = await loop.create_server(lambda: Stub(rows, seconds), "127.0.0.1", 0, backlog=8192)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def running(chunks: int, seconds: float) -> Iterator[str]:
    """The base URL of a stub server in a process of its own, for as long as the block runs."""
    command = [sys.executable, "-m", "benchmarks.stub_server"]
    command += ["--chunks", str(chunks), "--seconds", str(seconds)]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0)
    args = parser.parse_args()
    asyncio.run(serve(args.chunks, args.seconds))


if __name__ == "__main__":
    main()
