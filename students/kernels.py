"""Kernels that compute several small steps of a layer at once: liger-kernel's, on a GPU.

RMS norm, rotary positions and the gated MLP (Hsu et al., arXiv 2410.10989). Liger's fused loss is
left out: our head (head.py) takes its place.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

from distill.errors import MissingExtra, UsageError

log = logging.getLogger(__name__)

PARTS = ("rope", "rms_norm", "swiglu", "geglu", "layer_norm")
"""What is taken from liger where it has it for a model."""


def choose(wanted: str, gpu: bool, config: Any = None) -> str:
    """`torch` or `liger` for `train.kernels` and a model's config.

    `auto` is liger on a GPU where it is installed and knows the model. Raises UsageError for liger
    without a GPU or for a model that it does not know, and MissingExtra where it is not installed.
    """
    if wanted not in ("auto", "liger"):
        return "torch"
    if not gpu:
        if wanted == "auto":
            return "torch"
        raise UsageError(
            "train.kernels: liger needs a GPU: its kernels are written in Triton",
            "leave train.kernels out: on a CPU torch's own are used",
        )
    if importlib.util.find_spec("liger_kernel") is None:
        if wanted == "auto":
            return "torch"
        raise MissingExtra("liger-kernel", "liger", "train.kernels: liger")
    if config is None or config.model_type in _known():
        return "liger"
    if wanted == "liger":
        raise UsageError(
            f"train.kernels: liger-kernel has no kernels for models of type {config.model_type}",
            "leave train.kernels out: torch's own are used",
        )
    log.warning("liger-kernel does not know models of type %s: torch's are used", config.model_type)
    return "torch"


def _known() -> set[str]:
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    return set(MODEL_TYPE_TO_APPLY_LIGER_FN)


def apply(model: Any) -> None:
    """Put liger's kernels into a model, in place; only its layers, never its loss."""
    from transformers.integrations.liger import apply_liger_kernel

    told = dict.fromkeys(PARTS, True)
    apply_liger_kernel(model, {**told, "cross_entropy": False, "fused_linear_cross_entropy": False})
