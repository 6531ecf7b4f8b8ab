"""Rows of a data set, whatever holds it: a JSONL, JSON or Parquet file, a folder, or the hub."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from distill.errors import DataError
from distill.records import BadLines, read_jsonl
from distill.step import file_sha256

log = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
BATCH_ROWS = 256
_MISSING = object()


def read_rows(
    *,
    dataset: str | None = None,
    subset: str | None = None,
    split: str = "train",
    revision: str | None = None,
    file: str | None = None,
    folder: Path,
    bad: BadLines,
) -> Iterator[dict[str, Any]]:
    """The rows of a file or data set, in their own order, one at a time.

    `dataset` is a folder (relative to `folder`) with JSONL or Parquet files or what
    `Dataset.save_to_disk` wrote, or else a name on the hub. Lines of JSONL that cannot be read
    are counted in `bad`. Raises DataError for data that is not there or cannot be read at all.
    """
    if file:
        return _file_rows(_existing_file(file, folder), bad)
    if not dataset:
        raise DataError("neither a file nor a data set is named", "set `file:` or `dataset:`")
    local = _path(dataset, folder)
    if local.is_dir():
        return _folder_rows(local, subset, split, bad)
    return _hub_rows(dataset, subset, split, revision)


def fingerprint(
    *,
    dataset: str | None = None,
    subset: str | None = None,
    split: str = "train",
    revision: str | None = None,
    file: str | None = None,
    folder: Path,
) -> str:
    """What pins the data down: `sha256:...` of a file or a folder's files, `commit:...` of the hub.

    The hub's commit is asked of the hub or, offline, of the local cache. Raises DataError with the
    `hf download` line where neither has it.
    """
    del subset, split  # they choose within the data, and are in the recipe
    if file:
        return f"sha256:{file_sha256(_existing_file(file, folder))}"
    if not dataset:
        raise DataError("neither a file nor a data set is named", "set `file:` or `dataset:`")
    local = _path(dataset, folder)
    if not local.is_dir():
        return f"commit:{hub_commit(dataset, revision)}"
    digest = hashlib.sha256()
    for path in sorted(p for p in local.rglob("*") if p.is_file() and not _hidden(p, local)):
        name = path.relative_to(local).as_posix()
        digest.update(f"{name}\0{file_sha256(path)}\0".encode())
    return f"sha256:{digest.hexdigest()}"


def column(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column; `a.b` also means the field `b` of column `a`. KeyError if missing."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value.get(part, _MISSING) if isinstance(value, Mapping) else _MISSING
        if value is _MISSING:
            raise KeyError(name)
    return value


def missing_column(name: str, columns: Iterable[str], where: str, key: str) -> DataError:
    """The error for a column that is not there: what there is, and the nearest name."""
    there = list(columns)
    close = difflib.get_close_matches(name, there, n=1, cutoff=0.5)
    nearest = f"; did you mean '{close[0]}'?" if close else ""
    return DataError(
        f"{where} has no column '{name}'{nearest}",
        f"its columns are: {', '.join(there) or 'none'}; name the right one with `{key}:`",
    )


def hub_commit(dataset: str, revision: str | None) -> str:
    """The commit of a data set on the hub. Raises DataError where nobody can tell."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if dataset.startswith((".", "/", "~")) or dataset.count("/") > 1:
        raise DataError(
            f"no data set '{dataset}': no such folder, and not a hub name (owner/name)",
            "paths are relative to the recipe's folder",
        )
    if not constants.HF_HUB_OFFLINE:
        try:
            commit = HfApi().dataset_info(dataset, revision=revision, timeout=10).sha
            if commit:
                return commit
        except HfHubHTTPError as error:
            status = getattr(error.response, "status_code", 0)
            if status in (401, 403, 404):
                raise _refused(dataset, revision, status) from None
        except Exception as error:  # the client's transport library changes with its version
            if not _is_network(error):
                raise
    snapshot = _snapshot(dataset, revision)
    if snapshot is not None:
        return snapshot.name
    raise _unreachable(dataset, revision)


def _file_rows(path: Path, bad: BadLines) -> Iterator[dict[str, Any]]:
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return read_jsonl(path, bad)
    if suffix == ".parquet":
        return _parquet_rows(path)
    if suffix == ".json":
        return _json_rows(path, bad)
    raise DataError(
        f"cannot read {path}: '{suffix or path.name}' is not one of {', '.join(SUFFIXES)}",
        "convert it to JSONL: one JSON object a line",
    )


