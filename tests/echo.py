"""Teachers of ten lines, in a file of their own so that a child process imports them quickly."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from distill.protocols import Capabilities, Completion, OnTokens, Request, Usage
from distill.records import Problem
from distill.sample import request_seed


class Echo:
    """Answers with the request's key and seed; counts what it was asked."""

    identity = "echo@1"
    capabilities = Capabilities(deterministic=True)

    def __init__(self) -> None:
        self.asked: list[Request] = []

    async def complete(self, request: Request, on_tokens: OnTokens | None = None) -> Completion:
        self.asked.append(request)
        await asyncio.sleep(0)
        return self.answer(request)

    def answer(self, request: Request) -> Completion:
        text = f"<think>\n{request.key}\n</think>\n\n{request.seed}"
        return Completion(text=text, usage=Usage(prompt_tokens=10, completion_tokens=20))


class Batch(Echo):
    """A batch engine whose text depends on the whole group, as floating-point sums do."""

    identity = "batch@1"
    capabilities = Capabilities(batch_size=4, deterministic=True)

    def complete_batch(
        self, requests: Sequence[Request], on_tokens: OnTokens | None = None
    ) -> list[Any]:
        self.asked += requests
        group = "".join(r.key for r in requests)
        return [
            replace(self.answer(r), text=f"<think>\n{hash_of(group)}\n</think>\n\n{r.seed}")
            for r in requests
        ]


def hash_of(text: str) -> int:
    return request_seed(0, text, 0)


def questions(count: int) -> list[Problem]:
    return [Problem(messages=({"role": "user", "content": f"{i} + 1 = ?"},)) for i in range(count)]
