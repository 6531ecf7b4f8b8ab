"""Which weights a name stands for: a folder, a catalog entry, or a hub model at a commit."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import ModelError
from distill.resolve import resolve
from distill.step import file_sha256, write_atomically

WEIGHT_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.gguf", "*.txt")


def teacher_entry(model: str) -> Any:
    """The teachers' catalog entry of a name (`distill.teachers.catalog.find`)."""
    return resolve("distill.teachers.catalog:find", {}, what="catalog")(model)


def student_entry(base: str) -> Any:
    """The students' catalog entry of a base (`distill.students.catalog.find`)."""
    return resolve("distill.students.catalog:find", {}, what="catalog")(base)


def of_students(what: str) -> Any:
    """`module:name` of the package `distill.students`: `of_students("flops:training_flops")`."""
    return resolve(f"distill.students.{what}", {}, what="part of distill.students")


def local(model: str, folder: Path) -> str:
    """A model folder named relative to the recipe's as an absolute path; other names unchanged."""
    path = folder / Path(model).expanduser()
    return str(path.resolve()) if (path / "config.json").is_file() else model


TEXT_OPTIONS = (
    *("dtype", "chat_template", "template_kwargs", "ignore_eos", "extra_body"),
    *("hf_overrides", "kv_cache_dtype", "max_lora_rank", "speculative_config"),
)
"""Options of an engine that change what a model says; all others are run-time."""


def text_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of an engine's options that belong to the identity of what it says."""
    return {key: options[key] for key in TEXT_OPTIONS if options.get(key) is not None}


def has_gpu() -> bool:
    """True if the system shows an NVIDIA or AMD GPU, or is a Mac with its own; torch-free."""
    devices = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    return apple or any(Path(device).exists() for device in devices)


def fingerprint(model: str, revision: str | None, cache: Path) -> str:
    """What pins the weights down: `sha256:...` of a local folder, `commit:...` of a hub model.

    `cache` is a file that remembers the hashes of large files by path, size and time. Raises
    ModelError with the `hf download` line for a hub model that is neither reachable nor cached.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _folder_fingerprint(folder, cache)
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ModelError(
            f"no model '{model}': no such folder, and not a hub name (owner/name)",
            "give a folder with config.json and *.safetensors, or a name from the hub",
        )
    return f"commit:{hub_commit(model, revision)}"


def hub_commit(model: str, revision: str | None) -> str:
    """The commit of a hub model, asked of the hub or, offline, of the local cache."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    if not constants.HF_HUB_OFFLINE:
        from huggingface_hub.errors import HfHubHTTPError

        try:
            commit = HfApi().model_info(model, revision=revision, timeout=10).sha
            if commit:
                return commit
        except HfHubHTTPError as error:
            status = getattr(error.response, "status_code", 0)
            if status in (401, 403, 404):
                raise ModelError(
                    f"the hub refuses '{model}' (revision {revision or 'main'}): HTTP {status}",
                    "check the name; a gated model needs its licence accepted and `hf auth login`",
                ) from None
        except Exception as error:  # the client's transport library changes with its version
            if not _is_network(error):
                raise
    cached = try_to_load_from_cache(model, "config.json", revision=revision)
    if isinstance(cached, str):
        return Path(cached).parent.name
    wanted = f" --revision {revision}" if revision else ""
    raise ModelError(
        f"model '{model}' is not in the local cache and the hub cannot be reached",
        f"on a machine with a connection: hf download {model}{wanted}",
    )


def _is_network(error: Exception) -> bool:
    """True for errors of the connection, after which the local cache is the answer."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, OSError) or bool(names & {"TransportError", "RequestError"})


def _folder_fingerprint(folder: Path, cache: Path) -> str:
    names = sorted({p.name for pattern in WEIGHT_FILES for p in folder.glob(pattern)})
    if "config.json" not in names and not any(n.endswith(".gguf") for n in names):
        raise ModelError(
            f"{folder} holds no config.json",
            "a model folder has config.json, *.safetensors and the tokenizer's files",
        )
    known = _read_cache(cache)
    digest = hashlib.sha256()
    for name in names:
        path = folder / name
        status = path.stat()
        key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
        if key not in known:
            known[key] = file_sha256(path)
        digest.update(f"{name}\0{known[key]}\0".encode())
    cache.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(cache, json.dumps(known))
    return f"sha256:{digest.hexdigest()}"


def _read_cache(cache: Path) -> dict[str, str]:
    try:
        return dict(json.loads(cache.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return {}
