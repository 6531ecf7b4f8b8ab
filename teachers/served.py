"""The vllm engine as local servers: `teacher.replicas` starts them, this asks them.

Prompts are rendered and answers decoded here, exactly as the in-process engine does it; only
token ids go over the wire. So both are the same teacher: one identity, one pool of traces.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import httpx

from distill.errors import MissingExtra, RecipeError, TeacherError
from distill.protocols import Capabilities, Completion, OnTokens, Request
from distill.teachers import catalog, hub, options
from distill.teachers.chat import Chat, Tags, as_tags, as_template, load_tokenizer
from distill.teachers.openai import OpenAITeacher
from distill.teachers.replicas import Replicas, share_out, visible_gpus
from distill.teachers.vllm import identity_of

MULTIPLIES = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
"""Options whose product is the number of GPUs of one server."""

NEUTRAL = {
    "repetition_penalty": 1.0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "skip_special_tokens": False,
    "include_stop_str_in_output": True,
}
"""A server fills in what the model's generation_config.json says where a request says nothing. The
last two: only token ids are used, but an answer without any text would be taken for a fault, and a
continuation may well consist of the end token alone."""


class ServedVLLM:
    """Samples with `vllm serve` processes on this machine that live as long as this needs them.

    `replicas` is their number, or `auto` for as many as the visible GPUs bear. `python` is an
    interpreter that has vllm (default: this one); `serve_command` takes the place of
    `vllm serve` altogether. Logs go into `logs` (default: a temporary folder). A server may take
    `start_s` until it answers, and is started again at most `restarts` times an hour.
    `ignore_eos` samples every answer to its limit. The rest is as for `VLLMTeacher`: all other
    options are arguments of vLLM's engine.

    Raises MissingExtra where `python` has no vllm, RecipeError where the GPUs do not suffice.
    """

    def __init__(
        self,
        model: str,
        *,
        replicas: int | Literal["auto"] = "auto",
        revision: str | None = None,
        quantization: str | None = None,
        trust_remote_code: bool = False,
        chat_template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        tags: Tags | None = None,
        prompt_opens: bool | None = None,
        ignore_eos: bool = False,
        python: str | None = None,
        serve_command: Sequence[str] = (),
        logs: str | None = None,
        start_s: float = 1800.0,
        restarts: int = 3,
        timeout_s: float = 1800.0,
        silence_s: float = 120.0,
        **engine: Any,
    ) -> None:
        self._python = python or sys.executable
        if not serve_command and not _has_vllm(self._python):
            raise MissingExtra("vllm", "vllm", f"teacher.replicas ({self._python})")
        self._where = hub.locate(model, revision)
        self._template = as_template(chat_template)
        self._template_kwargs = dict(template_kwargs or {})
        self._tags, self._prompt_opens = as_tags(tags), prompt_opens
        self._trust = trust_remote_code
        invariant = os.environ.get("VLLM_BATCH_INVARIANT") == "1"
        self.capabilities = Capabilities(token_ids=True, prefix=True, deterministic=invariant)
        self.identity = identity_of(
            self._where, quantization, self._template, self._template_kwargs, engine, ignore_eos
        )
        gpus = visible_gpus()
        per_replica = math.prod(int(engine.get(name) or 1) for name in MULTIPLIES)
        devices = share_out(replicas, per_replica, gpus)
        if not gpus:
            engine.setdefault("enable_chunked_prefill", False)
        self._arguments: dict[str, Any] = {
            "load_format": "safetensors",
            **engine,
            "quantization": quantization,
            "revision": self._where.commit,
            "tokenizer_revision": self._where.commit,
            **({"trust_remote_code": True} if trust_remote_code else {}),
        }
        self._serve = list(serve_command) or [*_vllm(self._python), "serve"]
        self._replicas = Replicas(
            self._command,
            devices,
            environment=_environment(self._python, devices),
            logs=Path(logs) if logs else None,
            start_s=start_s,
            restarts=restarts,
            when_failed=self._when_failed,
        )
        body: dict[str, Any] = {**NEUTRAL, **({"ignore_eos": True} if ignore_eos else {})}
        self._client = OpenAITeacher(
            self._where.name,
            base_urls=[f"{url}/v1" for url in self._replicas.urls],
            api_key_env="",
            timeout_s=timeout_s,
            silence_s=silence_s,
            # Whether a server will come back is known here: it does not have to be guessed.
            outage_s=2 * start_s,
            return_token_ids=True,
            extra_body=body,
        )
        self._chat: Chat | None = None
        self._context: int | None = None
        self._kept = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()
        self._under_way: set[asyncio.Task[Completion]] = set()

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """The engine of a recipe's teacher section; the catalog fills in what it knows."""
        entry = catalog.find(spec.get("model", ""))
        wanted = dict(spec.get("options") or {})
        wanted.setdefault("tags", entry.tags)
        arguments = {
            "model": entry.model,
            "replicas": spec["replicas"],
            "revision": spec.get("revision"),
            "quantization": spec.get("quantization"),
            "trust_remote_code": bool(spec.get("trust_remote_code")),
        }
        arguments |= {key: spec[key] for key in ("timeout_s", "silence_s") if spec.get(key)}
        return options.build(cls, arguments, wanted)

    @property
    def notes(self) -> list[str]:
        """What happened to the servers, in sentences for the report."""
        return self._replicas.notes

    def stats(self) -> dict[str, Any]:
        """How each server does, for the live view; see `OpenAITeacher.stats`."""
        return self._client.stats()

    @contextmanager
    def kept(self) -> Iterator[Self]:
        """Keep the servers between one `open()` and the next: a load takes minutes."""
        self._kept += 1
        try:
            yield self
        finally:
            self._kept -= 1
            if not self._kept:
                self._replicas.stop()

    async def open(self) -> None:
        """Start the servers: minutes for a large model. Raises ModelError with the log's end."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._opening, self._loop = asyncio.Lock(), loop
        try:
            await asyncio.to_thread(self._replicas.start)
            if self._chat is None:
                self._context = await _context(self._replicas.urls[0])
                self._chat = await asyncio.to_thread(self._load_chat)
            await self._client.open()
        except BaseException:
            # Nobody closes what was never open, and the servers hold the GPUs.
            await asyncio.to_thread(self._replicas.stop)
            raise

    async def close(self) -> None:
        """Stop the servers, unless they are `kept`, and free the GPUs."""
        await self._client.close()
        if not self._kept:
            await asyncio.to_thread(self._replicas.stop)

    async def complete(self, request: Request, on_tokens: OnTokens | None = None) -> Completion:
        """One answer. Raises TeacherError, fatal once no server is left."""
        await self._ready()
        assert self._chat is not None
        turn = self._chat.turn(request, self._context)
        params = dataclasses.replace(
            request.params, max_tokens=turn.limit, top_k=request.params.top_k or 0
        )
        sent = Request(key=request.key, prompt=turn.ids, params=params, seed=request.seed)
        answer = await self._ask(sent, on_tokens)
        if answer.token_ids is None:
            raise TeacherError(
                f"{request.key}: the server returned no token ids",
                "replicas need a vLLM that knows `return_token_ids` (0.11 or later)",
                fatal=True,
            )
        if answer.finish_reason not in ("stop", "length", "repetition"):
            raise TeacherError(f"{request.key}: vLLM gave up ({answer.finish_reason})", retry=True)
        eos = {self._chat.tokenizer.eos_token_id}
        done = self._chat.completion(turn, answer.token_ids, answer.finish_reason, eos)
        return dataclasses.replace(done, fingerprint=answer.fingerprint)

    async def _ready(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._opening, self._loop = asyncio.Lock(), loop
        async with self._opening:
            if self._chat is None or not self._replicas.running:
                await self.open()
        if self._replicas.failure:
            raise TeacherError(self._replicas.failure, fatal=True)

    async def _ask(self, request: Request, on_tokens: OnTokens | None) -> Completion:
        task = asyncio.ensure_future(self._client.complete(request, on_tokens))
        self._under_way.add(task)
        try:
            return await task
        except (TeacherError, asyncio.CancelledError):
            current = asyncio.current_task()
            if self._replicas.failure and not (current and current.cancelling()):
                raise TeacherError(self._replicas.failure, fatal=True) from None
            raise
        finally:
            self._under_way.discard(task)

    def _when_failed(self) -> None:
        """Requests would wait for a server to come back: no server will. (The watcher's thread.)"""

        def cancel() -> None:
            for task in self._under_way:
                task.cancel()

        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(cancel)

    def _command(self, port: int) -> list[str]:
        source = self._where.source
        model = str(Path(source).resolve()) if Path(source).is_dir() else source
        served = ["--served-model-name", self._where.name, "--host", "127.0.0.1"]
        quiet = ["--disable-uvicorn-access-log"]
        return [*self._serve, model, *served, "--port", str(port), *quiet, *flags(self._arguments)]

    def _load_chat(self) -> Chat:
        where = self._where
        tokenizer = load_tokenizer(where.source, where.commit, trust_remote_code=self._trust)
        return Chat(
            tokenizer,
            where.name,
            tags=self._tags,
            template=self._template,
            template_kwargs=self._template_kwargs,
            prompt_opens=self._prompt_opens,
        )


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """Engine arguments as `vllm serve` takes them: `--max-model-len 4096 --no-enable-x`."""
    words: list[str] = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if not name.isidentifier():
            raise RecipeError(f"teacher.options: '{name}' is no engine argument")
        if value is True or value is False:
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, Mapping):
            words += [f"--{flag}", json.dumps(value)]
        elif isinstance(value, list | tuple):
            words += [f"--{flag}", *map(str, value)]
        elif value is not None:
            words += [f"--{flag}", str(value)]
    return words


