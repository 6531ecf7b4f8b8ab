"""What a server of the OpenAI kind answers, put together: chunks of a stream, or one object."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distill.errors import TeacherError
from distill.protocols import Completion, Usage
from distill.teachers.servers import Broken
from distill.thinking import ThinkTags, canonical, join, split

DONE = b"[DONE]"

FINISHED = frozenset(
    {"stop", "length", "content_filter", "tool_calls", "function_call", "repetition"}
)
OTHER_WORDS = {
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_length": "length",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "end_turn": "stop",
}
"""Finish reasons of other APIs, as proxies pass them on."""

UNFINISHED = frozenset({"abort", "error", "cancelled", "insufficient_system_resource"})
"""Finish reasons of an answer that the server gave up: vLLM and SGLang stopping, DeepSeek's API."""

MOST_TOKENS = 100_000_000
MOST_BYTES = 1 << 28
"""More than any answer has: a body that goes on for ever would fill the memory."""

UNCOUNTED = 1 << 18
"""Tokens that an answer may have beyond its limit: some APIs do not count the thinking."""


class Body:
    """A body as it comes, cut into payloads: of server-sent events, or the one it is (`plain`).

    Which of the two its first byte tells, because proxies get content types wrong. Comments
    (keep-alives) are passed over. Of
    https://html.spec.whatwg.org/multipage/server-sent-events.html these servers use the `data`
    field only, one JSON object a line. Lines end at line feeds alone: text may hold U+2028 and
    its like unescaped, at which `str.splitlines` (and httpx) would cut.
    """

    def __init__(self) -> None:
        self.plain = False
        self._begun = False
        self._rest: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that these bytes complete."""
        if not self._begun:
            data = data.removeprefix(b"\xef\xbb\xbf").lstrip()
            self._begun = bool(data)
            self.plain = data[:1] in (b"{", b"[", b"<", b'"')
        if self.plain or b"\n" not in data:
            self._size += len(data)
            if self._size > MOST_BYTES:
                raise Broken(f"an answer of more than {MOST_BYTES >> 20} MiB", retry=True)
            self._rest.append(data)
            return []
        first, *lines = data.split(b"\n")
        rest = lines.pop()
        if self._rest:
            first = b"".join((*self._rest, first))
        self._rest, self._size = [rest] if rest else [], len(rest)
        return [line[5:].strip() for line in (first, *lines) if line.startswith(b"data:")]

    def end(self) -> list[bytes]:
        """What is left when the body has ended."""
        rest = b"".join(self._rest)
        if self.plain:
            return [rest]
        if rest.startswith(b"data:"):
            return [rest[5:].strip()]
        if not self._begun:
            raise Broken("the answer has no body", retry=True)
        return []


@dataclass(slots=True)
class Answer:
    """One completion as it arrives. `take` accepts chunks of a stream and whole answers.

    `limit` is the number of tokens that was asked for: a stream that passes it without an end in
    sight is refused.
    """

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    prompt_ids: tuple[int, ...] | None = None
    finish_reason: str = ""
    usage: Usage = field(default_factory=Usage)
    model: str = ""
    fingerprint: str = ""
    done: bool = False
    whole: bool = False
    counted: int = 0
    flags: dict[str, None] = field(default_factory=dict)
    limit: int = MOST_TOKENS
    size: int = 0

    def feed(self, payloads: Sequence[bytes]) -> int:
        """Payloads of a stream; returns the number of tokens in them, as far as one can see.

        Raises TeacherError for a stream that does not end, which asking again would not change.
        """
        new = 0
        for payload in payloads:
            if payload == DONE:
                self.done = True
            elif payload:
                self.size += len(payload)
                new += self.take(parse(payload))
        self.counted += new
        if self.counted > self.limit + UNCOUNTED or self.size > MOST_BYTES:
            raise TeacherError(
                f"{self.counted:,} pieces came where at most {self.limit:,} tokens were asked for, "
                "and no end",
                "the server takes no notice of the limit: see teacher.options.max_tokens_field",
            )
        return new

    def take(self, chunk: Mapping[str, Any]) -> int:
        """Add an object's content; returns the number of tokens in it.

        Raises Broken for an error in the stream and for what is no chunk at all.
        """
        try:
            return self._take(chunk)
        except (AttributeError, TypeError, ValueError, KeyError, IndexError) as error:
            shown = str(chunk)[:200]
            raise Broken(
                f"the server sent a malformed answer ({error}): {shown}", retry=True
            ) from None

    def _take(self, chunk: Mapping[str, Any]) -> int:
        if chunk.get("error") or chunk.get("object") == "error":
            raise broke_off(chunk)
        if usage := chunk.get("usage"):
            self.usage = self._usage(usage)
        if chunk.get("model"):
            self.model = str(chunk["model"])
        if chunk.get("system_fingerprint"):
            self.fingerprint = str(chunk["system_fingerprint"])
        if ids := chunk.get("prompt_token_ids"):
            self.prompt_ids = tuple(map(int, ids))
        new = 0
        for choice in chunk.get("choices") or ():
            if choice.get("index"):
                # One was asked for; of servers that send more the others must not mix in.
                self.flags["extra_choices"] = None
            else:
                new += self._choice(choice)
        return new

    def _choice(self, choice: Mapping[str, Any]) -> int:
        if reason := choice.get("finish_reason"):
            self.finish_reason = str(reason)
        part = choice.get("delta") or choice.get("message") or choice
        said = part.get("content") or part.get("text") or ""
        thought = part.get("reasoning_content") or part.get("reasoning") or ""
        if said:
            self.content.append(said if isinstance(said, str) else _parts(said))
        if thought:
            self.reasoning.append(thought if isinstance(thought, str) else _parts(thought))
        ids = choice.get("token_ids")
        if ids:
            self.token_ids += map(int, ids)
        if prompt_ids := choice.get("prompt_token_ids"):
            self.prompt_ids = tuple(map(int, prompt_ids))
        return len(ids) if ids else int(bool(said or thought))

    def _usage(self, usage: Mapping[str, Any]) -> Usage:
        counts = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
        sound = [
            isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= MOST_TOKENS for n in counts
        ]
        if any(not fine and n is not None for n, fine in zip(counts, sound, strict=True)):
            self.flags["odd_usage"] = None
        prompt, completion = (n if fine else 0 for n, fine in zip(counts, sound, strict=True))
        return Usage(prompt_tokens=prompt or 0, completion_tokens=completion or 0)

    def completion(self, tags: ThinkTags, *, prompt_opens: bool) -> Completion:
        """The whole as a Completion. Raises TeacherError for an answer that is none."""
        said, thought, finish = self.said()
        text, reasoning = whole(said, thought, tags, prompt_opens=prompt_opens)
        return self.completed(text, reasoning, finish)

    def completed(self, text: str, reasoning: str | None, finish: str) -> Completion:
        """A Completion with this text and what else the server said."""
        usage = self.usage
        if not usage.completion_tokens and self.token_ids:
            usage = Usage(prompt_tokens=usage.prompt_tokens, completion_tokens=len(self.token_ids))
        return Completion(
            text=text,
            reasoning=reasoning,
            finish_reason=finish,
            prompt_ids=self.prompt_ids,
            token_ids=tuple(self.token_ids) if self.token_ids else None,
            usage=usage,
            served_model=self.model,
            fingerprint=self.fingerprint,
            flags=tuple(self.flags),
        )

    def said(self) -> tuple[str, str, str]:
        """Content, reasoning and finish reason of a complete answer.

        Raises TeacherError for an answer that is torn, given up by the server, or empty.
        """
        finish = self.finish_reason
        if not finish and not self.done and not self.whole:
            raise Broken("the answer ended before it was complete", retry=True)
        if finish in UNFINISHED:
            raise Broken(f"the server gave the answer up (finish reason: {finish})", retry=True)
        said, thought = _paired("".join(self.content)), _paired("".join(self.reasoning))
        if not said.strip() and not thought.strip():
            raise TeacherError(
                f"the answer is empty (finish reason: {finish or 'none'})",
                retry=finish != "content_filter",
            )
        finish = OTHER_WORDS.get(finish, finish)
        if not finish:
            self.flags["no_finish_reason"] = None
        elif finish not in FINISHED:
            self.flags["odd_finish_reason"] = None
        return said, thought, finish or "unknown"


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
    """The JSON object of a payload. Raises Broken (again later) for anything else."""
    try:
        found = json.loads(payload.decode())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        shown = payload[:200].decode(errors="replace")
        raise Broken(f"the server did not answer in JSON: {shown!r}", retry=True)
    return found


def broke_off(chunk: Mapping[str, Any]) -> TeacherError:
    """The error of an error object in a stream; one that refuses the request is not repeated."""
    error = chunk.get("error")
    code = (error if isinstance(error, Mapping) else chunk).get("code")
    message = f"the server broke off: {error_text(chunk)}"
    if str(code) in ("400", "413", "422"):
        return TeacherError(message)
    return Broken(message, retry=True)


def error_text(body: Any) -> str:
    """The message in an error body, whichever way this server writes it."""
    if isinstance(body, Mapping):
        for key in ("error", "message", "detail"):
            if body.get(key):
                return error_text(body[key])
    return str(body)[:400]


def _parts(said: Any) -> str:
    """The text of a content that comes in typed parts."""
    return "".join(part["text"] for part in said if part.get("type", "text") == "text")


def _paired(text: str) -> str:
    """`text` with surrogate pairs joined that the server cut between two chunks."""
    if re.search("[\ud800-\udbff]", text):
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return text
