"""A student in fewer bits for vLLM, by llm-compressor: FP8, INT8, GPTQ or AWQ.

`fp8` and `int8` look at the weights alone. `gptq` and `awq` (4 bits) also look at activations on
the run's own training examples, rendered as they were trained: a reasoning model that is calibrated
on web text loses more. llm-compressor pins its own transformers; `distill export` therefore runs
this in whatever interpreter it is told.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from distill.errors import DataError, MissingExtra, ModelError, UsageError
from distill.students.export_weights import complete

log = logging.getLogger(__name__)

SCHEMES = {"fp8": "FP8_DYNAMIC", "int8": "W8A16", "gptq": "W4A16", "awq": "W4A16_ASYM"}
"""Form -> llm-compressor's scheme. W8A16: rounded to the nearest, one scale per row."""

CALIBRATED = ("gptq", "awq")
EXAMPLES, TOKENS = 128, 2048
"""Examples, and tokens of each, that calibrated forms look at (llm-compressor's own examples use
128 to 512 of 2,048)."""

GROUP = 128
"""Weights in a row that share one scale in the 4-bit schemes."""


def run(payload: Mapping[str, Any]) -> dict[str, Any]:
    """`quantise` for a child process: model, out, form, dataset in; what it returns out."""
    dataset = payload.get("dataset")
    return quantise(
        Path(payload["model"]),
        Path(payload["out"]),
        payload["form"],
        Path(dataset) if dataset else None,
    )


def quantise(
    model: Path, out: Path, form: str, dataset: Path | None = None, examples: int = EXAMPLES
) -> dict[str, Any]:
    """Write the model folder `model` to the folder `out` in fewer bits; returns a summary.

    `dataset` (JSONL rows {"messages": [...]}) is needed by the calibrated forms. The embedding and
    the head keep their precision. Raises UsageError, MissingExtra, DataError, ModelError.
    """
    if form not in SCHEMES:
        raise UsageError(f"unknown form '{form}'", f"known: {', '.join(SCHEMES)}")
    if form in CALIBRATED and dataset is None:
        raise UsageError(f"{form} needs examples to calibrate on", "fp8 and int8 need none")
    try:
        import llmcompressor
    except ImportError as error:
        raise MissingExtra("llmcompressor", "quantise", f"export as {form}") from error
    import torch
    import transformers

    if form == "awq" and not torch.accelerator.is_available():
        raise UsageError(
            "awq needs a GPU: llm-compressor pins memory for one", "gptq, fp8 and int8 run without"
        )
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    _divisible(loaded, form)
    asked: dict[str, Any] = {"model": loaded, "tokenizer": tokenizer, "recipe": _recipe(form)}
    count = 0
    if form in CALIBRATED and dataset is not None:
        rows = calibration(dataset, tokenizer, examples)
        count = len(rows)
        asked |= {"dataset": rows, "num_calibration_samples": count, "max_seq_length": TOKENS}
    llmcompressor.oneshot(**asked)
    with complete(out) as temporary:
        loaded.save_pretrained(temporary, save_compressed=True)
        tokenizer.save_pretrained(temporary)
        for name in ("README.md", "generation_config.json"):
            if (model / name).is_file():
                shutil.copy2(model / name, temporary / name)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    return {
        "path": str(out),
        "bytes": size,
        "scheme": SCHEMES[form],
        "examples": count,
        "by": f"llmcompressor {llmcompressor.__version__}",
    }


def _recipe(form: str) -> list[Any]:
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier

    what = {"targets": "Linear", "scheme": SCHEMES[form], "ignore": ["lm_head"]}
    if form == "gptq":
        return [GPTQModifier(**what)]
    if form == "awq":
        from llmcompressor.modifiers.transform.awq import AWQModifier

        return [AWQModifier(), QuantizationModifier(**what)]
    return [QuantizationModifier(**what)]


def _divisible(model: Any, form: str) -> None:
    """The 4-bit schemes share scales within groups; vLLM's kernels want whole ones."""
    if form not in CALIBRATED:
        return
    import torch

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module.in_features % GROUP and name != "lm_head":
            raise ModelError(
                f"'{name}' takes {module.in_features} features, no multiple of {GROUP}: {form} "
                "shares one scale among so many",
                "export it as fp8 or int8",
            )


def calibration(dataset: Path, tokenizer: Any, examples: int) -> Any:
    """The first training examples as `datasets.Dataset` rows of token ids, as they were trained."""
    from datasets import Dataset

    from distill.students.render import RenderSpec, render

    spec = RenderSpec.of(tokenizer.chat_template)
    rows = []
    with dataset.open(encoding="utf-8") as lines:
        for line in islice(lines, examples):
            ids = render(json.loads(line)["messages"], tokenizer, spec).input_ids[:TOKENS]
            rows.append({"input_ids": ids, "attention_mask": [1] * len(ids)})
    if not rows:
        raise DataError(f"{dataset} holds no examples to calibrate on")
    return Dataset.from_list(rows)
