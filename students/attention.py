"""Attention for a row of many examples: each attends causally within itself, and nothing is masked.

Registered with transformers under the name `distill_varlen`. The layout is `flat` (packing.py): one
long row whose boundaries arrive as `cu_seq_lens_q`. A block-diagonal mask over that row would cost
its width squared, in memory and in products that are thrown away; here the work is that of every
example alone. On a GPU torch's own variable-length flash attention does it in one call; on a CPU
one fused call per example.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

from distill.errors import DistillError

VARLEN = "distill_varlen"

PACKABLE_LAYERS = {"full_attention", "sliding_attention", "attention"}
"""Kinds of layers (config.layer_types) whose only way from token to token is attention."""


def unpackable(config: Any) -> str:
    """Why examples of this model cannot share a row, or "".

    Recurrent layers and convolutions carry their state over from one example to the next, whatever
    attention does. What this list does not know, `leaks` finds out.
    """
    text = config.get_text_config()
    kinds = {str(kind) for kind in getattr(text, "layer_types", None) or []}
    others = sorted(kinds - PACKABLE_LAYERS)
    if others:
        return f"some of its layers are {', '.join(others)}"
    if any(getattr(text, name, None) for name in ("ssm_cfg", "mamba_d_state", "state_size")):
        return "it has recurrent layers"
    return ""


def unsupported(config: Any) -> str:
    """What in this model's attention neither `distill_varlen` nor sdpa can compute, or ""."""
    text = config.get_text_config()
    if getattr(text, "attn_logit_softcapping", None):
        return "capped attention logits"
    return "attention sinks" if text.model_type == "gpt_oss" else ""


def understood(config: Any) -> bool:
    """Whether transformers' class for this config asks an attention function by name."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if getattr(config, "auto_map", None) or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return bool(getattr(kind, "_supports_attention_backend", False))


def register(processes: int = 1) -> None:
    """Make `attn_implementation="distill_varlen"` known to transformers; calling again is free.

    With more than one of `processes`, that many neighbours share every row (context.py).
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    context = None
    if processes > 1:
        from distill.students.context import form

        context = form(processes)
    AttentionInterface.register(VARLEN, functools.partial(attend, context=context))
    AttentionMaskInterface.register(VARLEN, _mask)


def _mask(*args: Any, attention_mask: Any = None, **kw: Any) -> Any:
    """No mask for rows without padding marks (training); sdpa's own otherwise (generation)."""
    if attention_mask is None:
        return None
    from transformers.masking_utils import sdpa_mask

    return sdpa_mask(*args, attention_mask=attention_mask, **kw)


def attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Any = None,
    max_length_q: int | None = None,
    context: Any = None,
    **kw: Any,
) -> tuple[Any, None]:
    """Causal attention inside each example of a row; without boundaries, that of `sdpa`.

    `query` is (1, heads, tokens, dim); `cu_seq_lens_q` (examples + 1,) are the examples' bounds.
    Returns (1, tokens, heads, dim), as transformers' interface asks for.
    """
    for name in ("softcap", "s_aux", "position_bias"):
        if kw.get(name) is not None:
            raise DistillError(
                f"{VARLEN} attention cannot compute this model's {name}",
                "set train.attention: eager (or flash_attention_2)",
            )
    if cu_seq_lens_q is None:  # one example a row, or generation
        return _plain(
            module, query, key, value, attention_mask, dropout, scaling, sliding_window, kw
        )
    query, key, value = _as_one(query, key, value)
    window = sliding_window if sliding_window and sliding_window < (max_length_q or 0) else None
    if context is not None and query.shape[2] != cu_seq_lens_q[-1]:
        from distill.students.context import attend as share

        bounds = cu_seq_lens_q.tolist()
        return share(context, query, key, value, bounds, dropout, scaling, window), None
    if query.is_cuda and query.dtype in _half() and not dropout:
        return _on_gpu(query, key, value, scaling, window, cu_seq_lens_q, max_length_q), None
    bounds = cu_seq_lens_q.tolist()
    lengths = [end - start for start, end in itertools.pairwise(bounds)]
    return _by_example(query, key, value, dropout, scaling, window, lengths), None


