"""Bytes of all live tensors, and their highest sum: what an allocator's counters say on a GPU."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tally(TorchDispatchMode):
    """Counts the storage of every tensor that an operation returns, until it is freed.

    torch's MemTracker counts alike, but stops at the second forward pass of a model. What a kernel
    takes for itself while it runs is not seen. Works with real and with fake tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}
        self._sizes: dict[int, int] = {}

    def add(self, tensors: Iterable[Any]) -> None:
        """Count tensors that exist already."""
        for tensor in tensors:
            self._add(tensor)

    def _add(self, tensor: torch.Tensor) -> None:
        # A shard of FSDP is a DTensor: a wrapper that claims the size of the whole.
        tensor = getattr(tensor, "_local_tensor", tensor)
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # a wrapper; what it wraps is counted
            return
        key = storage._cdata
        if key not in self._seen:
            self._seen[key] = weakref.ref(storage, lambda _: self._gone(key))
        self._size(key, storage.nbytes())

    def _size(self, key: int, size: int) -> None:
        self.now += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)
        self._seen.pop(key, None)

    def __enter__(self) -> Tally:
        # FSDP frees gathered weights by resizing their storage to nothing.
        resize = self._resize = torch.UntypedStorage.resize_

        def watched(storage: Any, size: int) -> Any:
            result = resize(storage, size)
            if storage._cdata in self._seen:
                self._size(storage._cdata, size)
            return result

        torch.UntypedStorage.resize_ = watched  # type: ignore[method-assign]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf)
        return out


def held(model: torch.nn.Module) -> list[torch.Tensor]:
    """Everything a model keeps: parameters, buffers, and the scales of weights in four bits."""
    found: list[torch.Tensor] = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        for part in (state, getattr(state, "state2", None)):
            if part is not None:
                found += [t for t in vars(part).values() if isinstance(t, torch.Tensor)]
    return found
