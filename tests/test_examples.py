"""The examples run as they stand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill import Recipe

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
def test_an_own_teacher_and_student(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / "custom_teacher.py"), str(tmp_path / "runs")],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stderr
    assert "report" in ran.stdout
    run = json.loads(next((tmp_path / "runs").glob("adder-*/run.json")).read_text())
    assert run["status"] == "done"
    assert run["objects"] == {"teacher": "Adder", "student": "Gentle"}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.name)
def test_example_recipes_are_valid(path: Path) -> None:
    assert Recipe.load(path).name
