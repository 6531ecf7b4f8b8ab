"""Which examples share an optimizer update and which rows of tokens they are laid out in.

An update covers exactly `batch_size` examples, whatever the layout. Its examples are laid out
in micro-batches of at most `micro_batch_tokens` tokens, in one of three layouts:

- `padded`: one example a row, sorted by length; plain causal attention.
- `flat`: one long row without padding, for attention of variable lengths (attention.py, flash
  attention); the boundaries travel beside it.
- `rectangle`: several examples a row (best fit decreasing), rows as wide as the longest example,
  for attention with masks; transformers builds the block-diagonal mask from `position_ids`, which
  start again at each example.

Attention never crosses from one example to another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Layout = Literal["padded", "rectangle", "flat"]
Lengths = Mapping[int, int] | Sequence[int]
"""Tokens of an example by its number."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of example numbers; every row is padded to `width` tokens. `empty` is not trained."""

    rows: tuple[tuple[int, ...], ...]
    width: int
    empty: bool = False

    @property
    def packed(self) -> bool:
        return any(len(row) > 1 for row in self.rows)


def updates(count: int, batch_size: int, epochs: float, seed: int) -> list[list[int]]:
    """The examples of every update of a training, in order.

    Each epoch is a permutation that depends on (seed, epoch) only. Its last update may be
    smaller; a fraction of an epoch ends after that share of its updates.
    """
    per_epoch = math.ceil(count / batch_size)
    total = max(1, round(epochs * per_epoch))
    plan: list[list[int]] = []
    epoch = 0
    while len(plan) < total:
        order = np.random.default_rng([seed, epoch]).permutation(count).tolist()
        plan += [order[i : i + batch_size] for i in range(0, count, batch_size)]
        epoch += 1
    return plan[:total]


def best_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Best fit decreasing: indices into `lengths` in bins of at most `width` tokens.

    A longer example gets a bin of its own.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        fitting = [(left, b) for b, left in enumerate(room) if left >= length]
        if fitting:
            _, chosen = min(fitting)
            bins[chosen].append(index)
            room[chosen] -= length
        else:
            bins.append([index])
            room.append(width - length)
    return bins


def lay_out(
    examples: Sequence[int],
    lengths: Lengths,
    budget: int,
    layout: Layout,
    world: int = 1,
    square: float = 0.0,
) -> list[MicroBatch]:
    """The micro-batches of one update.

    `budget` are the tokens of one micro-batch, padding included; an example longer than that
    gets a micro-batch of its own. For several processes flat rows are of about equal cost.
    """
    if layout == "flat" and world > 1:
        return balance(examples, lengths, budget, world, square)
    if layout == "flat":
        bins = best_fit([lengths[i] for i in examples], budget)
        rows = [tuple(examples[i] for i in b) for b in bins]
        return [MicroBatch((row,), sum(lengths[i] for i in row)) for row in rows]
    order = sorted(examples, key=lambda i: (-lengths[i], i))
    if layout == "padded":
        rows = [(i,) for i in order]
    else:
        bins = best_fit([lengths[i] for i in order], lengths[order[0]])
        rows = [tuple(order[i] for i in b) for b in bins]
        rows.sort(key=lambda row: -sum(lengths[i] for i in row))
    found: list[MicroBatch] = []
    while rows:
        width = sum(lengths[i] for i in rows[0])
        take = max(1, budget // width)
        # Equal shares instead of full ones and a small rest: fewer, evenly filled passes.
        take = math.ceil(len(rows) / math.ceil(len(rows) / take))
        found.append(MicroBatch(tuple(rows[:take]), width))
        rows = rows[take:]
    return found


def cost(rows: Sequence[Sequence[int]], lengths: Lengths, square: float) -> float:
    """Work of a micro-batch: its tokens, and `square` times the square of each example's."""
    each = [lengths[i] for row in rows for i in row]
    return sum(each) + square * sum(n * n for n in each)


def share(
    micro_batches: list[MicroBatch], lengths: Lengths, world: int, square: float = 0.0
) -> list[list[MicroBatch]]:
    """The micro-batches of each of `world` processes: equally many for everyone.

    Processes must make equally many passes (FSDP gathers weights in each), so the costliest are
    split, and where nothing is left to split the shortest example is passed without training.
    Passes of about the same cost meet: everyone waits for the slowest of each.
    """
    parts = list(micro_batches)
    while len(parts) % world or len(parts) < world:
        parts.sort(key=lambda m: (-sum(len(r) for r in m.rows), -m.width))
        if not _split_first(parts, lengths, square):
            shortest = min((i for m in parts for r in m.rows for i in r), key=lambda i: lengths[i])
            parts.append(MicroBatch(((shortest,),), lengths[shortest], empty=True))
    parts.sort(key=lambda m: (m.empty, -cost(m.rows, lengths, square), -m.width * len(m.rows)))
    # There and back: who has the costliest of one pass has the cheapest of the next.
    order = [*range(world), *reversed(range(world))]
    shares: list[list[MicroBatch]] = [[] for _ in range(world)]
    for number, part in enumerate(parts):
        shares[order[number % len(order)]].append(part)
    return shares


def balance(
    examples: Sequence[int], lengths: Lengths, budget: int, world: int, square: float
) -> list[MicroBatch]:
    """Flat micro-batches of about equal cost, as many as a multiple of `world`.

    Longest first, each to the cheapest row that has room for it. With fewer examples than
    processes some get none; `share` deals with that.
    """
    total = [lengths[i] for i in examples]
    count = -(-len(best_fit(total, budget)) // world) * world
    order = sorted(examples, key=lambda i: (-lengths[i], i))
    while True:
        rows: list[list[int]] = [[] for _ in range(count)]
        room, spent = [budget] * count, [0.0] * count
        for i in order:
            fits = [r for r in range(count) if room[r] >= lengths[i] or not rows[r]]
            if not fits:
                break
            chosen = min(fits, key=lambda r: (spent[r], r))
            rows[chosen].append(i)
            room[chosen] -= lengths[i]
            spent[chosen] += lengths[i] + square * lengths[i] ** 2
        else:
            return [MicroBatch((tuple(r),), sum(lengths[i] for i in r)) for r in rows if r]
        count += world


def _split_first(parts: list[MicroBatch], lengths: Lengths, square: float) -> bool:
    first = parts[0]
    if len(first.rows) > 1:
        half = len(first.rows) // 2
        pieces = [first.rows[:half], first.rows[half:]]
    elif len(first.rows[0]) > 1:
        row = first.rows[0]
        bins = balance(row, lengths, first.width, 2, square)[:2]
        pieces = [b.rows for b in bins]
    else:
        return False
    parts[:1] = [MicroBatch(rows, max(sum(lengths[i] for i in r) for r in rows)) for rows in pieces]
    return True
