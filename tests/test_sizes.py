"""Each size's recipe on a two-layer model of its architecture: the real code path, small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill import Recipe, run
from tests.test_pipeline import Counting
from tests.tiny_students import CHATML, LLAMA3
from tests.tiny_students import base as tiny_base

SIZES = [
    ("1.5b", "full", "qwen2", True),
    ("7b", "lora", "qwen2", False),
    ("8b", "full", "llama", False),
    ("14b", "qlora", "qwen2", False),
    ("32b", "lora", "qwen2", False),
    ("70b", "qlora", "llama", False),
]

POSITIONS = {"1.5b": (4096, 1e4), "7b": (4096, 1e4)}


@pytest.mark.slow
@pytest.mark.parametrize(("size", "method", "family", "tied"), SIZES)
def test_a_recipe_runs_end_to_end_on_its_architecture(
    tmp_path: Path, size: str, method: str, family: str, tied: bool
) -> None:
    if method == "qlora":
        pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")
    # Qwen2.5-Math has 4,096 positions, which its recipes change; the other bases keep theirs.
    positions, theta = POSITIONS.get(size, (131072, 500000.0 if family == "llama" else 1e6))
    base = tiny_base(
        tmp_path / "base",
        family,
        CHATML if family == "qwen2" else LLAMA3,
        max_position_embeddings=positions,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings=tied,
    )
    problems = tmp_path / "problems.jsonl"
    rows = [{"problem": f"What is {i} + {i + 1} ?", "answer": str(2 * i + 1)} for i in range(20)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe.load(
        size,
        variant=f"{method},1k",
        overrides=[
            f"student.base={base}",
            f"problems.sources=[{{file: {problems}}}]",
            "problems.heldout=0.2",
            "evaluate.tasks=[heldout]",
            "evaluate.samples=1",
            "evaluate.max_tokens=8",
            # What needs eight GPUs is asked of one CPU here; everything else is the recipe's.
            "train.processes=1",
            "train.shard=none",
            "train.epochs=1",
        ],
    )
    report = run(recipe, teacher=Counting(), runs=tmp_path / "runs")
    folder = report.path.parent
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "done"
    student = tmp_path / "runs" / record["steps"]["train"]["folder"] / "student"
    config = json.loads((student / "config.json").read_text())
    assert config["model_type"] == family
    if recipe.student.positions:
        assert config["max_position_embeddings"] == recipe.student.positions
        assert config["rope_parameters"]["rope_theta"] == recipe.student.rope_theta
    shown = json.loads((student.parent / "preflight.json").read_text())
    assert shown, "the pre-flight left nothing"
    assert "pass" in (folder / "report.md").read_text()
