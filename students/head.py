"""The language-model head in chunks, for heads that trl's fused one cannot see through.

trl multiplies by `lm_head.weight` itself. Where an adapter wraps the head (new tokens under
LoRA) that would leave out what the adapter adds, and never train it.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from distill.students.render import IGNORED

CHUNK = 2048


def add_chunked_head(model: Any) -> None:
    """Let `model(..., labels=labels, fused_lm_head=True)` return `{"log_probs": (trained,)}`.

    The head is called as a module, on the trained positions only, 2,048 at a time; its logits
    are computed again in the backward pass instead of being kept.
    """
    original = model.forward

    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kw: Any) -> Any:
        if not fused_lm_head:
            return original(*args, **kw)
        labels = kw.pop("labels")[:, 1:]
        hidden = self.base_model(*args, **kw).last_hidden_state[:, :-1]
        trained = labels != IGNORED
        hidden, labels = hidden[trained], labels[trained]
        head = self.get_output_embeddings()

        def log_probs(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
            logits = head(states).float()
            return -torch.nn.functional.cross_entropy(logits, wanted, reduction="none")

        parts = [
            checkpoint(log_probs, h, y, use_reentrant=False)
            for h, y in zip(hidden.split(CHUNK), labels.split(CHUNK), strict=True)
        ]
        return {"log_probs": torch.cat(parts)}

    model.forward = types.MethodType(forward, model)
