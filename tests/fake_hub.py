"""A Hugging Face hub of sixty lines: the calls that pushing and fetching make, over real HTTP.

`refuse` maps a part of a path to an HTTP status: requests with it get that status, `times` at most.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """`repos`: name -> {"private", "tags", "files": {path: bytes}}; `asked`: the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.refuse: dict[str, int] = {}
        self.times = 1000

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, content: Any = None, **headers: str) -> None:
        data = json.dumps(content if content is not None else {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def handle_any(self) -> None:
        hub, body = self.server, self.body()
        hub.asked.append(f"{self.command} {self.path}")
        for part, status in hub.refuse.items():
            if part in self.path and hub.times > 0:
                hub.times -= 1
                more = {"X-Error-Code": "GatedRepo"} if status == 403 else {}
                self.answer(status, {"error": "refused by the test"}, **more)
                return
        self.serve(hub, body)

    do_GET = do_POST = do_PUT = do_HEAD = handle_any

    def serve(self, hub: Hub, body: bytes) -> None:
        path = self.path.partition("?")[0]
        if path == "/api/whoami-v2":
            self.answer(200, {"name": "me", "type": "user", "orgs": []})
        elif path == "/api/repos/create":
            self.create(hub, json.loads(body))
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = ["lfs" if name.endswith(".safetensors") else "regular" for name in names]
            files = [
                {"path": n, "uploadMode": m, "shouldIgnore": False}
                for n, m in zip(names, modes, strict=True)
            ]
            self.answer(200, {"files": files})
        elif path.endswith("/objects/batch"):
            self.answer(200, {"transfer": "basic", "objects": self.batch(hub, json.loads(body))})
        elif path.startswith("/blob/"):
            hub.blobs[path.removeprefix("/blob/")] = body
            self.answer(200)
        elif "/commit/" in path:
            self.commit(hub, path, body)
        elif path.startswith("/api/") and len(path.split("/")) in (5, 7):
            self.info(hub, "/".join(path.split("/")[3:5]))
        else:
            self.answer(404, {"error": "not found"}, X_Error_Code="RepoNotFound")

    def create(self, hub: Hub, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in hub.repos:
            self.answer(409, {"error": "You already created this model repo"})
            return
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        hub.repos[name] = {"private": private, "tags": [], "files": {}}
        prefix = "datasets/" if asked.get("type") == "dataset" else ""
        self.answer(200, {"url": f"{hub.url}/{prefix}{name}", "name": name})

    def batch(self, hub: Hub, asked: dict[str, Any]) -> list[dict[str, Any]]:
        found = []
        for one in asked["objects"]:
            entry = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in hub.blobs:
                entry["actions"] = {"upload": {"href": f"{hub.url}/blob/{one['oid']}"}}
            found.append(entry)
        return found

    def commit(self, hub: Hub, path: str, body: bytes) -> None:
        kind, name = path.split("/")[2], "/".join(path.split("/")[3:5])
        repo = hub.repos[name]
        for line in body.decode().splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "file":
                repo["files"][value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                repo["files"][value["path"]] = hub.blobs[value["oid"]]
        if b"distill" in repo["files"].get("README.md", b""):
            repo["tags"] = ["distill"]
        where = f"{hub.url}/{'datasets/' if kind == 'datasets' else ''}{name}/commit/{'0' * 40}"
        told = {"commitOid": "0" * 40, "commitUrl": where, "pullRequestUrl": None}
        self.answer(200, told)

    def info(self, hub: Hub, name: str) -> None:
        if name not in hub.repos:
            self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return
        repo = hub.repos[name]
        siblings = [{"rfilename": file} for file in repo["files"]]
        told = {"id": name, "private": repo["private"], "tags": repo["tags"], "sha": "0" * 40}
        self.answer(200, told | {"siblings": siblings})


@contextmanager
def hub() -> Iterator[Hub]:
    """A hub at `url` until the end of the block."""
    server = Hub()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
