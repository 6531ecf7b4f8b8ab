"""The base model and its tokenizer, made ready: template, EOS and PAD, think tags, positions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from distill.errors import MissingExtra, ModelError
from distill.students import base_weights
from distill.students.catalog import Entry, chat_template, find, missing, needed_tokens
from distill.students.render import RenderSpec
from distill.thinking import DEFAULT_TAGS

log = logging.getLogger(__name__)

TAGS = (DEFAULT_TAGS.open, DEFAULT_TAGS.close)
UNBOUNDED = 1 << 20
MULTIPLE = 64
"""A vocabulary that grows is rounded up to it: servers share the rows out among their GPUs."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A base's tokenizer and config as the student will have them.

    `new_tokens` are ids whose embedding rows the base never trained; `vocab` is the number of
    embedding rows; `spelled` are, for a new think tag, the ids that it was written with before.
    """

    entry: Entry
    tokenizer: Any
    config: Any
    spec: RenderSpec
    template: str
    new_tokens: tuple[int, ...]
    vocab: int
    spelled: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def positions(self) -> int:
        return positions_of(self.config)


def positions_of(config: Any) -> int:
    """Positions of a model; UNBOUNDED where it has no limit (Bloom, Mamba)."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or UNBOUNDED)


def prepare(student: Mapping[str, Any]) -> Prepared:
    """Tokenizer and config for a StudentSpec, without weights.

    Raises ModelError for a base that is missing or lacks the template's tokens.
    """
    import transformers

    entry = find(student["base"], student.get("revision"))
    where = {
        "revision": student.get("revision") if entry.path == entry.base else None,
        "trust_remote_code": bool(student.get("trust_remote_code")),
    }
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(entry.path, **where)
        config = transformers.AutoConfig.from_pretrained(entry.path, **where)
    except (OSError, ValueError) as error:
        raise missing(entry.base, error) from error
    text = config.get_text_config()
    rows = int(text.vocab_size)
    _fits(tokenizer, rows, entry.base)
    name = student.get("template") or entry.template
    template = chat_template(student["base"], name, student.get("revision"))
    _require(needed_tokens(name), tokenizer, entry.base, name)
    set_special_tokens(tokenizer, entry, name)
    tokenizer.chat_template = template
    _set_positions(config, student)
    # vLLM serves no more positions than the tokenizer says, and the base's may say fewer.
    tokenizer.model_max_length = positions_of(config)
    spelled: dict[int, tuple[int, ...]] = {}
    new = [tokenizer.convert_tokens_to_ids(t) for t in entry.untrained if t in template]
    if student.get("think_tokens") == "tokens":
        spelled = add_think_tokens(tokenizer)
        new += [tokenizer.convert_tokens_to_ids(t) for t in TAGS]
    vocab = rows if len(tokenizer) <= rows else -(-len(tokenizer) // MULTIPLE) * MULTIPLE
    spec = RenderSpec.of(template, tokenizer, _ends(text))
    new_tokens = tuple(dict.fromkeys(new))
    return Prepared(entry, tokenizer, config, spec, name, new_tokens, vocab, spelled)


def _ends(config: Any) -> list[int]:
    """The ids that the base's own config names as ends of a text."""
    ends = getattr(config, "eos_token_id", None)
    return [e for e in (ends if isinstance(ends, list) else [ends]) if e is not None]


def _fits(tokenizer: Any, rows: int, base: str) -> None:
    """Raise ModelError where ordinary tokens have no row in the embedding."""
    beyond = sorted(i for i in tokenizer.get_vocab().values() if i >= rows)
    if not beyond:
        return
    ordinary = [i for i in beyond if i not in tokenizer.added_tokens_decoder]
    if ordinary:
        raise ModelError(
            f"the tokenizer of '{base}' has {len(ordinary)} tokens beyond its embedding's {rows} "
            f"rows (ids to {ordinary[-1]})",
            "tokenizer and weights are not of one model: fetch both from the same place",
        )
    log.warning(
        "the tokenizer of '%s' has %d added tokens beyond its embedding's %d rows: rows are added "
        "for them, which start at the mean",
        base,
        len(beyond),
        rows,
    )


def set_special_tokens(tokenizer: Any, entry: Entry, template: str) -> None:
    """EOS is what ends an answer, PAD is another token: a padded EOS would never be learned."""
    vocabulary = tokenizer.get_vocab()
    if entry.eos and template == entry.template and entry.eos in vocabulary:
        tokenizer.eos_token = entry.eos
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of '{entry.base}' has no EOS token",
            "a student must learn to stop: set eos_token in its tokenizer_config.json",
        )
    if entry.pad and entry.pad in vocabulary and entry.pad != tokenizer.eos_token:
        tokenizer.pad_token = entry.pad
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    reserved = next((t for t in _reserved(tokenizer) if t != tokenizer.eos_token), None)
    if reserved is not None:
        tokenizer.pad_token = reserved
        return
    # Padding comes after the answer and has no label, so any id would do; a token of its own
    # keeps every later tool that pads with it from masking EOS out of its loss.
    tokenizer.add_special_tokens({"pad_token": "<|distill_pad|>"})


def _reserved(tokenizer: Any) -> list[str]:
    """Special tokens of the vocabulary that were made to stand for nothing."""
    words = ("pad", "reserved", "unused", "endoftext")
    special = [str(t) for t in tokenizer.added_tokens_decoder.values() if t.special]
    return [t for word in words for t in special if word in t.lower()]


