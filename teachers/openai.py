"""The engine for any server of the OpenAI kind: vLLM, SGLang, llama.cpp, or a hosted API.

Answers are streamed, so that a long chain of thought is told apart from a dead connection.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import httpx

from distill.errors import RecipeError, TeacherError
from distill.protocols import Capabilities, Completion, OnTokens, Request
from distill.teachers import catalog, options
from distill.teachers.chat import Tags, as_tags
from distill.teachers.refusals import Refusals, room_left, unreachable
from distill.teachers.stream import Answer, events, parse

log = logging.getLogger(__name__)

CONNECT_S = 20.0
"""Seconds to wait for a connection."""

REST_S = 15.0
"""Seconds for which a server that broke a connection is asked last."""


@dataclass(slots=True)
class Server:
    """One base URL, and what is known of its load."""

    url: str
    under_way: int = 0
    rests_until: float = 0.0


class OpenAITeacher:
    """Samples over HTTP: chats at `/chat/completions`, text and token ids at `/completions`.

    `base_urls` are equal servers (`http://host:8000/v1`); each request goes to the least
    loaded. The key is read from the environment variable `api_key_env` and sent only where it
    is set. `timeout_s` is the longest silence between two bytes. `served_name` is the model's
    name on the server where it differs. `prompt_opens` says that an answer without a reasoning
    field starts inside the thinking. `extra_body` is merged into every request body, where
    null takes a key away; `max_tokens_field` may be `max_completion_tokens`;
    `return_token_ids` asks a vLLM server for ids. `capabilities` corrects what is promised,
    such as `{seed: false}`: what a server does not honour is not sent.

    The weights behind a URL cannot be seen, so `identity` is the model's name with the
    revision and quantisation that the recipe declares.
    """

    def __init__(
        self,
        model: str,
        *,
        base_urls: Sequence[str],
        revision: str | None = None,
        quantization: str | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        timeout_s: float = 1800,
        served_name: str | None = None,
        tags: Tags | None = None,
        prompt_opens: bool = False,
        extra_body: Mapping[str, Any] | None = None,
        max_tokens_field: str = "max_tokens",
        return_token_ids: bool = False,
        capabilities: Mapping[str, Any] | None = None,
    ) -> None:
        if not model:
            raise RecipeError("no model was given", "set teacher.model to its name on the server")
        urls = [base_urls] if isinstance(base_urls, str) else list(base_urls)
        if not urls:
            raise RecipeError(
                f"no server was given for {model}",
                "set teacher.base_urls, e.g. [http://localhost:8000/v1]",
            )
        self.model = model
        self.served_models: tuple[str, ...] = ()
        self._name = served_name or model
        self._servers = [Server(_base(url)) for url in urls]
        self._key_env = api_key_env
        self._timeout_s = timeout_s
        self._tags = as_tags(tags)
        self._prompt_opens = prompt_opens
        self._extra = dict(extra_body or {})
        self._max_tokens_field = max_tokens_field
        self._return_ids = return_token_ids
        self._refusals = Refusals(model, api_key_env)
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()
        promised = {"token_ids": return_token_ids, **(capabilities or {})}
        try:
            self.capabilities = Capabilities(**promised)
        except TypeError:
            known = ", ".join(Capabilities.__dataclass_fields__)
            raise RecipeError(f"unknown capability in {promised}", f"known: {known}") from None
        body = json.dumps(self._extra, sort_keys=True) if self._extra else ""
        self.identity = (
            f"openai:{model}@{revision or 'undeclared'}"
            + (f"+{quantization}" if quantization else "")
            + (f"+body:{hashlib.sha256(body.encode()).hexdigest()[:8]}" if body else "")
        )

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """The engine of a recipe's teacher section; the catalog fills in what it knows."""
        entry = catalog.find(spec.get("model", ""))
        wanted = dict(spec.get("options") or {})
        wanted.setdefault("tags", entry.tags)
        wanted.setdefault("prompt_opens", bool(entry.prompt_opens))
        wanted["capabilities"] = {**entry.capabilities, **(wanted.get("capabilities") or {})}
        arguments = {
            "model": entry.model,
            "base_urls": spec.get("base_urls") or entry.base_urls,
            "revision": spec.get("revision"),
            "quantization": spec.get("quantization"),
            "api_key_env": spec.get("api_key_env") or "OPENAI_API_KEY",
        }
        if spec.get("timeout_s"):
            arguments["timeout_s"] = spec["timeout_s"]
        return options.build(cls, arguments, wanted)

    async def open(self) -> None:
        """See that a server answers and knows the key. Raises a fatal TeacherError if none."""
        self._client = httpx.AsyncClient(
            headers=self._headers(),
            timeout=httpx.Timeout(self._timeout_s, connect=CONNECT_S, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            follow_redirects=True,
        )
        self._loop = asyncio.get_running_loop()
        found = await asyncio.gather(*(self._greet(server) for server in self._servers))
        errors = [answer for answer in found if isinstance(answer, TeacherError)]
        if len(errors) == len(self._servers):
            raise errors[0]
        for error in errors:
            log.warning("%s; the other servers are used", error.message)
        lists = [answer for answer in found if not isinstance(answer, TeacherError)]
        self.served_models = tuple(dict.fromkeys(name for names in lists for name in names))
        if self.served_models and self._name not in self.served_models:
            shown = ", ".join(self.served_models[:8])
            log.warning("the server does not list '%s'; it has: %s", self._name, shown)

    async def close(self) -> None:
        """Close all connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def complete(self, request: Request, on_tokens: OnTokens | None = None) -> Completion:
        """One answer. Raises TeacherError: `retry` for what may pass, `fatal` for what will not."""
        client = await self._ready()
        path, body = self._body(request)
        server = self._pick()
        server.under_way += 1
        try:
            answer = Answer()
            refused = await self._post(client, server, path, body, answer, on_tokens)
            flags: tuple[str, ...] = ()
            if refused:
                room = room_left(refused, body[self._max_tokens_field])
                if room is None:
                    raise TeacherError(f"{request.key}: {refused}")
                # Servers refuse a limit that the context cannot hold after the prompt.
                body[self._max_tokens_field] = room
                refused = await self._post(client, server, path, body, answer, on_tokens)
                if refused:
                    raise TeacherError(f"{request.key}: {refused}")
                flags = ("context",)
        finally:
            server.under_way -= 1
        done = answer.completion(self._tags, prompt_opens=self._prompt_opens)
        if on_tokens is not None and done.usage.completion_tokens > answer.counted:
            on_tokens(done.usage.completion_tokens - answer.counted)
        self._refusals.succeeded()
        return dataclasses.replace(done, flags=(*done.flags, *flags))

    async def _ready(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._opening, self._loop = asyncio.Lock(), loop
            self._client = None
        async with self._opening:
            if self._client is None:
                await self.open()
        assert self._client is not None
        return self._client

    async def _greet(self, server: Server) -> list[str] | TeacherError:
        """The models that a server lists; its TeacherError where it is of no use."""
        assert self._client is not None
        try:
            response = await self._client.get(f"{server.url}/models", timeout=CONNECT_S)
        except httpx.TransportError as error:
            server.rests_until = time.monotonic() + REST_S
            return unreachable(server.url, error)
        if response.status_code in (401, 403):
            return self._refusals.key(response.status_code, response.text)
        try:
            rows = response.json().get("data") or []
            return [str(row["id"]) for row in rows]
        except (ValueError, AttributeError, KeyError, TypeError):
            # Not every server has the list; what matters is that it answers requests.
            log.info("%s/models: HTTP %d and no list", server.url, response.status_code)
            return []

    async def _post(
        self,
        client: httpx.AsyncClient,
        server: Server,
        path: str,
        body: Mapping[str, Any],
        answer: Answer,
        on_tokens: OnTokens | None,
    ) -> str:
        """Fill `answer`. Returns the server's words where the context is too small, else ""."""
        try:
            async with client.stream("POST", server.url + path, json=body) as response:
                if response.status_code >= 300:
                    await response.aread()
                    return await self._refusals.judge(response, client, server.url)
                kind = response.headers.get("content-type", "")
                if "event-stream" in kind:
                    async for payload in events(response.aiter_bytes()):
                        answer.feed(payload, on_tokens)
                else:
                    answer.take(parse(await response.aread()))
                    answer.done = True
        except httpx.TimeoutException as error:
            server.rests_until = time.monotonic() + REST_S
            raise TeacherError(
                f"{server.url}: {type(error).__name__}, silent for {self._timeout_s:g} s",
                "raise sampling.timeout_s if the server queues requests for longer",
                retry=True,
            ) from None
        except httpx.TransportError as error:
            server.rests_until = time.monotonic() + REST_S
            raise TeacherError(
                f"{server.url}: {error or type(error).__name__}", retry=True
            ) from None
        return ""

    def _body(self, request: Request) -> tuple[str, dict[str, Any]]:
        params, prompt = request.params, request.prompt
        body: dict[str, Any] = {
            "model": self._name,
            self._max_tokens_field: params.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.capabilities.sampling:
            body |= {"temperature": params.temperature, "top_p": params.top_p}
            if params.top_k is not None:
                body["top_k"] = params.top_k
        if params.stop:
            body["stop"] = list(params.stop)
        if request.seed is not None and self.capabilities.seed:
            body["seed"] = request.seed
        if self._return_ids:
            body["return_token_ids"] = True
        ids = not isinstance(prompt, str) and all(isinstance(t, int) for t in prompt)
        if request.prefix_ids and not ids:
            raise TeacherError(
                f"{request.key}: a server can go on from tokens only if the prompt is token ids"
            )
        if isinstance(prompt, str):
            body["prompt"] = prompt
        elif ids:
            body["prompt"] = [*prompt, *(request.prefix_ids or ())]
        else:
            body["messages"] = [dict(m) for m in prompt]  # type: ignore[arg-type]
        body = {k: v for k, v in {**body, **self._extra}.items() if v is not None}
        return ("/completions" if "prompt" in body else "/chat/completions"), body

    def _pick(self) -> Server:
        now = time.monotonic()
        # The order among equals turns, so that idle servers share.
        self._servers.append(self._servers.pop(0))
        return min(self._servers, key=lambda s: (s.rests_until > now, s.under_way))

    def _headers(self) -> dict[str, str]:
        key = os.environ.get(self._key_env, "").strip()
        return {"Authorization": f"Bearer {key}"} if key else {}


def _base(url: str) -> str:
    """A base URL without a trailing slash, or with what people often paste behind it."""
    for tail in ("/chat/completions", "/completions", "/models"):
        url = url.rstrip("/").removesuffix(tail)
    if not url.startswith(("http://", "https://")):
        raise RecipeError(f"'{url}' is no URL", "e.g. http://localhost:8000/v1")
    return url
