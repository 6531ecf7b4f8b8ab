"""What a server of the OpenAI kind answers, put together: chunks of a stream, or one object."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from distill.errors import TeacherError
from distill.protocols import Completion, OnTokens, Usage
from distill.thinking import ThinkTags, canonical, join, split

DONE = b"[DONE]"


async def events(data: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The payloads of server-sent events; comments (keep-alives) are passed over.

    https://html.spec.whatwg.org/multipage/server-sent-events.html, of which these servers use
    the `data` field only, one JSON object a line. Lines end at line feeds alone: text may hold
    U+2028 and its like unescaped, at which `str.splitlines` (and httpx) would cut.
    """
    rest = b""
    async for piece in data:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
    if rest.startswith(b"data:"):
        yield rest[5:].strip()


@dataclass(slots=True)
class Answer:
    """One completion as it arrives. `take` accepts chunks of a stream and whole answers."""

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    prompt_ids: tuple[int, ...] | None = None
    finish_reason: str = ""
    usage: Usage = field(default_factory=Usage)
    model: str = ""
    fingerprint: str = ""
    done: bool = False
    counted: int = 0

    def feed(self, payload: bytes, on_tokens: OnTokens | None) -> None:
        """One payload of a stream."""
        if payload == DONE:
            self.done = True
            return
        new = self.take(parse(payload))
        if new:
            self.counted += new
            if on_tokens is not None:
                on_tokens(new)

    def take(self, chunk: Mapping[str, Any]) -> int:
        """Add an object's content; returns the number of tokens in it, as far as one can see."""
        if chunk.get("error"):
            raise TeacherError(f"the server broke off: {error_text(chunk)}", retry=True)
        usage = chunk.get("usage")
        if usage:
            self.usage = Usage(
                prompt_tokens=usage.get("prompt_tokens") or 0,
                completion_tokens=usage.get("completion_tokens") or 0,
            )
        self.model = chunk.get("model") or self.model
        self.fingerprint = chunk.get("system_fingerprint") or self.fingerprint
        choices = chunk.get("choices") or []
        if not choices:
            return 0
        choice = choices[0]
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        part = choice.get("delta") or choice.get("message") or choice
        said = part.get("content") or part.get("text") or ""
        thought = part.get("reasoning_content") or part.get("reasoning") or ""
        self.content.append(said)
        self.reasoning.append(thought)
        ids = choice.get("token_ids") or []
        self.token_ids += ids
        prompt_ids = chunk.get("prompt_token_ids") or choice.get("prompt_token_ids")
        if prompt_ids:
            self.prompt_ids = tuple(prompt_ids)
        return len(ids) or int(bool(said or thought))

    def completion(self, tags: ThinkTags, *, prompt_opens: bool) -> Completion:
        """The whole as a Completion. Raises TeacherError for an answer that is none."""
        if not self.finish_reason and not self.done:
            raise TeacherError("the answer ended before it was complete", retry=True)
        said, thought = "".join(self.content), "".join(self.reasoning)
        if not said.strip() and not thought.strip():
            filtered = self.finish_reason == "content_filter"
            raise TeacherError(
                f"the answer is empty (finish reason: {self.finish_reason or 'none'})",
                retry=not filtered,
            )
        text, reasoning = whole(said, thought, tags, prompt_opens=prompt_opens)
        return Completion(
            text=text,
            reasoning=reasoning,
            finish_reason=self.finish_reason or "unknown",
            prompt_ids=self.prompt_ids,
            token_ids=tuple(self.token_ids) if self.token_ids else None,
            usage=self.usage,
            served_model=self.model,
            flags=(f"fingerprint:{self.fingerprint}",) if self.fingerprint else (),
        )


def whole(
    said: str, thought: str, tags: ThinkTags, *, prompt_opens: bool
) -> tuple[str, str | None]:
    """Canonical text and reasoning, whether the thinking came inline or in its own field."""
    if thought.strip():
        if said.strip():
            return join(thought, said, tags), thought.strip()
        # vLLM's parser gives a chain without its closing tag whole as reasoning.
        return f"{tags.open}\n{thought.strip()}", thought.strip()
    opens = prompt_opens and not said.lstrip().startswith(tags.open)
    return canonical(said, tags, prompt_opens=opens), split(
        said, tags, prompt_opens=opens
    ).reasoning


def parse(payload: bytes) -> dict[str, Any]:
    """The JSON object of a payload. Raises TeacherError (again later) for anything else."""
    try:
        found = json.loads(payload)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        shown = payload[:200].decode(errors="replace")
        raise TeacherError(f"the server did not answer in JSON: {shown!r}", retry=True)
    return found


def error_text(body: Any) -> str:
    """The message in an error body, whichever way this server writes it."""
    if isinstance(body, Mapping):
        for key in ("error", "message", "detail"):
            if body.get(key):
                return error_text(body[key])
    return str(body)[:400]
