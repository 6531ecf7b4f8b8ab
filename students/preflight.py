"""Before the first step: is what will be trained what should be trained?

Every check here was somebody's lost week: EOS masked as padding, thinking cut by a template,
prompt tokens in the loss, two BOS, ids beyond the embedding. `template_check` has those that
need no example.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from distill.errors import PreflightError
from distill.protocols import Rendered
from distill.students import template_check
from distill.students.render import IGNORED, RenderSpec
from distill.thinking import split

CHECKED = 32


def check(
    rendered: Rendered,
    messages: Sequence[Mapping[str, str]],
    tokenizer: Any,
    spec: RenderSpec,
    vocab: int,
    texts: bool = True,
) -> list[str]:
    """What is wrong with one rendered example; empty if nothing is.

    `vocab` is the number of rows of the model's embedding. Without `texts` only the ids are
    looked at, which is cheap enough for every example of a large data set.
    """
    ids, labels = rendered.input_ids, rendered.labels
    trained = [label for label in labels if label != IGNORED]
    wrong: list[str] = []
    if len(ids) != len(labels):
        return [f"{len(ids)} ids and {len(labels)} labels"]
    if not trained:
        return ["nothing is trained: all labels are -100"]
    start = labels.index(trained[0])
    eos, pad, bos = tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id
    if trained[-1] != eos or trained.count(eos) != 1:
        found = trained.count(eos)
        wrong.append(f"EOS '{tokenizer.eos_token}' must be trained once, at the end; found {found}")
    if pad == eos or pad in trained:
        wrong.append(f"PAD '{tokenizer.pad_token}' is among the labels or equal to EOS")
    if labels[start:] != ids[start:] or any(label != IGNORED for label in labels[:start]):
        wrong.append("the prompt is in the loss, or the answer is not wholly in it")
    # In a row: SmolLM2's BOS is ChatML's <|im_start|>, which opens every turn.
    if bos is not None and bos != eos and list(ids[:2]) == [bos, bos]:
        wrong.append(f"BOS '{tokenizer.bos_token}' stands twice at the beginning")
    if max(ids) >= vocab or min(ids) < 0:
        wrong.append(f"token id {max(ids)} is beyond the embedding's {vocab} rows")
    return wrong + (_texts(ids, start, messages, tokenizer, spec) if texts else [])


def _texts(
    ids: Sequence[int],
    start: int,
    messages: Sequence[Mapping[str, str]],
    tokenizer: Any,
    spec: RenderSpec,
) -> list[str]:
    """The thinking and the answer must be readable from the trained ids."""
    wrong: list[str] = []
    said = tokenizer.decode(ids[start:-1], skip_special_tokens=False)
    prompt = tokenizer.decode(ids[:start], skip_special_tokens=False)
    wanted = split(messages[-1]["content"], spec.tags)
    for part, text in (("thinking", wanted.reasoning), ("answer", wanted.answer)):
        if text and _folded(text) not in _folded(said):
            wrong.append(f"the {part} cannot be read back from the trained tokens: {text[:60]!r}")
    question = _folded(messages[-2]["content"])
    if question and question not in _folded(prompt):
        wrong.append(f"the question is not in the prompt: {question[:60]!r}")
    return wrong


def _folded(text: str) -> str:
    # Tokenizers may normalise white space, and Qwen's does Unicode; the words must survive.
    return "".join(unicodedata.normalize("NFKC", text).split())


def inspect(
    examples: Sequence[tuple[Rendered, Sequence[Mapping[str, str]]]],
    tokenizer: Any,
    spec: RenderSpec,
    vocab: int,
) -> dict[str, Any]:
    """Check the template and a sample of the data set, and return the report for preflight.json.

    One odd example is the data's fault and is left out by the caller; if more than half fail,
    or the template fails without any example, base, template and data do not fit each other:
    raises PreflightError.
    """
    template_check.require(tokenizer, spec)
    failures: list[dict[str, Any]] = []
    for number, (rendered, messages) in enumerate(examples):
        wrong = check(rendered, messages, tokenizer, spec, vocab)
        if wrong:
            failures.append({"example": number, "wrong": wrong})
    if len(failures) * 2 > len(examples):
        first = failures[0]
        raise PreflightError(
            f"{len(failures)} of {len(examples)} examples would be trained wrongly; "
            f"example {first['example']}: {'; '.join(first['wrong'])}",
            "student.template and student.base do not fit each other, or the data has stray tags",
        )
    return {
        "checked": len(examples),
        "failed": len(failures),
        "failures": failures[:5],
        "eos": tokenizer.eos_token,
        "pad": tokenizer.pad_token,
        "bos": tokenizer.bos_token,
        "prefill": spec.prefill,
        "template": spec.template,
        "controls": list(spec.controls),
        "thinking": sum(
            split(m[-1]["content"], spec.tags).reasoning is not None for _, m in examples
        ),
        "boundaries": boundaries(examples[0][0], tokenizer),
        "example": [
            {"trained": trained, "text": text} for trained, text in spans(examples[0][0], tokenizer)
        ],
    }


def spans(rendered: Rendered, tokenizer: Any) -> list[tuple[bool, str]]:
    """The example's text in runs of (trained, text)."""
    runs: list[tuple[bool, list[int]]] = []
    for token, label in zip(rendered.input_ids, rendered.labels, strict=True):
        trained = label != IGNORED
        if not runs or runs[-1][0] != trained:
            runs.append((trained, []))
        runs[-1][1].append(token)
    return [(trained, tokenizer.decode(ids)) for trained, ids in runs]


def thinks(messages: Sequence[Mapping[str, str]], spec: RenderSpec) -> bool:
    """True if the answer has thinking in it."""
    return bool(split(messages[-1]["content"], spec.tags).reasoning)


def boundaries(rendered: Rendered, tokenizer: Any, count: int = 5) -> dict[str, list[Any]]:
    """The tokens on both sides of the mask, and the last ones, as [id, text]."""
    start = rendered.labels.count(IGNORED)
    ids = rendered.input_ids
    parts = {
        "prompt": ids[max(0, start - count) : start],
        "first": ids[start : start + count],
        "last": ids[max(start, len(ids) - count) :],
    }
    return {name: [[i, tokenizer.decode([i])] for i in part] for name, part in parts.items()}


def show(rendered: Rendered, tokenizer: Any, limit: int = 1200) -> None:
    """One example with its mask on stderr: prompt dim, trained text green (or in brackets),
    and the tokens where the training begins and ends."""
    coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    parts = []
    for trained, text in spans(rendered, tokenizer):
        if len(text) > limit:
            text = f"{text[: limit // 2]} ... {text[-limit // 2 :]}"
        text = _harmless(text)
        if coloured:
            parts.append(f"\x1b[{'32' if trained else '2'}m{text}\x1b[0m")
        else:
            parts.append(f"[[{text}]]" if trained else text)
    how = "green" if coloured else "in [[brackets]]"
    lines = [f"one example as trained ({how}):", "".join(parts), ""]
    words = {"prompt": "prompt ends", "first": "training begins", "last": "training ends"}
    for name, tokens in boundaries(rendered, tokenizer).items():
        listed = "  ".join(f"{text!r} {number}" for number, text in tokens)
        lines.append(f"  {words[name]:<16} {listed}")
    print("\n".join([*lines, ""]), file=sys.stderr, flush=True)


def _harmless(text: str) -> str:
    # A trace may hold escape sequences; a terminal would obey them.
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
