"""A step's own interpreter: refused in time where it is not fit, recorded, and no identity."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import distill
from distill import interpreters
from distill.errors import UsageError
from distill.manifest import make_manifest
from distill.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]


def fake(folder: Path, answer: str) -> str:
    """A program that answers the probe with `answer`."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n")
    path.chmod(0o755)
    return str(path)


def told(version: str = distill.__version__, **packages: str) -> str:
    return json.dumps({"python": "3.12.1", "distill": version, "packages": packages})


ALL = dict.fromkeys(("torch", "transformers", "trl", "peft", "accelerate", "datasets"), "1.0")


@pytest.mark.parametrize(
    ("answer", "said", "way_out"),
    [
        ("", "does not run as a Python", "give the path"),
        ('{"python": "3.12", "packages": {}, "error": "ModuleNotFoundError: distill"}',
         "distill cannot be imported", f"-m pip install 'distill=={distill.__version__}'"),
        (told("0.0.1", **ALL), "has distill 0.0.1", f"'distill=={distill.__version__}'"),
        (told(**ALL), "lacks bitsandbytes, liger-kernel, deepspeed, trackio",
         "-m pip install 'distill[qlora,liger,deepspeed]' trackio"),
        (told(), "lacks torch", "'distill[qlora,liger,deepspeed]'"),
    ],
)  # fmt: skip
def test_an_interpreter_that_cannot_do_its_step_is_refused(
    tmp_path: Path, answer: str, said: str, way_out: str
) -> None:
    wanted = ["student.method=qlora", "train.kernels=liger", "train.trackers=[trackio]"]
    recipe = Recipe.load("pocket", overrides=[*wanted, "train.shard=zero3"])
    recipe.interpreters = {"train": fake(tmp_path, answer)}
    with pytest.raises(UsageError) as caught:
        interpreters.check(recipe)
    assert said in caught.value.message
    assert way_out in caught.value.hint
    interpreters.check(recipe, ["sample"])  # a run that stops before does not need it


def test_a_fit_interpreter_passes_and_is_described(tmp_path: Path) -> None:
    recipe = Recipe.load("pocket")
    plain = recipe.identity()
    recipe.interpreters = {"train": fake(tmp_path, told(**ALL)), "sample": "/no/such/python"}
    interpreters.check(recipe, ["train"])
    assert recipe.identity() == plain
    content = recipe.model_dump(mode="json")
    manifest = make_manifest(content, tmp_path, {}, ["distill"])["interpreters"]
    assert manifest["train"]["packages"]["trl"] == "1.0"
    assert "there is no program" in manifest["sample"]["error"]


@pytest.mark.parametrize(
    ("overrides", "stage", "vllm"),
    [
        (["teacher.engine=vllm"], "sample", True),
        (["teacher.engine=openai"], "sample", False),
        (["teacher.engine=vllm", "teacher.options={python: /x, replicas: 2}"], "sample", False),
        (["evaluate.engine=vllm"], "evaluate", True),
    ],
)
def test_who_needs_vllm(overrides: list[str], stage: str, vllm: bool) -> None:
    recipe = Recipe.load("pocket", overrides=overrides)
    assert ("vllm" in interpreters.packages_of(recipe, stage)) == vllm
    assert "vllm" not in interpreters.packages_of(recipe, "train")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_sampling_in_the_environment_of_the_server(tmp_path: Path) -> None:
    python = os.environ.get("DISTILL_VLLM_PYTHON") or str(ROOT / ".venv-vllm" / "bin" / "python")
    if not Path(python).is_file():
        pytest.skip("no other interpreter: run `make vllm`, or set DISTILL_VLLM_PYTHON")
    command = [sys.executable, "-m", "distill.cli", "sample", "pocket", "--limit", "40"]
    command += ["--runs", str(tmp_path / "runs"), "sampling.n=1"]

    def run(*more: str) -> str:
        done = subprocess.run([*command, *more], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stderr

    run(f"interpreters={{sample: {python}}}")
    (manifest,) = tmp_path.glob("runs/*/manifest.json")
    there = json.loads(manifest.read_text())["interpreters"]["sample"]
    assert there["path"] == python
    assert there["distill"] == distill.__version__
    assert "vllm" in there["packages"]
    # The same step, whoever did it.
    (line,) = [line for line in run().splitlines() if line.startswith("sample")]
    assert line.endswith("reused")
    assert len(list(tmp_path.glob("runs/steps/sample-*"))) == 1
