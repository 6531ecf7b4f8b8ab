"""The only renderer: messages -> token ids and labels, exactly as trained and as served.

The prompt's ids come from the chat template with its generation prompt, the answer's ids from
the answer alone: what is trained after the prompt is token for token what a served student is
asked to produce after the same prompt. Nothing is ever cut. `docs/rendering.md` has the rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from distill.errors import DataError
from distill.protocols import Rendered
from distill.records import Message
from distill.students.catalog import shape_of
from distill.thinking import DEFAULT_TAGS, ThinkTags, split

IGNORED = -100
ROLES = ("system", "user", "assistant")
ROWS = "rows are {'messages': [{'role': 'user', ...}, {'role': 'assistant', ...}]}"


@dataclass(frozen=True, slots=True)
class RenderSpec:
    """How examples become tokens: a template's Jinja text and how it begins an answer
    (`distill.students.catalog.shape_of`).

    `controls` are the tokens that end or begin a turn; a text that spells one is no text.
    """

    template: str
    prefill: str = ""
    lead: str = ""
    tags: ThinkTags = DEFAULT_TAGS
    controls: tuple[str, ...] = ()

    @classmethod
    def of(cls, template: str, tokenizer: Any = None, ends: Iterable[int] = ()) -> RenderSpec:
        """The spec of a template's Jinja text; `ends` are ids that end an answer besides EOS."""
        prefill, lead = shape_of(template)
        controls = control_tokens(tokenizer, template, ends) if tokenizer is not None else ()
        return cls(template=template, prefill=prefill, lead=lead, controls=controls)


def control_tokens(tokenizer: Any, template: str, ends: Iterable[int] = ()) -> tuple[str, ...]:
    """The special tokens that shape a chat: EOS, BOS, PAD, those of the template, and `ends`."""
    own = {tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token}
    own |= {tokenizer.convert_ids_to_tokens(i) for i in ends if i is not None}
    special = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
    return tuple(dict.fromkeys(t for t in special if t and (t in own or t in template)))


def render(messages: Sequence[Message], tokenizer: Any, spec: RenderSpec) -> Rendered:
    """Token ids and labels of one example; the last message is the assistant's.

    Labels are -100 for the prompt, and the ids themselves for the answer and one EOS. Raises
    DataError for messages that cannot be trained on: without an answer at their end, with an
    answer that is empty or still thinking, with a control token typed as text, or in an order
    that the template refuses.
    """
    _refuse(messages, spec)
    prompt = prompt_ids(messages[:-1], tokenizer, spec)
    text = completion_text(messages[-1]["content"], spec)
    answer = [*answer_ids(text, tokenizer), tokenizer.eos_token_id]
    return Rendered(input_ids=prompt + answer, labels=[IGNORED] * len(prompt) + answer)


def _refuse(messages: Sequence[Message], spec: RenderSpec) -> None:
    roles = [m["role"] for m in messages]
    if len(messages) < 2 or roles[-1] != "assistant":
        raise DataError(f"an example must end with an assistant's message, found {roles}", ROWS)
    for message in messages:
        if message["role"] not in ROLES:
            raise DataError(
                f"the role '{message['role']}' is unknown", f"known: {', '.join(ROLES)}"
            )
        typed = [t for t in spec.controls if t in message["content"]]
        if typed:
            # A server takes it for the end of the turn, whoever wrote it. So would training.
            raise DataError(
                f"the text of the {message['role']} holds the control token '{typed[0]}'",
                "such examples are left out; take the token out of the text to keep them",
            )
    said = split(messages[-1]["content"], spec.tags)
    if not said.finished:
        raise DataError("the thinking is never closed", "the format filter leaves such answers out")
    if not said.answer:
        where = "after the thinking" if said.reasoning else "at all"
        raise DataError(f"there is no answer {where}", "the format filter leaves such answers out")


def prompt_ids(messages: Sequence[Message], tokenizer: Any, spec: RenderSpec) -> list[int]:
    """The ids a served student is prompted with. Raises DataError where the template refuses."""
    try:
        text = tokenizer.apply_chat_template(
            [dict(m) for m in messages],
            chat_template=spec.template,
            add_generation_prompt=True,
            tokenize=False,
        )
    except TemplateError as error:
        raise DataError(f"the chat template refuses this chat: {error}", ROWS) from None
    # Lengths are judged by max_length: the tokenizer's own warning would only confuse.
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    return ids


def answer_ids(text: str, tokenizer: Any) -> list[int]:
    """The ids of a text that goes on after a prompt.

    Special tokens spelled in it stay text (SmolLM2's `<filename>`): servers leave special tokens
    out of what they return. SentencePiece's tokenizers put a blank before what they take for a
    beginning; here nothing begins.
    """
    start = 0
    if _adds_blank(tokenizer):
        start = len(tokenizer.encode("\n", add_special_tokens=False))
        text = "\n" + text
    ids: list[int] = tokenizer.encode(
        text, add_special_tokens=False, split_special_tokens=True, verbose=False
    )
    return ids[start:]


def _adds_blank(tokenizer: Any) -> bool:
    first = tokenizer.convert_ids_to_tokens(tokenizer.encode("x", add_special_tokens=False)[:1])
    return bool(first) and str(first[0]).startswith("▁")


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