def _json_rows(path: Path, bad: BadLines) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        start = file.read(4096).lstrip()
    if start[:1] == b"{":
        # Many publishers name their JSONL files .json.
        yield from read_jsonl(path, bad)
        return
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}", "JSONL reads on after a bad line") from None
    if not isinstance(rows, list):
        raise DataError(f"{path} holds a {type(rows).__name__}, expected a list of objects")
    for number, row in enumerate(rows):
        if isinstance(row, dict):
            yield row
        else:
            bad.add(f"{path}[{number}]", f"expected an object, found {type(row).__name__}")


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=BATCH_ROWS):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}", "fetch it again") from None


def _folder_rows(
    folder: Path, subset: str | None, split: str, bad: BadLines
) -> Iterator[dict[str, Any]]:
    if (folder / "dataset_dict.json").is_file():
        if not (folder / split).is_dir():
            raise _no_split(str(folder), split, sorted(p.name for p in folder.iterdir()))
        folder = folder / split
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        import datasets

        return _plain(datasets.load_from_disk(str(folder)))
    if subset:
        return _load(str(folder), str(folder), subset, split, None)
    files = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not _hidden(p, folder)
    )
    if not files:
        raise DataError(f"{folder} holds no {', '.join(SUFFIXES)} files")
    named = {p: _split_of(p.relative_to(folder)) for p in files}
    chosen = [p for p in files if named[p] == split]
    if any(named.values()) and not chosen:
        raise _no_split(str(folder), split, sorted({s for s in named.values() if s}))
    return chain.from_iterable(_file_rows(p, bad) for p in chosen or files)


def _split_of(path: Path) -> str | None:
    words = set(re.split(r"[^a-z]+", path.as_posix().lower()))
    for split, names in _SPLITS.items():
        if words & set(names):
            return split
    return None


def _hub_rows(
    dataset: str, subset: str | None, split: str, revision: str | None
) -> Iterator[dict[str, Any]]:
    from huggingface_hub import constants

    commit = hub_commit(dataset, revision)
    if not constants.HF_HUB_OFFLINE:
        return _load(dataset, dataset, subset, split, commit)
    # `datasets` finds offline only what it prepared itself before, not what `hf download` left.
    snapshot = _snapshot(dataset, revision)
    if snapshot is None:
        raise _unreachable(dataset, revision)
    return _load(str(snapshot), dataset, subset, split, None)


def _load(
    where: str, name: str, subset: str | None, split: str, revision: str | None
) -> Iterator[dict[str, Any]]:
    import datasets
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    try:
        return _plain(datasets.load_dataset(where, subset, split=split, revision=revision))
    except DatasetNotFoundError as error:
        raise DataError(str(error), "check the name; for a gated one: `hf auth login`") from None
    except ConnectionError:
        raise _unreachable(name, revision) from None
    except (ValueError, FileNotFoundError, RuntimeError, DatasetGenerationError) as error:
        # Wrong subsets and splits arrive as ValueError, with what there is in the message.
        raise DataError(
            f"data set '{name}' (subset {subset or 'default'}, split {split}): {error}",
            "set `subset:` and `split:` to ones that it has",
        ) from None


def _plain(rows: Any) -> Iterator[dict[str, Any]]:
    return (dict(row) for row in rows)


def _snapshot(dataset: str, revision: str | None) -> Path | None:
    """The folder of a data set in the hub's local cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(
            dataset, repo_type="dataset", revision=revision, local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    return Path(found)


def _is_network(error: Exception) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, OSError) or bool(names & {"TransportError", "RequestError"})


def _refused(dataset: str, revision: str | None, status: int) -> DataError:
    return DataError(
        f"the hub refuses data set '{dataset}' (revision {revision or 'main'}): HTTP {status}",
        "check the name; a gated data set needs its terms accepted and `hf auth login`",
    )


def _unreachable(dataset: str, revision: str | None) -> DataError:
    wanted = f" --revision {revision}" if revision else ""
    return DataError(
        f"data set '{dataset}' is not in the local cache and the hub cannot be reached",
        f"on a machine with a connection: hf download --repo-type dataset {dataset}{wanted}",
    )


def _no_split(where: str, split: str, there: list[str]) -> DataError:
    return DataError(f"{where} has no split '{split}'", f"it has: {', '.join(there)}; set `split:`")


def _existing_file(file: str, folder: Path) -> Path:
    path = _path(file, folder)
    if not path.is_file():
        raise DataError(f"no file {path}", f"'{file}' is relative to {folder}")
    return path


def _path(name: str, folder: Path) -> Path:
    path = Path(name).expanduser()
    return path if path.is_absolute() else folder / path


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)
