"""A small server of the OpenAI kind on 127.0.0.1, in a thread: it answers what a test tells it.

with FakeServer(lambda request: stream("<think>a</think>b")) as server:
    teacher = OpenAITeacher("m", base_urls=[server.url])
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass(frozen=True)
class Asked:
    """A request that arrived. `body` is None for a GET."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any] | None


@dataclass(frozen=True)
class Reply:
    """What to send back. `chunks` are written one by one, floats between them are pauses (s)."""

    status: int = 200
    chunks: Sequence[bytes | float] = ()
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
    """A stream of the given chunks (dicts, raw bytes, or pauses in seconds)."""
    out: list[bytes | float] = [b": keep-alive\n\n"]
    for payload in payloads:
        if isinstance(payload, bytes | float):
            out.append(payload)
        else:
            out += [pause, f"data: {json.dumps(payload, ensure_ascii=False)}\n\n".encode()]
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
    """Serves `answer` for every POST, and a list of `models` at /v1/models (None: 404)."""

    def __init__(self, answer: Answerer, models: Sequence[str] | None = ("m",)) -> None:
        self.answer = answer
        self.models = models
        self.asked: list[Asked] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = Asked(self.path, dict(self.headers), None)
                if outer.models is None or not self.path.endswith("/models"):
                    self.send(error(404))
                elif reply := outer.greet(asked):
                    self.send(reply)
                else:
                    self.send(as_json({"data": [{"id": name} for name in outer.models]}))

            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                asked = Asked(self.path, dict(self.headers), json.loads(self.rfile.read(length)))
                outer.asked.append(asked)
                self.send(outer.answer(asked))

            def send(self, reply: Reply) -> None:
                self.send_response(reply.status)
                self.send_header("content-type", reply.kind)
                for name, value in reply.headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                for part in reply.chunks:
                    if isinstance(part, bytes):
                        self.wfile.write(part)
                    else:
                        time.sleep(part)

            def log_message(self, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 256
            daemon_threads = True

            def handle_error(self, *args: Any) -> None:
                """A client that hangs up is part of some tests."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def greet(self, asked: Asked) -> Reply | None:
        """A refusal of /models, or None for the list."""
        return None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
