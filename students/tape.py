"""Autograd with sizes instead of numbers: how many bytes live at each moment of a pass.

A tensor here is a number of elements and a width. What a Python variable, a node of the graph or
the gradients of a node hold is alive, as in torch: the walk below frees what torch frees, when
torch frees it. So a model's forward pass, written once more in these words (students/passes.py),
tells the peak of its forward and backward pass without running either.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Callable, Iterator, Sequence


class Meter:
    """Live bytes by kind, and what they were at the worst moment."""

    def __init__(self) -> None:
        self.now: dict[str, int] = {}
        self.total = self.peak = 0
        self.worst: dict[str, int] = {}

    def add(self, kind: str, size: int) -> None:
        self.now[kind] = self.now.get(kind, 0) + size
        self.total += size
        if self.total > self.peak:
            self.peak = self.total
            self.worst = dict(self.now)


class Buffer:
    """Bytes that live as long as somebody holds this object."""

    __slots__ = ("kind", "meter", "size")

    def __init__(self, meter: Meter, kind: str, size: int) -> None:
        self.meter, self.kind, self.size = meter, kind, size
        meter.add(kind, size)

    def __del__(self) -> None:
        self.meter.add(self.kind, -self.size)

    def relabel(self, kind: str) -> None:
        """Count these bytes under another kind from now on."""
        self.meter.now[self.kind] -= self.size
        self.meter.now[kind] = self.meter.now.get(kind, 0) + self.size
        self.kind = kind


class Tensor:
    """`count` elements of `width` bytes; a view shares its buffer."""

    __slots__ = ("buffer", "count", "node", "width")

    def __init__(self, count: int, width: int, buffer: Buffer, node: Node | None = None) -> None:
        self.count, self.width, self.buffer, self.node = count, width, buffer, node


class Weight:
    """A parameter. Its own bytes are counted by who makes it; its gradient is counted here.

    With `shards`, each process keeps that part of the gradient, in fp32; 0: somewhere else.
    """

    __slots__ = ("count", "gradient", "shards", "trained", "width")

    def __init__(self, count: int, width: int, trained: bool, shards: int = 1) -> None:
        self.count, self.width, self.trained, self.shards = count, width, trained, shards
        self.gradient: Buffer | None = None

    def keep(self, meter: Meter) -> None:
        """Have the bytes of a gradient, as after an earlier pass."""
        if self.trained:
            size = self.count * 4 // self.shards if self.shards else 0
            self.gradient = Buffer(meter, "gradients", size)


Rule = Callable[[Tensor, list[Tensor]], Sequence[Tensor | None]]
"""(gradient of a result, what was saved for it) -> gradients of its sources; what it makes inside
counts, too."""


def _none(grad: Tensor, saved: list[Tensor]) -> Sequence[Tensor | None]:
    """The rule of something that has no sources."""
    return []


class Node:
    """How a result came to be. `saved` are tensors, or, in a checkpoint, their number there."""

    __slots__ = ("number", "region", "rule", "saved", "sources")

    def __init__(
        self,
        number: int,
        sources: list[Node | Weight | None],
        rule: Rule,
        saved: list[Tensor | int],
        region: Region | None,
    ) -> None:
        self.number, self.sources, self.rule = number, sources, rule
        self.saved, self.region = saved, region


class Region:
    """A checkpointed piece: its function, its input, and how many tensors it would have saved."""

    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.function, self.x = function, x
        self.count = 0
        self.kept: list[Tensor | None] | None = None


class _EnoughError(Exception):
    """All that a checkpoint needs has been computed again: torch stops there, too."""


class Tape:
    """Makes tensors, remembers what the backward pass needs, and walks it.

    `autocast`: products are computed in two bytes, and the copies of weights that this takes are
    cached until `end_autocast`, as torch does.
    """

    def __init__(self, meter: Meter, *, autocast: bool = False) -> None:
        self.meter, self.autocast = meter, autocast
        self.kind = "activations"
        self._numbers = 0
        self._casts: dict[int, Tensor] = {}
        self._recording: Region | None = None
        self._repeating: Region | None = None

    @contextlib.contextmanager
    def label(self, kind: str) -> Iterator[None]:
        """Count what is made inside under `kind`."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    def new(self, count: int, width: int, kind: str = "") -> Tensor:
        """A fresh tensor."""
        return Tensor(count, width, Buffer(self.meter, kind or self.kind, count * width))

    def result(
        self,
        out: Tensor,
        sources: Sequence[Tensor | Weight],
        rule: Rule,
        saved: Sequence[Tensor] = (),
    ) -> Tensor:
        """`out` as the result of an operation on `sources` that keeps `saved` for later."""
        nodes = [(s if s.trained else None) if isinstance(s, Weight) else s.node for s in sources]
        if all(n is None for n in nodes):
            return out
        region = self._recording
        kept: list[Tensor | int] = []
        for tensor in saved:
            if self._repeating is not None:
                assert self._repeating.kept is not None
                self._repeating.kept.append(tensor)
                if len(self._repeating.kept) == self._repeating.count:
                    raise _EnoughError
            elif region is not None:
                kept.append(region.count)
                region.count += 1
            else:
                kept.append(tensor)
        self._numbers += 1
        out.node = Node(self._numbers, nodes, rule, kept, region)
        return out

    def checkpoint(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`function(x)`, of which only `x` is kept; the rest is computed again when needed."""
        region = Region(function, x)
        self._recording = region
        try:
            return function(x)
        finally:
            self._recording = None

    def cast_weight(self, weight: Weight) -> Tensor | Weight:
        """The two-byte copy of a wider weight under autocast, made once; else the weight."""
        if not self.autocast or weight.width <= 2:
            return weight
        found = self._casts.get(id(weight))
        if found is None:
            found = self.new(weight.count, 2, "buffers")
            wide, count = weight.width, weight.count
            self.result(found, [weight], lambda g, _: [self.new(count, wide, "buffers")])
            # torch caches only copies of weights that need gradients.
            if weight.trained:
                self._casts[id(weight)] = found
        return found

    def end_autocast(self) -> None:
        """Drop the cached copies of weights; the graph may still hold them."""
        self._casts.clear()

    def backward(self, tensor: Tensor) -> None:
        """Walk the graph from `tensor` back, the latest operation first."""
        first = tensor.node
        if first is None:
            return
        grads = {first: self.new(tensor.count, tensor.width)}
        del tensor
        heap = [(-first.number, first)]
        while heap:
            _, node = heapq.heappop(heap)
            grad = grads.pop(node)
            saved = self._unpack(node)
            found = node.rule(grad, saved)
            del grad, saved
            node.saved = []
            node.region = None
            for source, value in zip(node.sources, found, strict=True):
                if source is None or value is None:
                    continue
                if isinstance(source, Weight):
                    if source.gradient is None and source.shards != 1:
                        source.keep(self.meter)
                    elif source.gradient is None:
                        value.buffer.relabel("gradients")
                        source.gradient = value.buffer
                elif source not in grads:
                    grads[source] = value
                    heapq.heappush(heap, (-source.number, source))
            node.sources = []
            del found, value

    def _unpack(self, node: Node) -> list[Tensor]:
        region = node.region
        if region is None or not node.saved:
            return [t for t in node.saved if isinstance(t, Tensor)]
        if region.kept is None:
            self._repeat(region)
        assert region.kept is not None
        found = []
        for number in node.saved:
            assert isinstance(number, int)
            tensor = region.kept[number]
            assert tensor is not None
            found.append(tensor)
            region.kept[number] = None
        return found

    def _repeat(self, region: Region) -> None:
        region.kept = []
        casts, self._casts = self._casts, {}
        self._repeating = region
        x = Tensor(region.x.count, region.x.width, region.x.buffer, Node(0, [], _none, [], None))
        try:
            region.function(x)
        except _EnoughError:
            pass
        finally:
            self._repeating = None
            self._casts = casts