def add_think_tokens(tokenizer: Any) -> dict[int, tuple[int, ...]]:
    """Make each think tag one token that is part of the text.

    Returns, for each tag that was none before, its id and the ids it was spelled with.
    """
    from transformers import AddedToken

    vocabulary = tokenizer.get_vocab()
    new = {t: tokenizer.encode(t, add_special_tokens=False) for t in TAGS if t not in vocabulary}
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in new])
    return {tokenizer.convert_tokens_to_ids(t): tuple(ids) for t, ids in new.items()}


def load_model(prepared: Prepared, student: Mapping[str, Any], **options: Any) -> Any:
    """The base's weights under the prepared config.

    `options` go to `from_pretrained` (dtype, attn_implementation, quantization_config). Rows
    of tokens the base never saw start at the mean embedding, those of think tags at the mean of
    the pieces that they were spelled with. Raises ModelError.
    """
    import torch
    import transformers

    entry = prepared.entry
    base_weights.check_files(entry.base, entry.path, prepared.config)
    try:
        with base_weights.loading(entry.base):
            model, told = transformers.AutoModelForCausalLM.from_pretrained(
                entry.path,
                config=prepared.config,
                revision=student.get("revision") if entry.path == entry.base else None,
                trust_remote_code=bool(student.get("trust_remote_code")),
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except ImportError as error:
        if "bitsandbytes" in str(error):
            raise MissingExtra("bitsandbytes", "qlora", "method qlora") from error
        raise ModelError(f"'{entry.base}' cannot be loaded: {error}") from error
    except (OSError, ValueError) as error:
        if "attention implementation" in str(error):
            raise ModelError(
                f"'{entry.base}' has no such attention: {str(error).splitlines()[0]}",
                "set train.attention: eager",
            ) from error
        raise missing(entry.base, error) from error
    base_weights.check_loaded(entry.base, model, told)
    rows = model.get_input_embeddings().weight.shape[0]
    if prepared.vocab > rows:
        model.resize_token_embeddings(prepared.vocab, mean_resizing=False)
    with torch.no_grad():
        for layer in {model.get_input_embeddings(), model.get_output_embeddings()}:
            start_rows(layer.weight, rows, prepared)
    set_generation(model, prepared.tokenizer)
    return model


def start_rows(weight: Any, rows: int, prepared: Prepared) -> None:
    """Fill the rows of an embedding or head that the base never trained; `rows` are its own.

    The mean of a tag's pieces lies where the base reads and expects the tag, the mean of all rows
    nowhere in particular (docs/rendering.md compares them).
    """
    names = prepared.tokenizer.convert_ids_to_tokens(list(prepared.new_tokens))
    # A tag that was a token already (Qwen3's) keeps the row that the base has for it.
    unseen = {i for i, t in zip(prepared.new_tokens, names, strict=True) if t not in TAGS}
    empty = sorted(unseen.union(range(rows, prepared.vocab)).difference(prepared.spelled))
    pieces = {i: weight[list(ids)].float().mean(0) for i, ids in prepared.spelled.items()}
    if empty:
        weight[empty] = weight[:rows].float().mean(0).to(weight.dtype)
    for token, row in pieces.items():
        weight[token] = row.to(weight.dtype)


def set_generation(model: Any, tokenizer: Any) -> None:
    """What a server should do by default: R1's sampling (temperature 0.6, top-p 0.95), our EOS."""
    from transformers import GenerationConfig

    old = model.generation_config.eos_token_id if model.generation_config else None
    ends = [tokenizer.eos_token_id, *(old if isinstance(old, list) else [old])]
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.6,
        top_p=0.95,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[e for e in dict.fromkeys(ends) if e is not None],
        pad_token_id=tokenizer.pad_token_id,
        max_length=tokenizer.model_max_length,
    )
    text = model.config.get_text_config()
    text.eos_token_id = tokenizer.eos_token_id
    text.pad_token_id = tokenizer.pad_token_id
    if tokenizer.bos_token_id is not None:
        text.bos_token_id = tokenizer.bos_token_id


def _set_positions(config: Any, student: Mapping[str, Any]) -> None:
    text = config.get_text_config()
    if student.get("positions"):
        text.max_position_embeddings = int(student["positions"])
        if getattr(text, "sliding_window", None) and not getattr(text, "use_sliding_window", True):
            text.sliding_window = None
    theta = student.get("rope_theta")
    if theta:
        rope = getattr(text, "rope_parameters", None)
        if not isinstance(rope, dict) or "rope_theta" not in rope:
            raise ModelError(
                f"rope_theta: {theta} cannot be set: '{student['base']}' has no single RoPE base",
                "leave student.rope_theta out for this base",
            )
        rope["rope_theta"] = float(theta)


def _require(needed: tuple[str, ...], tokenizer: Any, base: str, template: str) -> None:
    vocabulary = tokenizer.get_vocab()
    lacking = [t for t in needed if t not in vocabulary]
    if lacking:
        raise ModelError(
            f"template '{template}' needs {', '.join(lacking)}, which the tokenizer of "
            f"'{base}' does not have",
            "set student.template: plain, or plain-r1 to open the thinking in the prompt",
        )