def _as_one(query: Any, key: Any, value: Any) -> tuple[Any, Any, Any]:
    """All in one precision: with fp32 weights under autocast, RoPE leaves queries and keys fp32."""
    import torch

    device = query.device.type
    active = torch.is_autocast_enabled(device)
    kind = torch.get_autocast_dtype(device) if active else value.dtype
    return query.to(kind), key.to(kind), value.to(kind)


def _half() -> tuple[Any, Any]:
    import torch

    return torch.bfloat16, torch.float16


def _on_gpu(
    query: Any,
    key: Any,
    value: Any,
    scaling: float | None,
    window: int | None,
    bounds: Any,
    most: Any,
) -> Any:
    from torch.nn.attention.varlen import varlen_attn

    # transformers' window counts the token itself, flash attention's only those before it.
    return varlen_attn(
        *(x[0].transpose(0, 1) for x in (query, key, value)),
        bounds,
        bounds,
        int(most),
        int(most),
        scale=scaling,
        window_size=(window - 1 if window else -1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )[None]


def _by_example(
    query: Any,
    key: Any,
    value: Any,
    dropout: float,
    scaling: float | None,
    window: int | None,
    lengths: list[int],
) -> Any:
    import torch

    grouped = query.shape[1] != key.shape[1]
    if grouped and query.is_cuda and query.dtype not in _half():
        # Only flash attention takes fewer heads of keys; in fp32 the fallback would build the
        # scores of the whole example.
        repeat = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(repeat, dim=1) for x in (key, value))
        grouped = False
    parts = []
    # One split instead of a slice per example: its backward is one concatenation, a slice's is a
    # zero tensor of the whole row.
    for q, k, v in zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True):
        banded = window is not None and q.shape[2] > window
        made = torch.nn.functional.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=_band(q.shape[2], int(window or 0), q.device) if banded else None,
            dropout_p=dropout,
            is_causal=not banded,
            scale=scaling,
            enable_gqa=grouped,
        )
        parts.append(made.transpose(1, 2))
    return torch.cat(parts, dim=1)


def _band(length: int, window: int, device: Any) -> Any:
    """(length, length), true where a token may look: at itself and the `window` - 1 before it."""
    import torch

    square = torch.ones(length, length, dtype=torch.bool, device=device)
    return square.tril() & ~square.tril(-window)


def _plain(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    mask: Any,
    dropout: float,
    scaling: float | None,
    window: int | None,
    kw: dict[str, Any],
) -> tuple[Any, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    length = query.shape[2]
    if mask is None and window and length > window and key.shape[2] == length:
        mask = _band(length, window, query.device)
    return sdpa_attention_forward(module, query, key, value, mask, dropout, scaling, **kw)


def leaks(model: Any, layout: str) -> float:
    """How far an example's outputs move when the example before it in its row changes.

    Runs two rows of two examples of eight tokens through `model` (as the trainer will: the same
    layout, the same precision). Returns the relative difference, 0 where nothing crosses: every
    operation is the same, on the same shapes.
    """
    import torch

    device = next(model.parameters()).device
    half = 8
    ids = torch.arange(2 * half, device=device)[None] % model.config.get_text_config().vocab_size
    other = ids.clone()
    other[:, :half] = ids[:, :half].flip(1)
    inputs: dict[str, Any] = {
        "position_ids": torch.arange(half, device=device).repeat(2)[None],
        "use_cache": False,
    }
    if layout == "flat":
        bounds = torch.tensor([0, half, 2 * half], dtype=torch.int32, device=device)
        inputs |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
        inputs |= {"max_length_q": half, "max_length_k": half}
    training = model.training
    model.eval()
    with torch.no_grad():
        one, two = (model(input_ids=x, **inputs).logits[:, half:].float() for x in (ids, other))
    model.train(training)
    return float((one - two).norm() / one.norm().clamp(min=1e-30))
