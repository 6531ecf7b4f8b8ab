"""The only renderer: messages -> token ids and labels, exactly as trained and as served.

The prompt's ids come from the chat template with its generation prompt, the answer's ids from
the answer alone: what is trained after the prompt is token for token what a served student is
asked to produce after the same prompt. Nothing is ever cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill.errors import DataError
from distill.protocols import Rendered
from distill.records import Message
from distill.students.catalog import shape_of
from distill.thinking import DEFAULT_TAGS, ThinkTags

IGNORED = -100


@dataclass(frozen=True, slots=True)
class RenderSpec:
    """How examples become tokens: a template's Jinja text and how it begins an answer
    (`distill.students.catalog.shape_of`)."""

    template: str
    prefill: str = ""
    lead: str = ""
    tags: ThinkTags = DEFAULT_TAGS

    @classmethod
    def of(cls, template: str) -> RenderSpec:
        """The spec of a template's Jinja text."""
        prefill, lead = shape_of(template)
        return cls(template=template, prefill=prefill, lead=lead)


def render(messages: Sequence[Message], tokenizer: Any, spec: RenderSpec) -> Rendered:
    """Token ids and labels of one example; the last message is the assistant's.

    Labels are -100 for the prompt, and the ids themselves for the answer and one EOS. Raises
    DataError for messages that do not end with an assistant's text.
    """
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        roles = [m["role"] for m in messages]
        raise DataError(
            f"an example must end with an assistant's message, found {roles}",
            "rows are {'messages': [{'role': 'user', ...}, {'role': 'assistant', ...}]}",
        )
    prompt = prompt_ids(messages[:-1], tokenizer, spec)
    text = completion_text(messages[-1]["content"], spec)
    answer = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    return Rendered(input_ids=prompt + answer, labels=[IGNORED] * len(prompt) + answer)


def prompt_ids(messages: Sequence[Message], tokenizer: Any, spec: RenderSpec) -> list[int]:
    """The ids a served student is prompted with."""
    text = tokenizer.apply_chat_template(
        [dict(m) for m in messages],
        chat_template=spec.template,
        add_generation_prompt=True,
        tokenize=False,
    )
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def completion_text(text: str, spec: RenderSpec) -> str:
    """What the student has to say after the generation prompt.

    Where the prompt opens the thinking, the opening tag is the prompt's. An answer without any
    thinking then closes it at once, as R1 does for plain questions.
    """
    if not spec.prefill:
        return spec.lead + text
    body = text.lstrip()
    if body.startswith(spec.tags.open):
        rest = body[len(spec.tags.open) :]
        return rest.removeprefix(spec.prefill[len(spec.tags.open) :])
    if spec.tags.close in body:
        return body
    return f"\n{spec.tags.close}\n\n{body}"
