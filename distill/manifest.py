"""The manifest of a run: everything its numbers depended on, and nothing secret.

Recorded are versions, machine, seeds and hashes. Values of environment variables are never read;
what looks like a credential in a recipe or on a command line is replaced by `***`.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import distill
from distill import interpreters

SCHEMA = 1
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "safetensors",
    "tokenizers",
    "vllm",
    "lm-eval",
    "math-verify",
    "reasoning-gym",
    "numpy",
    "pyarrow",
    "pydantic",
    "httpx",
    "jinja2",
    "matplotlib",
)
HIDDEN = "***"

_SECRET_KEY = re.compile(
    r"(^|[_.-])(api[_-]?key|secret|password|passwd|authorization|credentials?"
    r"|(hf|auth|access|bearer|api)[_-]?token)$|(^|[.-])token$",
    re.IGNORECASE,
)
# Shapes of well-known tokens: OpenAI and similar, Hugging Face, GitHub, AWS, JSON web tokens.
_SECRET_VALUE = re.compile(
    r"\b(sk-[\w-]{16,}|hf_\w{16,}|gh[pousr]_\w{16,}|AKIA\w{12,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*)"
)

# user:password@host in the address of a server
_IN_ADDRESS = re.compile(r"://[^/\s@]+@")


def make_manifest(
    recipe: Mapping[str, Any],
    runs: Path,
    steps: Mapping[str, Any],
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """What a run depended on, as a plain dict.

    `steps` is the entry of that name in run.json, with folders relative to `runs`. `command` is
    the command line; by default this process's own.
    """
    words = list(sys.argv if command is None else command)
    return {
        "schema": SCHEMA,
        "command": [hide_argument(word) for word in words],
        "recipe": hide_secrets(recipe),
        "seeds": _seeds(recipe),
        "distill": _own_version(),
        "python": platform.python_version(),
        "packages": _packages(),
        "interpreters": interpreters.described(recipe.get("interpreters") or {}, PACKAGES),
        "machine": _machine(),
        "steps": {name: _step(runs, entry) for name, entry in steps.items()},
    }


def hide_secrets(value: Any, key: str = "") -> Any:
    """The same data with credentials replaced: by the name of their key or by their shape."""
    if isinstance(value, Mapping):
        return {str(k): hide_secrets(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [hide_secrets(item, key) for item in value]
    if isinstance(value, str) and value:
        return HIDDEN if _SECRET_KEY.search(key) else _hide_text(value)
    return value


def hide_argument(word: str) -> str:
    """One word of a command line, `key=value` with the value hidden where it is a credential."""
    key, equals, value = word.partition("=")
    if equals and _SECRET_KEY.search(key):
        return f"{key}={HIDDEN}"
    return f"{key}{equals}{_hide_text(value)}" if equals else _hide_text(word)


def _hide_text(text: str) -> str:
    return _IN_ADDRESS.sub(f"://{HIDDEN}@", _SECRET_VALUE.sub(HIDDEN, text))


def _seeds(recipe: Mapping[str, Any]) -> dict[str, Any]:
    seed = recipe.get("seed", 0)
    of_training = (recipe.get("train") or {}).get("seed")
    sources = (recipe.get("problems") or {}).get("sources") or []
    tasks = {str(s.get("name") or s["task"]): s.get("seed", 0) for s in sources if s.get("task")}
    seeds = {"run": seed, "train": seed if of_training is None else of_training}
    for stage in recipe.get("stages") or []:
        if (stage.get("train") or {}).get("seed") is not None:
            seeds[f"train-{stage['name']}"] = stage["train"]["seed"]
    return {**seeds, "problems": tasks} if tasks else seeds


def _own_version() -> dict[str, Any]:
    found: dict[str, Any] = {"version": distill.__version__}
    source = Path(distill.__file__).resolve().parents[1]
    if not (source / "pyproject.toml").is_file():
        return found
    commit = _output("git", "-C", str(source), "rev-parse", "HEAD")
    if commit:
        found["commit"] = commit
        found["dirty"] = bool(_output("git", "-C", str(source), "status", "--porcelain"))
    return found


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_gib": _memory_gib(),
        "gpus": _gpus(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


def _gpus() -> list[str]:
    """Name, memory and driver as nvidia-smi tells them; no torch, which would take the GPU."""
    if not shutil.which("nvidia-smi"):
        return []
    query = "--query-gpu=name,memory.total,driver_version"
    text = _output("nvidia-smi", query, "--format=csv,noheader")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _step(runs: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    folder = runs / str(entry.get("folder", ""))
    done, summary = read_object(folder / "done.json"), read_object(folder / "summary.json")
    files = done.get("files") or {}
    tokens = ("prompt_tokens", "completion_tokens", "tokens_bought", "tokens", "trained_tokens")
    return {
        "folder": entry.get("folder"),
        "identity": done.get("identity") or entry.get("id"),
        "version": done.get("version"),
        "seconds": entry.get("seconds", done.get("seconds")),
        "reused": bool(entry.get("reused")),
        "tokens": {key: summary[key] for key in tokens if summary.get(key) is not None},
        "config": hide_secrets(done.get("config") or {}),
        "files": {
            name: {"sha256": described.get("sha256"), "size": described.get("size")}
            for name, described in files.items()
        },
    }


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty where it is missing or damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
