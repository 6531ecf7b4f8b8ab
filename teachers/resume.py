"""Going on from an answer that was cut off: by its token ids, or by its text.

By ids the server continues exactly what it had said. By text it is as near as the tokenizer
makes it, and such answers carry the flag `prefilled`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx

from distill.errors import TeacherError
from distill.protocols import Completion, Request
from distill.teachers.servers import Broken
from distill.teachers.stream import Answer
from distill.teachers.wire import Wire, root
from distill.thinking import ThinkTags, canonical, split

log = logging.getLogger(__name__)

PREFILLED = "prefilled"
TEMPLATE_KEYS = ("chat_template", "chat_template_kwargs", "documents", "tools")
TAIL = 32
"""Prompt tokens to look at for an opening think tag."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a continuation goes on from.

    `fields` go into the request's body; `text` is the raw output so far and `ids` its tokens
    where they are known. `opens`: the thinking was opened by the prompt.
    """

    fields: Mapping[str, Any]
    text: str
    opens: bool
    prompt_ids: tuple[int, ...] | None = None
    ids: tuple[int, ...] | None = None
    flags: tuple[str, ...] = ()

    def completion(self, answer: Answer, tags: ThinkTags) -> Completion:
        """The whole output, what came before included; `usage` counts the new tokens."""
        said, thought, finish = answer.said()
        if thought and said:
            new = f"{thought}{tags.close}{said}"
        else:
            # A parser that has not seen the tags may call everything reasoning, or nothing.
            new = thought or said
        text = self.text + new
        parts = split(text, tags, prompt_opens=self.opens)
        done = answer.completed(
            canonical(text, tags, prompt_opens=self.opens), parts.reasoning, finish
        )
        ids = None
        if self.ids is not None and done.token_ids is not None:
            ids = (*self.ids, *done.token_ids)
        return replace(
            done,
            token_ids=ids,
            prompt_ids=self.prompt_ids or done.prompt_ids,
            flags=(*done.flags, *self.flags),
        )


class Resumer:
    """Prepares continuations at a server, which may (vLLM) or may not turn text into tokens."""

    def __init__(self, wire: Wire, model: str, tags: ThinkTags) -> None:
        self._wire, self._model, self._tags = wire, model, tags
        self._warned = False

    async def start(self, request: Request, url: str, body: Mapping[str, Any]) -> Start:
        """Where to go on. `body` is the request as it would be sent without a prefix.

        Raises TeacherError for a request that this server cannot go on with.
        """
        prompt_ids = request.prompt_ids
        if prompt_ids is None and _are_ids(request.prompt):
            prompt_ids = [int(token) for token in request.prompt]  # type: ignore[arg-type]
        if request.prefix_ids and prompt_ids is not None:
            return await self._by_ids(request, url, list(prompt_ids), list(request.prefix_ids))
        if not request.prefix_text:
            raise TeacherError(
                f"{request.key}: to go on from tokens a server needs the prompt's tokens too",
                "set teacher.options.return_token_ids before sampling what is to be continued",
            )
        if isinstance(request.prompt, str):
            fields = {"prompt": request.prompt + request.prefix_text}
            return Start(fields, request.prefix_text, False, flags=(PREFILLED,))
        found = await self._by_tokenizing(request, url, body)
        return found or self._by_message(request, body)

    async def _by_ids(
        self, request: Request, url: str, prompt_ids: list[int], prefix: list[int]
    ) -> Start:
        # Text that was written down is stripped; the tokens know what stood at the seam. The
        # last of them may be the first half of a character, which the answer brings whole.
        said = await self._text(url, prefix)
        known = request.prefix_text
        if said is None:
            if known is None:
                raise TeacherError(
                    f"{request.key}: {root(url)} has no /detokenize to tell the text of the prefix"
                )
            self._warn("%s has no /detokenize: white space where traces were cut may be lost", url)
            said = known
        said = said.rstrip("\ufffd")
        opens = bool(known and known.startswith(self._tags.open)) and not said.lstrip().startswith(
            self._tags.open
        )
        return Start(
            {"prompt": prompt_ids + prefix, "skip_special_tokens": False},
            said,
            opens,
            tuple(prompt_ids),
            tuple(prefix),
        )

    async def _by_tokenizing(
        self, request: Request, url: str, body: Mapping[str, Any]
    ) -> Start | None:
        """The rendered prompt and the text as tokens: no template sees the half message."""
        assert request.prefix_text
        template = {key: body[key] for key in TEMPLATE_KEYS if key in body}
        asked = {"messages": body["messages"], "add_generation_prompt": True, **template}
        rendered = await self._ask(url, "/tokenize", asked)
        if rendered is None or not rendered.get("tokens"):
            return None
        prompt_ids = [int(token) for token in rendered["tokens"]]
        end = await self._text(url, prompt_ids[-TAIL:])
        if end is None:
            return None
        text = request.prefix_text
        opens = end.rstrip().endswith(self._tags.open) and text.startswith(self._tags.open)
        if opens:
            text = text.removeprefix(self._tags.open)
            if end.endswith("\n"):
                text = text.lstrip("\n")
        prefix = await self._ask(url, "/tokenize", {"prompt": text, "add_special_tokens": False})
        if prefix is None or not prefix.get("tokens"):
            return None
        ids = [int(token) for token in prefix["tokens"]]
        return Start(
            {"prompt": prompt_ids + ids, "skip_special_tokens": False},
            text,
            opens,
            tuple(prompt_ids),
            tuple(ids),
            (PREFILLED,),
        )

    def _by_message(self, request: Request, body: Mapping[str, Any]) -> Start:
        """The half message handed to the server's chat template, to be left open."""
        text = request.prefix_text
        assert text
        if self._tags.close in text:
            # R1's, Qwen's and many other templates cut closed thinking out of earlier messages.
            raise TeacherError(
                f"{request.key}: the chain of thought is closed, and chat templates drop it from"
                " a message that is to be continued",
                "use a server with /tokenize, or sample with teacher.options.return_token_ids",
            )
        fields = {
            "messages": [*body["messages"], {"role": "assistant", "content": text}],
            "continue_final_message": True,
            "add_generation_prompt": False,
        }
        return Start(fields, text, False, flags=(PREFILLED,))

    async def _text(self, url: str, tokens: Sequence[int]) -> str | None:
        """The text of tokens; None where the server does not tell it as vLLM does."""
        found = await self._ask(url, "/detokenize", {"tokens": tokens})
        said = (found or {}).get("prompt")
        return said if isinstance(said, str) else None

    async def _ask(self, url: str, path: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """A small call beside /v1; None where the server has no such thing."""
        try:
            response = await self._wire.call(root(url) + path, {"model": self._model, **body})
            if response.status_code >= 500 or response.status_code == 429:
                raise Broken(f"{root(url)}{path}: HTTP {response.status_code}", retry=True)
            found = response.json() if response.status_code == 200 else None
        except httpx.HTTPError as error:
            raise Broken(f"{root(url)}{path}: {type(error).__name__}", retry=True) from None
        except ValueError:
            found = None
        return found if isinstance(found, dict) else None

    def _warn(self, text: str, url: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning(text, root(url))


def _are_ids(prompt: Sequence[Any] | str) -> bool:
    return not isinstance(prompt, str) and all(isinstance(token, int) for token in prompt)
