"""From a request's prompt to token ids, and from token ids back to text: with a tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from distill.errors import ModelError, TeacherError
from distill.protocols import Request
from distill.records import Message
from distill.thinking import DEFAULT_TAGS, ThinkTags, canonical, split

Tags = ThinkTags | Mapping[str, str] | Sequence[str]


def as_tags(tags: Tags | None) -> ThinkTags:
    """Think tags from `{open, close}`, a pair, or None for `<think>`."""
    if tags is None:
        return DEFAULT_TAGS
    if isinstance(tags, ThinkTags):
        return tags
    if isinstance(tags, Mapping):
        return ThinkTags(tags["open"], tags["close"])
    return ThinkTags(*tags)


def as_template(template: str | None) -> str | None:
    """A chat template given as Jinja text or as the path of a .jinja file."""
    if template is None or "{" in template or not template.endswith(".jinja"):
        return template
    path = Path(template).expanduser()
    if not path.is_file():
        raise ModelError(f"no chat template {path}")
    return path.read_text(encoding="utf-8")


def template_hash(template: str | None, kwargs: Mapping[str, Any] | None = None) -> str:
    """12 hex digits for a template and the arguments it is rendered with; `none` without one."""
    if template is None:
        return "none"
    data = template + (json.dumps(kwargs, sort_keys=True) if kwargs else "")
    return hashlib.sha256(data.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Spoken:
    """A decoded output: the canonical text and the reasoning in it."""

    text: str
    reasoning: str | None


@dataclass(slots=True)
class Chat:
    """A tokenizer with its template and think tags. `tokenizer` is one of transformers."""

    tokenizer: Any
    name: str
    tags: ThinkTags = DEFAULT_TAGS
    template: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    prompt_opens: bool | None = None
    """None: as the end of each rendered prompt shows."""
    _silent: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        tags = {self.tags.open, self.tags.close}
        added = self.tokenizer.added_tokens_decoder
        special = {i for i, token in added.items() if token.special}
        special |= set(self.tokenizer.all_special_ids)
        spelled = {i: token.content for i, token in added.items()}
        # Some tokenizers make the tags special tokens: those are text, not control.
        self._silent = frozenset(i for i in special if spelled.get(i) not in tags)

    def render(self, request: Request) -> tuple[str | None, list[int]]:
        """The prompt as text (None for token ids) and as ids, without `prefix_ids`.

        Raises ModelError where a chat meets a tokenizer without a template, TeacherError
        where the template refuses the messages.
        """
        prompt = request.prompt
        if isinstance(prompt, str):
            bos = self.tokenizer.bos_token
            rendered = bool(bos) and prompt.startswith(bos)
            return prompt, self._ids(prompt, add_special_tokens=not rendered)
        if all(isinstance(token, int) for token in prompt):
            return None, list(prompt)  # type: ignore[arg-type]
        if self.template is None and not self.tokenizer.chat_template:
            raise ModelError(
                f"{self.name} has no chat template, so it cannot be asked in messages",
                "pass chat_template (Jinja text or a .jinja file), or ask with a plain prompt",
            )
        text = self._apply(request)
        return text, self._ids(text, add_special_tokens=False)

    def opens(self, text: str | None, ids: Sequence[int]) -> bool:
        """Whether a prompt ends inside the thinking."""
        if self.prompt_opens is not None:
            return self.prompt_opens
        tail = text if text is not None else self.tokenizer.decode(list(ids[-16:]))
        return bool(tail.rstrip().endswith(self.tags.open))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of output ids: control tokens left out, think tags kept."""
        heard = [i for i in ids if i not in self._silent]
        return str(
            self.tokenizer.decode(
                heard, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def speak(self, ids: Sequence[int], *, opens: bool, stop: Sequence[str] = ()) -> Spoken:
        """Canonical text and reasoning of output ids, cut before the first stop string."""
        return spoken(until(self.decode(ids), stop), self.tags, opens=opens)

    def stopper(self, stop: Sequence[str]) -> Callable[[Sequence[int]], bool] | None:
        """A test for `does this output now contain a stop string?`, None without any."""
        if not stop:
            return None
        # No token is shorter than one byte, but some of the last may be control tokens.
        window = max(len(word.encode()) for word in stop) + 8

        def stopped(ids: Sequence[int]) -> bool:
            tail = self.decode(ids[-window:])
            return any(word in tail for word in stop)

        return stopped

    def _ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])

    def _apply(self, request: Request) -> str:
        from jinja2 import TemplateError

        messages = [dict(cast(Message, message)) for message in request.prompt]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=True,
                    chat_template=self.template,
                    **self.template_kwargs,
                )
            )
        except TemplateError as error:
            raise TeacherError(
                f"{request.key}: the chat template of {self.name} refuses these messages: {error}"
            ) from None


def until(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first stop string in it."""
    cuts = [at for word in stop if (at := text.find(word)) >= 0]
    return text[: min(cuts)] if cuts else text


def spoken(text: str, tags: ThinkTags, *, opens: bool) -> Spoken:
    """The canonical form of a raw output and its reasoning."""
    reasoning = split(text, tags, prompt_opens=opens).reasoning
    return Spoken(canonical(text, tags, prompt_opens=opens), reasoning)
