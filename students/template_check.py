"""What a chat template has to hold for a student that thinks, whatever the data."""

from __future__ import annotations

from typing import Any

from jinja2.exceptions import TemplateError

from distill.errors import PreflightError
from distill.students.render import RenderSpec, completion_text
from distill.thinking import join

FIRST, THOUGHT, ANSWER, NEXT = "Plain question?", "Some thought.", "Some answer.", "Another one?"


def require(tokenizer: Any, spec: RenderSpec) -> None:
    """Raise PreflightError with everything that is wrong with the template."""
    wrong = check(tokenizer, spec)
    if wrong:
        raise PreflightError(
            f"the chat template cannot be trained with: {'; '.join(wrong)}",
            "take another student.template (docs/rendering.md says what one has to do), or change "
            "yours",
        )


def check(tokenizer: Any, spec: RenderSpec) -> list[str]:
    """What is wrong with the template; empty if nothing is."""
    asked = [{"role": "user", "content": FIRST}]
    said = [*asked, {"role": "assistant", "content": join(THOUGHT, ANSWER, spec.tags)}]
    later = [*said, {"role": "user", "content": NEXT}]
    try:
        prompt, bare = (_text(tokenizer, spec, asked, opens) for opens in (True, False))
        whole, history = _text(tokenizer, spec, said, False), _text(tokenizer, spec, later, True)
    except TemplateError as error:
        return [f"it fails on a plain chat: {error}"]
    wrong = []
    if FIRST not in prompt:
        return ["the question is not in the prompt"]
    if prompt == bare:
        wrong.append("add_generation_prompt changes nothing, so nobody says whose turn it is")
    if THOUGHT not in history or THOUGHT not in whole:
        where = "of answers" if THOUGHT not in whole else "of earlier answers"
        wrong.append(f"it cuts the thinking {where}, so the student would learn none from it")
    if ANSWER not in whole:
        return [*wrong, "the answer is not in the chat"]
    after = whole.partition(ANSWER)[2].lstrip()
    if not after.startswith(tokenizer.eos_token):
        wrong.append(f"it does not end an answer with EOS '{tokenizer.eos_token}'")
    completion = completion_text(said[-1]["content"], spec)
    opened = prompt.count(spec.tags.open) - bare.count(spec.tags.open)
    opened += completion.count(spec.tags.open)
    if opened != 1:
        wrong.append(f"'{spec.tags.open}' is opened {opened} times in prompt and answer")
    wanted = prompt + completion
    if THOUGHT in whole and not whole.startswith(wanted):
        wrong.append("an answer in the chat is not written as it is said after the prompt")
    bos = tokenizer.bos_token_id
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    if bos is not None and bos != tokenizer.eos_token_id and ids[:2] == [bos, bos]:
        wrong.append(f"BOS '{tokenizer.bos_token}' stands twice at the beginning")
    return wrong


def _text(tokenizer: Any, spec: RenderSpec, messages: list[dict[str, str]], opens: bool) -> str:
    text: str = tokenizer.apply_chat_template(
        messages, chat_template=spec.template, add_generation_prompt=opens, tokenize=False
    )
    return text
