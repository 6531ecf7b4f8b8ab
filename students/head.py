"""The language-model head and the loss in pieces: logits of all tokens never exist at once.

Logits of 32k tokens over a vocabulary of 152k are 20 GB in fp32. `add_nll_head` teaches a model
`model(..., nll=labels)`: the sum of the negative log-likelihoods of the trained tokens. Prompts
never reach the head. A plain head is multiplied piece by piece, and each piece's gradient is taken
at once, while its logits are there (as Liger's fused loss does: Hsu et al., arXiv 2410.10989), so
nothing is computed again in the backward pass. Where an adapter wraps the head, or the model
transforms its logits, pieces go through the model's own modules and are computed again.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from distill.students.render import IGNORED

CPU_LOGITS_BYTES = 16 << 20
GPU_LOGITS_BYTES = 1 << 30

SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier")
"""Keys of configs by which families multiply their logits (Cohere, Falcon-H1)."""


def piece(vocab: int, device: str) -> int:
    """Tokens whose fp32 logits are there at once."""
    return max(16, (CPU_LOGITS_BYTES if device == "cpu" else GPU_LOGITS_BYTES) // (4 * vocab))


def add_nll_head(model: Any) -> None:
    """Let `model(..., nll=labels)` return the summed negative log-likelihood, a scalar in fp32.

    `labels` are (rows, tokens), already moved by one: the label at a position is the token that
    should follow it; `IGNORED` where nothing is trained. Without `nll` the forward is as before.
    """
    original = model.forward
    transformed = _transforms(model.config.get_text_config())

    @functools.wraps(type(model).forward)
    def forward(*args: Any, nll: torch.Tensor | None = None, **kw: Any) -> Any:
        if nll is None:
            return original(*args, **kw)
        hidden = model.base_model(*args, **kw).last_hidden_state
        head = model.get_output_embeddings()
        trained = nll != IGNORED
        hidden, labels = hidden[trained], nll[trained]
        if type(head) is torch.nn.Linear and head.bias is None and not transformed:
            return _of_plain_head(hidden, head.weight, labels)
        return _of_modules(functools.partial(_logits, model, head), hidden, labels)

    model.forward = forward


def _transforms(config: Any) -> bool:
    names = ("final_logit_softcapping", "logits_scaling", *SCALES)
    return any(getattr(config, name, None) not in (None, 1.0) for name in names)


def _of_plain_head(hidden: Any, weight: Any, labels: Any) -> torch.Tensor:
    from torch.distributed.tensor import DTensor
    from trl.trainer.utils import maybe_gather_lm_head_ctx

    if isinstance(weight, DTensor):
        weight = weight.full_tensor()
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        kind = torch.get_autocast_dtype(device)
        hidden = hidden.to(kind)
    with maybe_gather_lm_head_ctx(weight, None):
        total: torch.Tensor = _Nll.apply(hidden, weight, labels)
    return total


class _Nll(torch.autograd.Function):
    """Sum of -log softmax(hidden @ weight.T)[labels], and its gradients in the same pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, labels: Any) -> Any:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        used = weight.to(hidden.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        to_hidden = torch.empty_like(hidden) if need_hidden else None
        to_weight = torch.zeros_like(weight) if need_weight else None
        size = piece(weight.shape[0], hidden.device.type)
        for start in range(0, len(hidden), size):
            h, y = hidden[start : start + size], labels[start : start + size, None]
            logits = torch.mm(h, used.t()).float()
            log_z = torch.logsumexp(logits, dim=1, keepdim=True)
            total += (log_z - logits.gather(1, y)).sum()
            if not need_hidden and not need_weight:
                continue
            # From here on `logits` are the gradient: softmax minus one at the label.
            logits.sub_(log_z).exp_()
            logits.scatter_add_(1, y, torch.full_like(log_z, -1.0))
            gradient = logits.to(hidden.dtype)
            if to_hidden is not None:
                torch.mm(gradient, used, out=to_hidden[start : start + size])
            if to_weight is not None and to_weight.dtype == gradient.dtype:
                to_weight.addmm_(gradient.t(), h)
            elif to_weight is not None:
                to_weight += torch.mm(gradient.t(), h)
        ctx.save_for_backward(to_hidden, to_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        to_hidden, to_weight = ctx.saved_tensors
        (scale,) = grads
        # In place: both were made for this call and are handed on.
        return (
            None if to_hidden is None else to_hidden.mul_(scale),
            None if to_weight is None else to_weight.mul_(scale),
            None,
        )


def _logits(model: Any, head: Any, states: Any) -> Any:
    """What the model makes of hidden states, its own scaling and capping included."""
    config = model.config.get_text_config()
    logits = head(states).float()
    scale = next(
        (value for name in SCALES if (value := getattr(config, name, None)) is not None),
        1.0,
    )
    divisor = getattr(config, "logits_scaling", None)
    if divisor is not None:
        scale = scale * divisor if config.model_type == "hyperclovax" else scale / divisor
    logits = logits * scale
    cap = getattr(config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


def _of_modules(logits: Any, hidden: Any, labels: Any) -> torch.Tensor:
    def nll(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits(states), wanted, reduction="sum")

    vocab = logits.args[0].config.get_text_config().vocab_size
    size = piece(vocab, hidden.device.type)
    parts = [
        checkpoint(nll, h, y, use_reentrant=False)
        for h, y in zip(hidden.split(size), labels.split(size), strict=True)
    ]
    return torch.stack(parts).sum()
