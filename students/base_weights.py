"""Is a base what it should be: whole, in floating point, and with every weight of its architecture?

transformers fills weights that a file lacks with random ones, and casts integers to floats; both
train without a complaint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.errors import ModelError

FLOATS = ("F64", "F32", "F16", "BF16")
"""What safetensors calls the types that a base may be stored in."""


def check_files(base: str, path: str, config: Any) -> None:
    """Raise ModelError for a base that is quantised, torn or stored as integers; reads headers."""
    from safetensors import SafetensorError, safe_open

    quantised = getattr(config, "quantization_config", None)
    if quantised:
        told = quantised if isinstance(quantised, Mapping) else vars(quantised)
        raise ModelError(
            f"'{base}' is quantised already ({told.get('quant_method', 'unknown method')}): "
            "its weights cannot be trained, nor an adapter merged into them",
            "name the unquantised model; student.method: qlora quantises it on the way",
        )
    for file in sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else []:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    kind = opened.get_slice(name).get_dtype()
                    if kind not in FLOATS:
                        raise ModelError(
                            f"'{name}' of '{base}' is stored as {kind}, which is no weight to "
                            "train",
                            f"a base is stored as one of {', '.join(FLOATS)}",
                        )
        except (SafetensorError, OSError) as error:
            raise _torn(base, str(file), error) from error


@contextlib.contextmanager
def loading(base: str) -> Iterator[None]:
    """What goes wrong inside `from_pretrained` as a ModelError."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise _torn(base, "a weight file", error) from error
    except RuntimeError as error:
        if "mismatched" not in str(error):
            raise
        raise ModelError(
            f"weights of '{base}' have other shapes than its config.json says",
            _again(base),
        ) from error


def _again(base: str) -> str:
    if Path(base).expanduser().is_dir():
        return "copy or download the model's files again"
    return f"fetch the model again: hf download --force-download {base}"


def _torn(base: str, file: str, error: Exception) -> ModelError:
    return ModelError(f"{file} of '{base}' is torn: {error}", _again(base))


def check_loaded(base: str, model: Any, told: Mapping[str, Any]) -> None:
    """Raise ModelError where weights were missing (`told` is from_pretrained's loading info) or
    are not finite."""
    import torch

    missing = sorted(told.get("missing_keys") or ())
    if missing:
        raise ModelError(
            f"'{base}' lacks {len(missing)} of its weights, first '{missing[0]}'; they would "
            "have been filled at random",
            _again(base),
        )
    for name, weight in model.named_parameters():
        if weight.is_meta or not weight.is_floating_point():
            continue
        if not bool(torch.isfinite(weight.detach()).all()):
            raise ModelError(f"'{name}' of '{base}' holds NaN or infinity", _again(base))