async def _context(url: str) -> int | None:
    """Tokens that the served model holds, None where the server does not say."""
    # A proxy that the environment names has no business between us and this machine.
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        found = (await client.get(f"{url}/v1/models")).json()
    held = found["data"][0].get("max_model_len")
    return int(held) if held else None


def _has_vllm(python: str) -> bool:
    if python == sys.executable:
        return importlib.util.find_spec("vllm") is not None
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    try:
        return subprocess.run([python, "-c", look], timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RecipeError(f"teacher.options.python: cannot run '{python}': {error}") from None


def _vllm(python: str) -> list[str]:
    """The command beside an interpreter; it does not put the current folder on the path."""
    script = Path(python).with_name("vllm")
    return [str(script)] if script.is_file() else [python, "-m", "vllm.entrypoints.cli.main"]


def _environment(python: str, devices: Sequence[tuple[str, ...]]) -> dict[str, str]:
    # Compilers that vLLM calls (ninja, nvcc) lie beside its interpreter.
    path = f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    added = {"PATH": path, "VLLM_NO_USAGE_STATS": os.environ.get("VLLM_NO_USAGE_STATS", "1")}
    if not any(devices):
        # Without this each server binds its threads to the same cores as all the others.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        threads = str(max(1, cores // len(devices)))
        added["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", threads)
        added["VLLM_CPU_OMP_THREADS_BIND"] = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    return added
