"""Another Python for a step (`interpreters: {train: /opt/train/bin/python}`): is it fit for that?

Trainer and server often cannot share an environment. What they exchange are files, so each only
needs distill, in the same version, and the packages of its own step.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import distill
from distill import models
from distill.errors import UsageError
from distill.recipe import Recipe

TRAINER = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
EXTRAS = {
    "bitsandbytes": "qlora",
    "deepspeed": "deepspeed",
    "flash-attn": "flash",
    "liger-kernel": "liger",
    "ray": "ray",
    "vllm": "vllm",
}
"""Package -> the extra of distill that brings it."""

# Run there, so it must not need anything of ours but what it is asked about. Not in the current
# folder: a checkout of distill would be imported from it.
PROBE = """
import importlib.metadata, importlib.util, json, platform, sys
sys.path[:] = [path for path in sys.path if path]
found = {"python": platform.python_version(), "packages": {}}
for name in json.loads(sys.argv[1]):
    try:
        found["packages"][name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if importlib.util.find_spec(name.replace("-", "_")):
            found["packages"][name] = "?"
try:
    import distill
    found["distill"] = distill.__version__
except Exception as error:
    found["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""
PROBE_S = 120


def check(recipe: Recipe, stages: Sequence[str] = ("sample", "train", "evaluate")) -> None:
    """Refuse an interpreter that cannot run its step, before anything is paid for.

    Raises UsageError with the pip line.
    """
    for stage, python in recipe.interpreters.items():
        if stage not in stages:
            continue
        wanted = packages_of(recipe, stage)
        found = probe(python, (*wanted, *EXTRAS))
        said = f"interpreters.{stage} is {python}, and"
        if "distill" not in found:
            raise UsageError(
                f"{said} distill cannot be imported there ({found['error']})",
                f"{python} -m pip install 'distill=={distill.__version__}'",
            )
        if found["distill"] != distill.__version__:
            raise UsageError(
                f"{said} has distill {found['distill']}; this is {distill.__version__}",
                f"{python} -m pip install 'distill=={distill.__version__}'",
            )
        if missing := [name for name in wanted if name not in found["packages"]]:
            raise UsageError(
                f"{said} lacks {', '.join(missing)}", f"{python} -m pip install {_line(missing)}"
            )


def packages_of(recipe: Recipe, stage: str) -> tuple[str, ...]:
    """The packages that a step of this recipe imports, beside those that all of distill needs."""
    if stage == "train":
        if recipe.student.trainer != "sft":
            return ()
        train = recipe.train
        chosen = {
            "bitsandbytes": recipe.student.method == "qlora",
            "liger-kernel": train.kernels == "liger",
            "deepspeed": train.shard == "zero3",
            "ray": train.launcher == "ray",
            "flash-attn": (train.attention or "") == "flash_attention_2",
        }
        return (*TRAINER, *(name for name, needed in chosen.items() if needed), *train.trackers)
    engine = recipe.evaluate.engine if stage == "evaluate" else _engine(recipe)
    options = recipe.evaluate.options if stage == "evaluate" else recipe.teacher.options
    packages = ("torch", "transformers", *(("lm-eval",) if stage == "evaluate" else ()))
    # Servers that we start may have a third interpreter.
    served_elsewhere = bool(options.get("python"))
    return (*packages, "vllm") if engine == "vllm" and not served_elsewhere else packages


def _engine(recipe: Recipe) -> str:
    spec = recipe.teacher
    if spec.engine or not spec.model:
        return spec.engine
    return str(models.teacher_entry(spec.model).engine)


def described(named: Mapping[str, str], packages: Sequence[str]) -> dict[str, Any]:
    """Versions in each interpreter that a recipe names, for the manifest."""
    told: dict[str, Any] = {}
    for stage, python in named.items():
        try:
            found = probe(python, tuple(packages))
        except UsageError as error:
            found = {"error": error.message}
        told[stage] = {"path": python, **found}
    return told


@functools.cache
def probe(python: str, packages: tuple[str, ...]) -> dict[str, Any]:
    """What an interpreter says of itself: `python`, `packages` by version, `distill` or `error`.

    Raises UsageError where it does not run.
    """
    program = shutil.which(os.path.expanduser(python))
    if program is None:
        raise UsageError(
            f"there is no program {python}", "give the path of a Python that has distill installed"
        )
    command = [program, "-c", PROBE, json.dumps(packages)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_S)
    except subprocess.TimeoutExpired:
        raise UsageError(f"{python} did not answer within {PROBE_S} s") from None
    except OSError as error:
        raise UsageError(f"{python} cannot be run: {error}") from None
    try:
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        tail = " ".join(done.stderr.strip().splitlines()[-1:]) or "it said nothing"
        raise UsageError(
            f"{python} does not run as a Python: {tail}",
            "give the path of a Python, such as /opt/train/bin/python",
        ) from None
    return found


def _line(missing: Sequence[str]) -> str:
    extras = [EXTRAS[name] for name in missing if name in EXTRAS]
    plain = [name for name in missing if name not in EXTRAS and name not in TRAINER]
    ours = f"'distill[{','.join(extras)}]'" if extras else ""
    if not extras and len(plain) < len(missing):
        ours = f"'distill=={distill.__version__}'"  # its own requirements bring the trainer's
    return " ".join(word for word in (ours, *plain) if word)
