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
from collections.abc import Mapping, Sequence
from typing import Any, Self

import httpx

from distill.errors import RecipeError, TeacherError
from distill.protocols import Capabilities, Completion, OnTokens, Request
from distill.teachers import catalog, options
from distill.teachers.chat import Tags, as_tags
from distill.teachers.refusals import Refusals, room_left, unreachable
from distill.teachers.resume import Resumer
from distill.teachers.servers import Lease, ServerPool, Unreachable
from distill.teachers.stream import Answer
from distill.teachers.wire import Wire

log = logging.getLogger(__name__)

INTERVAL = 16
"""Tokens of a chunk where no parser of the server's has to cope with several at once."""

CONTEXT = "context"
"""Flag of an answer that ended where the server's context did."""


class OpenAITeacher:
    """Samples over HTTP: chats at `/chat/completions`, text and token ids at `/completions`.

    `base_urls` are equal servers (`http://host:8000/v1`); each request goes to the least
    loaded (`ServerPool`), and with all of them down for `outage_s` the run ends. The key is read
    from the environment variable `api_key_env` and sent only where it is set. `timeout_s` is the
    longest wait for a first token, `silence_s` for each after it. `served_name` is the model's
    name on the server where it differs. `prompt_opens` says that an answer without a reasoning
    field starts inside the thinking. `extra_body` is merged into every request body, where
    null takes a key away; `max_tokens_field` may be `max_completion_tokens`;
    `return_token_ids` asks a vLLM server for ids, so that cut-off answers can be continued.
    `stream_interval` is the number of tokens that a vLLM server puts into one chunk: reading them
    singly is what costs this process most. By default 16 where prompts are text or token ids.
    `capabilities` corrects what is promised, such as `{seed: false}` (what a server does not
    honour is not sent) or `{prefill: true}` (it goes on from text).

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
        silence_s: float = 120,
        outage_s: float = 1800,
        served_name: str | None = None,
        tags: Tags | None = None,
        prompt_opens: bool = False,
        extra_body: Mapping[str, Any] | None = None,
        max_tokens_field: str = "max_tokens",
        return_token_ids: bool = False,
        stream_interval: int | None = None,
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
        self._urls = [_base(url) for url in urls]
        self._key_env = api_key_env
        self._timeout_s, self._silence_s, self._outage_s = timeout_s, silence_s, outage_s
        self._tags = as_tags(tags)
        self._prompt_opens = prompt_opens
        self._extra = dict(extra_body or {})
        self._max_tokens_field = max_tokens_field
        self._return_ids = return_token_ids
        self._interval, self._vllm = stream_interval, False
        self._context: int | None = None
        self._refusals = Refusals(model, api_key_env)
        self._wire: Wire | None = None
        self._resumer: Resumer | None = None
        self._pool = self._new_pool(None)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()
        self._told_ids = False
        promised = {
            "token_ids": return_token_ids,
            "prefix": return_token_ids,
            **(capabilities or {}),
        }
        self.capabilities = _capabilities(promised)
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
        for name in ("timeout_s", "silence_s"):
            if spec.get(name):
                arguments[name] = spec[name]
        return options.build(cls, arguments, wanted)

    async def open(self) -> None:
        """See that a server answers and knows the key. Raises a fatal TeacherError if none."""
        await self.close()
        self._loop = asyncio.get_running_loop()
        wire = Wire(self._headers(), self._timeout_s, self._silence_s, self._refusals)
        self._wire, self._pool = wire, self._new_pool(wire)
        self._resumer = Resumer(wire, self._name, self._tags)
        servers = self._pool.servers
        found = await asyncio.gather(*(self._greet(wire, server.url) for server in servers))
        errors = [answer for answer in found if isinstance(answer, TeacherError)]
        if len(errors) == len(servers):
            for server, error in zip(servers, errors, strict=True):
                server.healthy, server.why = False, error.message  # for the live view
            await self.close()
            raise errors[0]
        lists = [answer for answer in found if not isinstance(answer, TeacherError)]
        self.served_models = tuple(dict.fromkeys(name for names in lists for name in names))
        self._refusals.served = self.served_models
        known = self._name in self.served_models
        if self.served_models and not known:
            shown = ", ".join(self.served_models[:8])
            log.warning("the server does not list '%s'; it has: %s", self._name, shown)
        for server, answer in zip(servers, found, strict=True):
            if isinstance(answer, TeacherError):
                # A key that is refused stays refused; nobody there may come.
                for_good = not isinstance(answer, Unreachable)
                self._pool.eject(server, answer.message, for_good=for_good)
            elif known and answer and self._name not in answer:
                self._pool.eject(server, f"it does not list '{self._name}'", for_good=True)

    async def close(self) -> None:
        """Close all connections."""
        wire, self._wire = self._wire, None
        if wire is not None and self._loop is asyncio.get_running_loop():
            await self._pool.close()
            await wire.close()

    def stats(self) -> dict[str, Any]:
        """`{"servers": [...], "waiting": n}`: how each server does, for the live view.

        Of each server `url`, `up`, `limit` (requests at once, None while it has not complained),
        `in_flight`, `tokens` (outstanding, as expected), `done`, `failed`, `ejected` (how often).
        """
        return self._pool.stats()

    async def complete(self, request: Request, on_tokens: OnTokens | None = None) -> Completion:
        """One answer. Raises TeacherError: `retry` for what may pass, `fatal` for what will not."""
        wire = await self._ready()
        body = self._body(request)
        answer, start = Answer(limit=request.params.max_tokens), None
        async with self._pool.lease(request.params.max_tokens) as lease:
            if request.prefix_ids or request.prefix_text:
                assert self._resumer is not None
                start = await self._resumer.start(request, lease.server.url, body)
                body.update(start.fields)
                if "prompt" in body:
                    body.pop("messages", None)
            flags = await self._post(wire, lease, request.key, body, answer, on_tokens)
            if start is None:
                done = answer.completion(self._tags, prompt_opens=self._prompt_opens)
            else:
                done = start.completion(answer, self._tags)
            lease.got = max(lease.got, done.usage.completion_tokens)
        if on_tokens is not None and done.usage.completion_tokens > answer.counted:
            on_tokens(done.usage.completion_tokens - answer.counted)
        self._refusals.succeeded()
        self._see_ids(answer)
        return dataclasses.replace(done, flags=(*done.flags, *flags)) if flags else done

    async def _post(
        self,
        wire: Wire,
        lease: Lease,
        key: str,
        body: dict[str, Any],
        answer: Answer,
        on_tokens: OnTokens | None,
    ) -> tuple[str, ...]:
        """Fill `answer`; the flag `context` if the limit had to be lowered to what fits."""
        path = "/completions" if "prompt" in body else "/chat/completions"
        interval = self._interval or (INTERVAL if self._vllm and "prompt" in body else None)
        if interval:
            body.setdefault("stream_interval", interval)
        flags: tuple[str, ...] = ()
        asked = body.get(self._max_tokens_field)
        if self._context and asked and asked > self._context:
            body[self._max_tokens_field], flags = self._context, (CONTEXT,)
        while refused := await wire.post(lease, path, body, answer, on_tokens):
            # Servers refuse a limit that the context cannot hold after the prompt.
            room = room_left(refused, body.get(self._max_tokens_field) or 0)
            if room is None:
                raise TeacherError(f"{key}: {refused}")
            body[self._max_tokens_field], flags = room, (CONTEXT,)
        used = answer.usage.prompt_tokens + answer.usage.completion_tokens
        if self._context and used >= self._context:
            flags = (CONTEXT,)  # newer servers lower the limit themselves
        return flags if answer.finish_reason == "length" else ()

    async def _ready(self) -> Wire:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._opening, self._loop = asyncio.Lock(), loop
            self._wire = None
        if self._wire is None:
            async with self._opening:
                if self._wire is None:
                    await self.open()
        assert self._wire is not None
        return self._wire

    def _new_pool(self, wire: Wire | None) -> ServerPool:
        async def well(url: str) -> bool:
            return wire is not None and await wire.well(url)

        # Half of the patience is the time to slow down, before the time-outs come.
        return ServerPool(self._urls, well, outage_s=self._outage_s, slow_s=self._timeout_s / 2)

    async def _greet(self, wire: Wire, url: str) -> list[str] | TeacherError:
        """The models that a server lists; its TeacherError where it is of no use."""
        try:
            response = await wire.call(f"{url}/models")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return unreachable(url, error)
        if response.status_code in (401, 403):
            return self._refusals.key(response.status_code, response.text)
        try:
            rows = response.json().get("data") or []
            self._vllm = self._vllm or any(row.get("owned_by") == "vllm" for row in rows)
            mine = [row.get("max_model_len") for row in rows if row["id"] == self._name]
            known = [n for n in (*mine, self._context) if isinstance(n, int) and n > 1]
            self._context = min(known, default=None)
            return [str(row["id"]) for row in rows]
        except (ValueError, AttributeError, KeyError, TypeError):
            # Not every server has the list; what matters is that it answers requests.
            log.info("%s/models: HTTP %d and no list", url, response.status_code)
            return []

    def _see_ids(self, answer: Answer) -> None:
        if self._return_ids and not answer.token_ids and not self._told_ids:
            self._told_ids = True
            log.warning(
                "%s returns no token ids, so what is cut off cannot be continued exactly: "
                "return_token_ids is for vLLM servers",
                self.model,
            )

    def _body(self, request: Request) -> dict[str, Any]:
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
        if isinstance(prompt, str):
            body["prompt"] = prompt
        elif all(isinstance(token, int) for token in prompt):
            body["prompt"] = list(prompt)
        else:
            body["messages"] = [dict(m) for m in prompt]  # type: ignore[arg-type]
        return {k: v for k, v in {**body, **self._extra}.items() if v is not None}

    def _headers(self) -> dict[str, str]:
        key = os.environ.get(self._key_env, "").strip()
        return {"Authorization": f"Bearer {key}"} if key else {}


def _capabilities(promised: Mapping[str, Any]) -> Capabilities:
    try:
        return Capabilities(**promised)
    except TypeError:
        known = ", ".join(Capabilities.__dataclass_fields__)
        raise RecipeError(f"unknown capability in {promised}", f"known: {known}") from None


def _base(url: str) -> str:
    """A base URL without a trailing slash, or with what people often paste behind it."""
    for tail in ("/chat/completions", "/completions", "/models"):
        url = url.rstrip("/").removesuffix(tail)
    if not url.startswith(("http://", "https://")):
        raise RecipeError(f"'{url}' is no URL", "e.g. http://localhost:8000/v1")
    return url
