"""Where a model's files are, and what identifies them: no model library is needed for either.

A local folder is identified by the content of the files that change its output, a model on
the hub by its commit.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from distill.errors import ModelError

FILES = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""What decides a model's output; checkpoints, logs and model cards beside it do not."""


@dataclass(frozen=True, slots=True)
class Location:
    """A model that was found. `name` is for people; `commit` is None for a local folder."""

    source: str
    name: str
    commit: str | None

    @property
    def fingerprint(self) -> str:
        """The commit, or 16 hex digits over the folder's files. Reads the weights once."""
        return self.commit or fingerprint(Path(self.source))

    def template(self) -> str | None:
        """The model's own chat template, None where it has none."""
        if self.commit is None:
            return own_template(Path(self.source))
        from huggingface_hub import snapshot_download

        small = ["tokenizer_config.json", "chat_template.jinja", "chat_template.json"]
        folder = snapshot_download(self.source, revision=self.commit, allow_patterns=small)
        return own_template(Path(folder))


def locate(model: str, revision: str | None = None) -> Location:
    """Find `model`: a folder, or a name on the hub, whose revision is resolved to a commit.

    Raises ModelError for a folder without a config, an unknown name, and a model that is
    neither reachable nor in the cache.
    """
    if not model:
        raise ModelError("no model was given", "set teacher.model to a folder or a hub name")
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} is no model folder: it has no config.json")
        return Location(str(folder), folder.resolve().name, None)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelError(f"no model folder {folder}", "check the path")
    return Location(model, model, _commit(model, revision))


def fingerprint(folder: Path) -> str:
    """16 hex digits over names and contents of the files that decide a model's output."""
    paths = sorted({path for pattern in FILES for path in folder.glob(pattern)})
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.name} {digest}\n".encode())
    return total.hexdigest()[:16]


def own_template(folder: Path) -> str | None:
    """The chat template that lies in a model folder, in any of the three places it may."""
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
            if isinstance(found, list):
                named = {entry["name"]: entry["template"] for entry in found}
                found = named.get("default")
            if found:
                return str(found)
    return None


def _is_network(error: Exception) -> bool:
    """True for errors of the connection, after which what is in the cache counts."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, OSError) or bool(
        names & {"HfHubHTTPError", "RequestError", "TransportError"}
    )


def _commit(model: str, revision: str | None) -> str:
    """The commit that a revision means now; from the cache where the hub cannot be reached."""
    if revision and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f" at revision '{revision}'" if revision else ""
    try:
        sha = HfApi().model_info(model, revision=revision, timeout=10).sha
        if sha:
            return sha
    except HFValidationError as error:
        raise ModelError(f"'{model}' is neither a folder nor a hub name", str(error)) from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise ModelError(
            f"the hub has no model '{model}'{at}, or you may not see it",
            "check the name; for a gated or private model: hf auth login",
        ) from None
    except Exception as error:  # the client's transport library changes with its version
        if not _is_network(error):
            raise
    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True)).name
    except (LocalEntryNotFoundError, OSError):
        option = f" --revision {revision}" if revision else ""
        raise ModelError(
            f"the model '{model}'{at} is not on this machine, and the hub cannot be reached",
            f"on a machine with access: hf download {model}{option}",
        ) from None
