"""Batched decoding with a KV cache: many rows of token ids in, sampled continuations out.

Every row is sampled with its own parameters and its own random numbers, which depend on the
row's seed and step alone, never on its neighbours. The arithmetic of a batch does depend on
the batch (in the last bits), so equal text is promised for equal batches only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "distill_sdpa"
CHUNK = 256
"""Steps for which random numbers are drawn, and positions by which a cache grows, at a time."""

SHORTLIST = 1024
"""Candidates looked at before a large vocabulary is sorted whole."""


@dataclass(slots=True)
class Row:
    """One sequence to go on with, and what became of it.

    `ids` is the prompt with anything already sampled, `limit` the number of new tokens
    allowed. `stop` is asked after every new token with the tokens so far, and ends the row
    where it says True; None never stops. `out` holds the new tokens, the ending EOS included.
    """

    ids: Sequence[int]
    limit: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int | None = None
    stop: Callable[[Sequence[int]], bool] | None = None
    out: list[int] = field(default_factory=list)
    finish_reason: str = ""

    def push(self, token: int, eos: frozenset[int]) -> bool:
        """Take one more token; True while the row goes on."""
        self.out.append(token)
        if token in eos or (self.stop is not None and self.stop(self.out)):
            self.finish_reason = "stop"
        elif len(self.out) >= self.limit:
            self.finish_reason = "length"
        return not self.finish_reason


class BufferLayer(DynamicLayer):
    """A cache layer that grows in chunks, where DynamicLayer copies all of it at every token."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._length = 0
        self._key_buffer = key_states.new_empty(0)
        self._value_buffer = value_states.new_empty(0)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append states of shape (batch, heads, new, head size); returns all there are."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self._length, self._length + key_states.shape[2]
        if self._key_buffer.dim() != 4 or end > self._key_buffer.shape[2]:
            capacity = (end * 5 // 4 // CHUNK + 1) * CHUNK
            self._key_buffer = _grown(self._key_buffer, key_states, start, capacity)
            self._value_buffer = _grown(self._value_buffer, value_states, start, capacity)
        self._key_buffer[:, :, start:end] = key_states
        self._value_buffer[:, :, start:end] = value_states
        self._length = end
        self._show()
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep the rows `beam_idx`, in that order."""
        rows = beam_idx.to(self._key_buffer.device)
        self._key_buffer = self._key_buffer.index_select(0, rows)
        self._value_buffer = self._value_buffer.index_select(0, rows)
        self._show()

    def _show(self) -> None:
        self.keys = self._key_buffer[:, :, : self._length]
        self.values = self._value_buffer[:, :, : self._length]


def _grown(old: torch.Tensor, like: torch.Tensor, used: int, capacity: int) -> torch.Tensor:
    batch, heads, _, size = like.shape
    new = like.new_empty(batch, heads, capacity, size)
    if used:
        new[:, :, :used] = old[:, :, :used]
    return new


def grouped_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """SDPA that leaves grouped keys where they are while one token is decoded.

    transformers repeats keys and values for each query head at every step. With a single
    query position the heads of a group can stand in the place of positions instead:
    (batch, kv heads x group, 1, size) is viewed as (batch, kv heads, group, size).
    """
    if query.shape[2] != 1 or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    batch, heads, _, size = query.shape
    folded = query.reshape(batch, key.shape[1], -1, size)
    out = torch.nn.functional.scaled_dot_product_attention(
        folded, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    return out.reshape(batch, 1, heads, value.shape[-1]), None


AttentionInterface.register(ATTENTION, grouped_sdpa)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class Decoder:
    """A causal model of transformers, ready to decode batches.

    `eos` are the ids that end a row; `pad` is any valid id, it is never attended to.
    """

    def __init__(self, model: Any, *, eos: frozenset[int], pad: int) -> None:
        self.model = model.eval()
        self.device = model.get_input_embeddings().weight.device
        self.eos = eos
        self.pad = pad
        probe = DynamicCache(config=model.config)
        # Sliding windows and recurrent states need transformers' own masks and layers.
        plain = bool(probe.layers) and all(type(layer) is DynamicLayer for layer in probe.layers)
        self.fast = plain and model.config._attn_implementation in ("sdpa", ATTENTION)

    @torch.inference_mode()
    def run(self, rows: Sequence[Row], on_tokens: Callable[[int], None] | None = None) -> None:
        """Fill `out` and `finish_reason` of every row; all rows decode as one batch.

        Rows that are done leave the batch as soon as they are a quarter of it.
        """
        alive = [row for row in rows if row.limit > 0]
        for row in rows:
            if row.limit <= 0:
                row.finish_reason = "length"
        if not alive:
            return
        batch = _Batch(self, alive)
        chooser = Chooser(alive, self.device)
        logits = batch.prefill()
        unreported = 0
        while True:
            tokens = chooser(logits)
            live = 0
            for row, token in zip(alive, tokens.tolist(), strict=True):
                if not row.finish_reason:
                    unreported += 1
                    live += row.push(token, self.eos)
            if on_tokens is not None and (unreported >= CHUNK or not live):
                on_tokens(unreported)
                unreported = 0
            if not live:
                return
            if live * 4 <= len(alive) * 3:
                keep = [i for i, row in enumerate(alive) if not row.finish_reason]
                alive = [alive[i] for i in keep]
                index = torch.tensor(keep, device=self.device)
                tokens = tokens[index]
                batch.keep(index)
                chooser.keep(keep, index)
            logits = batch.step(tokens)


class _Batch:
    """The tensors of the rows still alive: left-padded ids, positions, mask and cache."""

    def __init__(self, decoder: Decoder, rows: Sequence[Row]) -> None:
        self.decoder = decoder
        lengths = [len(row.ids) for row in rows]
        self.width = max(lengths)
        size = self.width + max(row.limit for row in rows)
        # Samples of one prompt share its prefill: row i continues prompt `shared[i]`.
        places: dict[tuple[int, ...], int] = {}
        self.shared = [places.setdefault(tuple(row.ids), len(places)) for row in rows]
        ids = torch.full((len(places), self.width), decoder.pad, dtype=torch.long)
        # Columns beyond the present width stay True: they are tokens still to come.
        self.mask = torch.ones(len(rows), size, dtype=torch.bool)
        for i, length in enumerate(lengths):
            self.mask[i, : self.width - length] = False
        for prompt, place in places.items():
            ids[place, self.width - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.long)
        self.padded = min(lengths) < self.width
        self.ids = ids.to(decoder.device)
        self.mask = self.mask.to(decoder.device)
        self.next_position = torch.tensor(lengths, device=decoder.device)[:, None]
        self.cache = DynamicCache(config=decoder.model.config)
        if decoder.fast:
            self.cache.layers = [BufferLayer() for _ in self.cache.layers]

    def prefill(self) -> torch.Tensor:
        """Logits after the prompts, of shape (rows, vocabulary)."""
        rows = len(self.shared)
        first = [self.shared.index(place) for place in range(len(self.ids))]
        seen = self.mask[first, : self.width]
        positions = (seen.cumsum(-1) - 1).clamp_(min=0)
        logits = self._forward(self.ids, positions, seen if self.padded else None)
        if len(self.ids) == rows:
            return logits
        index = torch.tensor(self.shared, device=self.decoder.device)
        self.cache.reorder_cache(index)
        return logits[index]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits after one more token of shape (rows,) each."""
        self.width += 1
        mask = self.mask[:, : self.width] if self.padded else None
        if mask is not None and self.decoder.fast:
            mask = mask[:, None, None]
        logits = self._forward(tokens[:, None], self.next_position, mask)
        self.next_position = self.next_position + 1
        return logits

    def keep(self, index: torch.Tensor) -> None:
        """Drop all rows but those of `index`."""
        self.mask = self.mask[index]
        self.next_position = self.next_position[index]
        self.cache.reorder_cache(index)

    def _forward(
        self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        out = self.decoder.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1].float()


class Chooser:
    """Picks the next token of every row: temperature, then top-k, then top-p, as in vLLM."""

    def __init__(self, rows: Sequence[Row], device: torch.device) -> None:
        self.device = device
        self.generators = [_generator(row.seed) for row in rows]
        self.greedy = torch.tensor([row.temperature == 0 for row in rows], device=device)
        self.all_greedy = bool(self.greedy.all())
        self.any_greedy = bool(self.greedy.any())
        self.temperature = torch.tensor([row.temperature or 1.0 for row in rows], device=device)
        self.top_p = torch.tensor([row.top_p for row in rows], device=device)
        tops = [row.top_k or 0 for row in rows]
        self.top_k = torch.tensor(tops, device=device) if any(tops) else None
        self.uniforms = torch.empty(0)
        self.used = CHUNK

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Ids of shape (rows,) for logits of shape (rows, vocabulary)."""
        if self.all_greedy:
            return logits.argmax(-1)
        if self.used == CHUNK:
            drawn = [torch.rand(CHUNK, generator=generator) for generator in self.generators]
            self.uniforms = torch.stack(drawn, 1).to(self.device)
            self.used = 0
        uniform = self.uniforms[self.used]
        self.used += 1
        scaled = logits / self.temperature[:, None]
        picked = pick(scaled, self.top_p, self.top_k, uniform)
        return torch.where(self.greedy, logits.argmax(-1), picked) if self.any_greedy else picked

    def keep(self, keep: Sequence[int], index: torch.Tensor) -> None:
        """Drop all rows but those of `index`."""
        self.generators = [self.generators[i] for i in keep]
        self.greedy, self.temperature = self.greedy[index], self.temperature[index]
        self.top_p = self.top_p[index]
        self.top_k = None if self.top_k is None else self.top_k[index]
        if self.uniforms.numel():
            self.uniforms = self.uniforms[:, index]


def pick(
    logits: torch.Tensor,
    top_p: torch.Tensor,
    top_k: torch.Tensor | None,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """Sample each row of `logits` (rows, vocabulary) by the inverse CDF of its kept tokens.

    The tokens are ordered by falling probability; kept are the `top_k` first (0: all), and of
    those the fewest whose renormalised probabilities reach `top_p`.
    """
    if logits.shape[1] > 4 * SHORTLIST:
        short = _pick_short(logits, top_p, top_k, uniform)
        if short is not None:
            return short
    ordered, ids = logits.sort(-1, descending=True)
    if top_k is not None:
        ordered = _mask_ranks(ordered, top_k)
    return _pick_ordered(ordered.softmax(-1), ids, top_p, uniform)


def _pick_short(
    logits: torch.Tensor, top_p: torch.Tensor, top_k: torch.Tensor | None, uniform: torch.Tensor
) -> torch.Tensor | None:
    """The same from the likeliest few, or None where those do not reach every row's top_p."""
    ordered, ids = logits.topk(SHORTLIST, -1)
    total = logits.logsumexp(-1, keepdim=True)
    if top_k is not None:
        capped = (top_k > 0) & (top_k <= SHORTLIST)
        ordered = _mask_ranks(ordered, torch.where(capped, top_k, 0))
        total = torch.where(capped[:, None], ordered.logsumexp(-1, keepdim=True), total)
        covers = capped
        if bool((top_k > SHORTLIST).any()):
            return None
    else:
        covers = torch.zeros_like(uniform, dtype=torch.bool)
    probabilities = (ordered - total).exp()
    if not bool((covers | (probabilities.sum(-1) >= top_p)).all()):
        return None
    return _pick_ordered(probabilities, ids, top_p, uniform)


def _mask_ranks(ordered: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    ranks = torch.arange(ordered.shape[1], device=ordered.device)
    return ordered.masked_fill((ranks >= top_k[:, None]) & (top_k[:, None] > 0), -torch.inf)


def _pick_ordered(
    probabilities: torch.Tensor, ids: torch.Tensor, top_p: torch.Tensor, uniform: torch.Tensor
) -> torch.Tensor:
    cumulative = probabilities.cumsum(-1)
    kept = ((cumulative - probabilities < top_p[:, None]) & (probabilities > 0)).sum(-1)
    last = (kept - 1).clamp_(min=0)[:, None]
    threshold = uniform[:, None] * cumulative.gather(-1, last)
    rank = torch.searchsorted(cumulative, threshold, right=True).minimum(last)
    return ids.gather(-1, rank)[:, 0]


def _generator(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(os.urandom(7), "big") if seed is None else seed)
    return generator
