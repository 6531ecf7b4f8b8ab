"""Stands in for `vllm serve`: python fake_vllm.py MODEL --port N [...], a real process that serves.

It answers /health, /v1/models and /v1/completions (streamed, with token ids that a request's
prompt and seed decide), writes its flags into its log, and like vLLM has a helper process that
would outlive it and ignores SIGTERM. `FAKE_START` decides how it starts: `die` (as for want of
memory), `die-again` (only after the first time), `hang`. A POST to /die ends it as a crash would.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HELPER = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\n"
    "while True: time.sleep(60)"
)
CONTEXT = 96


def answer(prompt: list[int], seed: int | None, count: int) -> list[int]:
    """`count` tokens of the alphabet of tests.char_models, the same for the same request."""
    digest = hashlib.sha256(repr((prompt[:8], seed)).encode()).digest()
    return [7 + digest[i % len(digest)] % 40 for i in range(count)]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/health":
            self.reply(b"")
        else:
            self.reply(json.dumps({"data": [{"id": "m", "max_model_len": CONTEXT}]}).encode())

    def do_POST(self) -> None:
        if self.path == "/die":
            os.kill(os.getpid(), signal.SIGKILL)
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for token in answer(body["prompt"], body.get("seed"), body["max_tokens"]):
            self.chunk({"index": 0, "text": chr(97 + token % 26), "token_ids": [token]})
            time.sleep(float(os.environ.get("FAKE_PACE", "0")))
        self.chunk({"index": 0, "text": "", "finish_reason": "length"})
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
        self.wfile.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def chunk(self, choice: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps({'model': 'm', 'choices': [choice]})}\n\n".encode())
        self.wfile.flush()

    def reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True

    def handle_error(self, *args: Any) -> None:
        """Clients that hang up are part of the tests."""


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("model")
    arguments.add_argument("--port", type=int, required=True)
    known, others = arguments.parse_known_args()
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    print(f"serving {known.model} with {others} on {gpus}", flush=True)
    helper = subprocess.Popen([sys.executable, "-S", "-c", HELPER], stdout=subprocess.PIPE)
    assert helper.stdout is not None
    helper.stdout.readline()
    print(f"helper {helper.pid}", flush=True)
    how = os.environ.get("FAKE_START", "")
    mark = Path(os.environ.get("FAKE_MARK", os.devnull) + f".{known.port}")
    if how == "die" or (how == "die-again" and mark.exists()):
        print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", flush=True)
        for number in range(30):
            print(f"  frame {number} of a long traceback", flush=True)
        print("RuntimeError: Engine core initialization failed.", flush=True)
        sys.exit(1)
    if how == "die-again":
        mark.touch()
    if how == "hang":
        time.sleep(600)
    Server(("127.0.0.1", known.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
