"""A run's student or training set to the Hugging Face hub: private unless it is said otherwise.

`pack` looks at what would go and needs no network; `send` uploads it. The hub library does the
work: it reads HF_TOKEN and HF_ENDPOINT, and the same command goes on after an interruption.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import DistillError, UsageError
from distill.export_model import student_of
from distill.report.build import read_run
from distill.terms import duties, needs_llama_name, warnings

PARTS = ("model", "data", "adapter", "gguf")
LEFT = (".*", "*.tmp", "training_args.bin", "*.pt", "*.pth", "*.pkl", "optimizer*")
"""What never goes: hidden and temporary files, pickles, optimizer states."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclasses.dataclass(frozen=True)
class Parcel:
    """What an upload would be: `files` are (path in the repository, bytes)."""

    folder: Path
    repo: str
    kind: str
    private: bool
    files: list[tuple[str, int]]
    card: dict[str, Any]
    warnings: list[str]

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.files)


def pack(
    run: Path, repo: str, what: str = "model", folder: Path | None = None, public: bool = False
) -> Parcel:
    """What `distill push` would upload to `repo` ("owner/name", or a name of your own account).

    `folder` is what `distill export` wrote, where that is to go instead of the student itself.
    Raises UsageError for a run that has no such part, and for a name the hub does not allow.
    """
    _check_name(repo)
    source = read_run(run)
    recipe = source.run.get("recipe") or {}
    folder = folder or _folder(run, what)
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", _export_line(run, what))
    files = [
        (path.relative_to(folder).as_posix(), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not left_at_home(path.relative_to(folder).as_posix())
    ]
    if not any(name != "README.md" for name, _ in files):
        raise UsageError(f"there is nothing to push in {folder}", _export_line(run, what))
    card = _card(folder / "README.md", what)
    found = _warnings(recipe, repo, what, card, source.summary("evaluate"))
    kind = "dataset" if what == "data" else "model"
    return Parcel(folder, repo, kind, not public, files, card, found)


def _folder(run: Path, what: str) -> Path:
    if what == "gguf":
        return Path(f"{run.name}-gguf")
    if what == "data":
        return Path(f"{run.name}-data")
    student = student_of(run)
    return student if what == "model" else student.parent / "adapter"


def _export_line(run: Path, what: str) -> str:
    if what == "data":
        return f"distill export {run.name} --out {run.name}-data makes it"
    if what == "gguf":
        return f"distill export {run.name} --form gguf makes it"
    return "only student.method: lora or qlora leaves an adapter" if what == "adapter" else ""


def left_at_home(name: str) -> bool:
    """Whether a file of a folder is not uploaded (`LEFT`)."""
    return any(fnmatch.fnmatch(part, rule) for part in name.split("/") for rule in LEFT)


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"'{repo}' is no name for the hub: {error}", "owner/name") from None


def _card(path: Path, what: str) -> dict[str, Any]:
    """The hub's metadata in a card, read by the hub's own library; empty without a card."""
    from huggingface_hub import DatasetCard, ModelCard

    if not path.is_file():
        return {}
    kind = DatasetCard if what == "data" else ModelCard
    try:
        found: dict[str, Any] = kind(path.read_text(encoding="utf-8")).data.to_dict()
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"the card {path} has metadata that the hub cannot read: {error}"
        ) from None
    return found


def _warnings(
    recipe: Mapping[str, Any], repo: str, what: str, card: Mapping[str, Any], scores: Any
) -> list[str]:
    found = [*warnings(recipe)]
    if what != "data":
        found += duties(recipe)
        name = repo.rpartition("/")[2]
        if needs_llama_name(recipe) and not name.startswith("Llama"):
            found.append(f"the name '{name}' does not begin with Llama, which the licence asks for")
        if not scores:
            found.append("the student was not evaluated in this run")
        base = str(card.get("base_model") or "")
        if base and not _HUB_NAME.fullmatch(base):
            found.append(f"base_model '{base}' in the card is no name on the hub")
    if not card:
        found.append("the folder has no card (README.md)")
    return found


def send(parcel: Parcel) -> str:
    """Create the repository where there is none, upload, and return its address.

    A repository that is there already gets the new files if distill made it, or it is empty.
    Raises UsageError for a name that is taken and DistillError for what the hub refuses; nothing
    local changes, and the same call goes on from where it was.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        repo = _repository(api, parcel)
        api.upload_folder(
            repo_id=repo,
            repo_type=parcel.kind,
            folder_path=parcel.folder,
            ignore_patterns=[*LEFT],
            commit_message="Upload with distill",
        )
    except Exception as error:  # the library's transport changes with its version
        raise _told(error, parcel.repo) from error
    prefix = "datasets/" if parcel.kind == "dataset" else ""
    return f"{api.endpoint}/{prefix}{repo}"


def _repository(api: Any, parcel: Parcel) -> str:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        made = api.create_repo(
            parcel.repo, repo_type=parcel.kind, private=parcel.private, exist_ok=False
        )
        return str(made.repo_id)
    except HfHubHTTPError as error:
        if _status(error) != 409:
            raise
    repo = parcel.repo if "/" in parcel.repo else f"{api.whoami()['name']}/{parcel.repo}"
    there = api.repo_info(repo, repo_type=parcel.kind)
    tags = set(getattr(there, "tags", None) or [])
    names = {file.rfilename for file in there.siblings or []} - {".gitattributes"}
    if names and "distill" not in tags:
        raise UsageError(
            f"'{repo}' is taken: a repository that distill did not make", "choose another name"
        )
    if parcel.private and not there.private:
        raise UsageError(
            f"'{repo}' exists and is public", "add --public to publish there, or choose a new name"
        )
    return repo


def _status(error: Exception) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def _told(error: Exception, repo: str) -> Exception:
    """The hub's refusal as an error with a way out; what is not the hub's stays as it is."""
    from huggingface_hub import constants

    if isinstance(error, DistillError):
        return error
    status, again = _status(error), "nothing was lost: the same command goes on"
    if status == 401 or type(error).__name__ == "LocalTokenNotFoundError":
        return DistillError(
            f"the hub does not know you (pushing to '{repo}')",
            "`hf auth login`, or set HF_TOKEN to a token with write access",
        )
    if status == 403:
        return DistillError(
            f"your token may not write to '{repo}'",
            "use a token with write access to that account or organisation, or another owner",
        )
    if status:
        return DistillError(f"the hub refused '{repo}' with HTTP {status}: {error}", again)
    if constants.HF_HUB_OFFLINE:
        return DistillError("HF_HUB_OFFLINE is set: nothing can be pushed", "unset it")
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, OSError) or kinds & {"TransportError", "RequestError", "HTTPError"}:
        return DistillError(f"the hub at {constants.ENDPOINT} cannot be reached: {error}", again)
    return error
