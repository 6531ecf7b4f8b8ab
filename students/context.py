"""One long row over several processes: each holds some of its tokens, and attends to all keys.

Everything but attention works on single tokens, so a process needs only its own. For attention,
keys and values of the whole row are gathered, layer by layer (as Llama 3 was trained: Grattafiori
et al. 2024, arXiv 2407.21783, 3.3.2); with grouped heads they are few. Of a row in 2n equal chunks
process p of n holds chunk p and chunk 2n-1-p, so that everyone's causal attention is of about the
same size. Bounds of packed examples hold as ever.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from distill.students.render import IGNORED


@dataclass(frozen=True, slots=True)
class Context:
    """The `size` processes that share a row; this is number `part` of them."""

    group: Any
    size: int
    part: int

    def mine(self, tokens: int) -> list[tuple[int, int]]:
        """The two chunks of a row of so many tokens that this process holds."""
        width = tokens // (2 * self.size)
        return [(i * width, (i + 1) * width) for i in (self.part, 2 * self.size - 1 - self.part)]


def form(size: int) -> Context:
    """Groups of `size` neighbouring processes; every process of the training calls this."""
    world, rank = dist.get_world_size(), dist.get_rank()
    found = None
    for first in range(0, world, size):
        group = dist.new_group(list(range(first, first + size)))
        if first <= rank < first + size:
            found = Context(group, size, rank - first)
    if found is None:
        raise ValueError(f"{world} processes are no multiple of {size}")
    return found


def split(batch: dict[str, Any], size: int, part: int, pad: int) -> dict[str, Any]:
    """The part of a flat batch (one row with its bounds) that process `part` of `size` holds.

    The row is filled up to a multiple of 2 `size` tokens; what fills it is an example of its own.
    """
    fill = -batch["input_ids"].shape[1] % (2 * size)
    bounds = batch["cu_seq_lens_q"]
    if fill:
        bounds = torch.cat([bounds, bounds[-1:] + fill])
    total = int(bounds[-1])
    chunks = Context(None, size, part).mine(total)
    empty = {"input_ids": pad, "labels": IGNORED, "position_ids": 0}
    made: dict[str, Any] = {}
    for name, value in empty.items():
        row = torch.nn.functional.pad(batch[name], (0, fill), value=value)
        made[name] = torch.cat([row[:, start:end] for start, end in chunks], dim=1)
    longest = max(int(bounds.diff().max()), 1)
    made |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
    return made | {"max_length_q": longest, "max_length_k": longest}


def attend(
    context: Context,
    query: Any,
    key: Any,
    value: Any,
    bounds: list[int],
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Causal attention of this process's tokens (1, heads, tokens, dim) to the whole row's keys.

    `bounds` are those of the examples in the whole row. Returns (1, tokens, heads, dim).
    """
    key, value = _Gather.apply(torch.stack([key, value]), context).unbind(0)
    pieces = [
        (max(start, first), min(end, last), first)
        for start, end in context.mine(bounds[-1])
        for first, last in itertools.pairwise(bounds)
        if first < end and last > start
    ]
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and not dropout:
        return _varlen(query, key, value, pieces, scaling, window)
    grouped = query.shape[1] != key.shape[1]
    parts = []
    lengths = [end - start for start, end, _ in pieces]
    for q, (start, end, first) in zip(query.split(lengths, dim=2), pieces, strict=True):
        made = torch.nn.functional.scaled_dot_product_attention(
            q,
            key[:, :, first:end],
            value[:, :, first:end],
            attn_mask=_late(end - start, end - first, window, q.device),
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=grouped,
        )
        parts.append(made.transpose(1, 2))
    return torch.cat(parts, dim=1)


def _late(queries: int, keys: int, window: int | None, device: Any) -> torch.Tensor:
    """(queries, keys): the queries are the last of the keys' tokens; true where one may look."""
    square = torch.ones(queries, keys, dtype=torch.bool, device=device)
    seen = square.tril(keys - queries)
    return seen & ~square.tril(keys - queries - window) if window else seen


def _varlen(
    query: Any, key: Any, value: Any, pieces: list[Any], scaling: float | None, window: int | None
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    lengths = [(end - start, end - first) for start, end, first in pieces]
    cu = [
        torch.tensor([0, *itertools.accumulate(ns)], dtype=torch.int32, device=query.device)
        for ns in zip(*lengths, strict=True)
    ]
    keys, values = (
        torch.cat([x[0, :, first:end] for _, end, first in pieces], dim=1).transpose(0, 1)
        for x in (key, value)
    )
    made: torch.Tensor = varlen_attn(
        query[0].transpose(0, 1),
        keys,
        values,
        *cu,
        max(q for q, _ in lengths),
        max(k for _, k in lengths),
        scale=scaling,
        # Where there are fewer queries than keys, flash attention takes them for the last ones.
        window_size=(window - 1 if window else -1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return made[None]


class _Gather(torch.autograd.Function):
    """Tokens of all processes in the row's order; backward sums what all say of one's own."""

    @staticmethod
    def forward(ctx: Any, own: Any, context: Context) -> Any:
        ctx.context, size = context, context.size
        found = [torch.empty(own.shape, dtype=own.dtype, device=own.device) for _ in range(size)]
        dist.all_gather(found, own.contiguous(), group=context.group)
        halves = [part.chunk(2, dim=-2) for part in found]
        order = [first for first, _ in halves] + [second for _, second in reversed(halves)]
        return torch.cat(order, dim=-2)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        context: Context = ctx.context
        whole = grads[0].contiguous()
        dist.all_reduce(whole, group=context.group)
        own = [whole[..., start:end, :] for start, end in context.mine(whole.shape[-2])]
        return torch.cat(own, dim=-2), None
