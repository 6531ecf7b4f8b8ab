"""Asks an OpenAITeacher things over a FakeServer: what several tests of it begin with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from distill.errors import TeacherError
from distill.protocols import Completion, Request, SamplingParams
from distill.teachers.openai import OpenAITeacher
from tests.fake_server import Answerer, FakeServer

CHAT = [{"role": "user", "content": "1+2?"}]


def ask(prompt: Any = CHAT, **params: Any) -> Request:
    prefix = params.pop("prefix_ids", None)
    return Request(
        key="p/0/0", prompt=prompt, params=SamplingParams(**params), seed=7, prefix_ids=prefix
    )


def teacher(server: FakeServer, **kwargs: Any) -> OpenAITeacher:
    kwargs = {"base_urls": [server.url], "timeout_s": 5, "api_key_env": "NO_SUCH_KEY", **kwargs}
    return OpenAITeacher("m", **kwargs)


def complete(
    engine: OpenAITeacher, *requests: Request, on_tokens: Callable[[int], None] | None = None
) -> list[Completion | BaseException]:
    async def main() -> list[Completion | BaseException]:
        await engine.open()
        try:
            return await asyncio.gather(
                *(engine.complete(r, on_tokens) for r in requests), return_exceptions=True
            )
        finally:
            await engine.close()

    return asyncio.run(main())


def answered(answer: Answerer, request: Request | None = None, **kwargs: Any) -> Completion:
    with FakeServer(answer) as server:
        (found,) = complete(teacher(server, **kwargs), request or ask())
    if isinstance(found, BaseException):
        raise found
    return found


def refused(answer: Answerer, **kwargs: Any) -> TeacherError:
    with pytest.raises(TeacherError) as raised:
        answered(answer, **kwargs)
    return raised.value
