"""A LoRA adapter added into its base's weights, and the proof that this changed nothing.

Adding happens in fp32 on the CPU: in the 4 bits of QLoRA or in bf16 the adapter would be rounded
away. An adapter of another base is refused, because peft adds what fits and leaves out the rest.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.errors import ModelError
from distill.students.loading import Prepared, load_model

log = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""By how much merging may move a logit, relative to the largest; fp32 rounding is about 1e-6."""

PREFIX = "base_model.model."
_NUMBER = re.compile(r"\.\d+\.")
HINT = "merge it into the base it was trained on, or train again"


def merge(
    adapter: Path,
    prepared: Prepared,
    student: Mapping[str, Any],
    dtype: Any,
    probe: Sequence[Sequence[int]] = (),
) -> tuple[Any, float | None]:
    """The base with the adapter in its weights, cast to `dtype`, and by how much a logit moved.

    `probe` holds token ids of a few real examples. Their logits are computed before and after
    merging, both in fp32; the largest absolute difference is returned (None without a probe).
    Raises ModelError for an adapter of another base, and where merging changed the logits.
    """
    import torch
    from peft import PeftModel

    base = load_model(prepared, student, dtype=torch.float32)
    check_adapter(adapter, base, str(prepared.entry.path))
    adapted = PeftModel.from_pretrained(base, str(adapter)).eval()
    before = [_logits(adapted, ids) for ids in probe]
    merged = adapted.merge_and_unload(safe_merge=True)
    found = difference(before, [_logits(merged, ids) for ids in probe])
    return merged.to(dtype), found


def difference(before: Sequence[Any], after: Sequence[Any]) -> float | None:
    """How far two lists of logits are apart at most. Raises ModelError beyond TOLERANCE."""
    if not before:
        return None
    largest = max(float(logits.abs().max()) for logits in before)
    found = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
    if not found <= TOLERANCE * max(1.0, largest):
        raise ModelError(
            f"merging the adapter moved a logit by {found:.3g} (the largest is {largest:.3g}): the "
            "merged model would not say what was trained",
            "the adapter is kept in adapter/; serve it beside its base, and report this",
        )
    return found


def _logits(model: Any, ids: Sequence[int]) -> Any:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor([list(ids)])).logits.float()


def check_adapter(adapter: Path, base: Any, path: str) -> None:
    """Raise ModelError where an adapter does not belong to `base` (a model loaded from `path`)."""
    from safetensors import SafetensorError, safe_open

    try:
        told = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        with safe_open(adapter / "adapter_model.safetensors", framework="pt") as opened:
            shapes = {k: tuple(opened.get_slice(k).get_shape()) for k in opened.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"the adapter in {adapter} cannot be read: {error}", HINT) from error
    _check_name(str(told.get("base_model_name_or_path") or ""), path)
    modules = dict(base.named_modules())
    adapted = set()
    for key, shape in shapes.items():
        name, _, part = key.removeprefix(PREFIX).partition(".lora_")
        if not part:
            continue
        if name not in modules:
            raise ModelError(f"the adapter changes '{name}', which {path} does not have", HINT)
        adapted.add(name)
        _check_shape(name, part, shape, modules[name], path)
    if told.get("layers_to_transform"):
        return
    kinds = {_NUMBER.sub(".N.", name) for name in adapted}
    for name in modules:
        if _NUMBER.sub(".N.", name) in kinds and name not in adapted:
            raise ModelError(f"the adapter has nothing for '{name}' of {path}", HINT)


def _check_name(said: str, path: str) -> None:
    if not said or said == path or _same_folder(said, path):
        return
    if Path(said).is_absolute() and not Path(said).exists():
        log.warning("the adapter was trained on %s, which is gone; %s has its shapes", said, path)
        return
    raise ModelError(f"the adapter was trained on '{said}', not on '{path}'", HINT)


def _same_folder(one: str, other: str) -> bool:
    return Path(one).is_dir() and Path(other).is_dir() and Path(one).samefile(other)


def _check_shape(name: str, part: str, shape: tuple[int, ...], module: Any, path: str) -> None:
    weight = getattr(module, "weight", None)
    if weight is None or weight.dim() != 2 or part not in ("A.weight", "B.weight"):
        return
    rows, columns = tuple(weight.shape)
    if type(module).__name__ == "Conv1D":  # GPT-2 stores its matrices transposed
        rows, columns = columns, rows
    found, wanted = (shape[1], columns) if part == "A.weight" else (shape[0], rows)
    if found != wanted:
        side = "takes" if part == "A.weight" else "gives"
        raise ModelError(
            f"the adapter's '{name}' {side} {found} features, that of {path} {wanted}", HINT
        )
