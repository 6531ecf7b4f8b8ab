"""From a request's prompt to token ids, and from token ids back to text: with a tokenizer."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from distill.errors import ModelError, TeacherError
from distill.protocols import Completion, Request, Usage
from distill.records import Message
from distill.thinking import DEFAULT_TAGS, ThinkTags, canonical, split

log = logging.getLogger(__name__)

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


PROBE = "It's 15 - 43 = -28,\n\n  so x_1 = \\frac{1}{2}; naïve 数学, 3.14e10\tdone.\n"
"""Text at whose numbers, spaces, signs and scripts ways of splitting differ."""


def load_tokenizer(source: str, revision: str | None, *, trust_remote_code: bool) -> Any:
    """The tokenizer of a model, as its tokenizer.json says.

    transformers 5 rebuilds the tokenizers of some families (Qwen2 among them) from their
    vocabulary alone, with the family's own splitting. A model that was trained with another
    splitting would be asked in tokens that it does not know so well, and nobody would notice.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    auto = AutoTokenizer.from_pretrained(
        source, revision=revision, trust_remote_code=trust_remote_code
    )
    try:
        faithful = PreTrainedTokenizerFast.from_pretrained(source, revision=revision)
        expected = faithful(PROBE, add_special_tokens=False)["input_ids"]
    except (OSError, ValueError, TypeError):
        return auto  # there is no tokenizer.json to be held to
    if auto(PROBE, add_special_tokens=False)["input_ids"] == expected:
        return auto
    note = (
        f"{Path(source).name}: AutoTokenizer ({type(auto).__name__}) splits text otherwise than "
        "tokenizer.json, which is used"
    )
    log.warning(note)
    faithful.distill_note = note
    return faithful


@dataclass(frozen=True, slots=True)
class Turn:
    """A request in tokens. `limit` is the number of new tokens allowed and possible."""

    request: Request
    text: str | None
    prompt_ids: list[int]
    prefix: list[int]
    limit: int

    @property
    def ids(self) -> list[int]:
        """All tokens before the first new one."""
        return self.prompt_ids + self.prefix

    @property
    def stop(self) -> tuple[str, ...]:
        return self.request.params.stop


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

    @property
    def notes(self) -> tuple[str, ...]:
        """What the report should say about how this tokenizer was read."""
        note = getattr(self.tokenizer, "distill_note", "")
        return (note,) if note else ()

    def turn(self, request: Request, context: int | None) -> Turn:
        """The request in tokens. `context` is what the model holds, None if unknown.

        Raises TeacherError for a prompt that is empty, refused or too long, and ModelError
        where a chat meets a tokenizer without a template.
        """
        text, prompt_ids = self.render(request)
        prefix = list(request.prefix_ids or ())
        length = len(prompt_ids) + len(prefix)
        if not length:
            raise TeacherError(f"{request.key}: the prompt is empty")
        room = request.params.max_tokens if context is None else context - length
        if room <= 0:
            raise TeacherError(
                f"{request.key}: the prompt has {length} tokens, "
                f"the context of {self.name} {context}"
            )
        return Turn(request, text, prompt_ids, prefix, min(request.params.max_tokens, room))

    def completion(
        self, turn: Turn, new_ids: Sequence[int], finish_reason: str, eos: Container[int]
    ) -> Completion:
        """What was said. `text` and `token_ids` are the whole output, the prefix included;
        `usage` counts the new tokens. Flag `context`: the context was full before the limit.
        """
        out = [*turn.prefix, *new_ids]
        said = until(self.decode(out[:-1] if out and out[-1] in eos else out), turn.stop)
        opens = self.opens(turn.text, turn.prompt_ids)
        full = finish_reason == "length" and turn.limit < turn.request.params.max_tokens
        return Completion(
            text=canonical(said, self.tags, prompt_opens=opens),
            reasoning=split(said, self.tags, prompt_opens=opens).reasoning,
            finish_reason=finish_reason,
            prompt=turn.text,
            prompt_ids=tuple(turn.prompt_ids),
            token_ids=tuple(out),
            usage=Usage(prompt_tokens=len(turn.prompt_ids), completion_tokens=len(new_ids)),
            served_model=self.name,
            flags=("context",) if full else (),
        )

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

    def stopper(self, turn: Turn) -> Callable[[Sequence[int]], bool] | None:
        """A test for `do these new tokens complete a stop string?`, None without any."""
        if not turn.stop:
            return None
        # No token is shorter than one byte, but some of the last may be control tokens.
        window = max(len(word.encode()) for word in turn.stop) + 8
        before = turn.prefix[-window:]

        def stopped(new_ids: Sequence[int]) -> bool:
            tail = self.decode([*before, *new_ids][-window:])
            return any(word in tail for word in turn.stop)

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
