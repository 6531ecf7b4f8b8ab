"""Is a run what it says it is, what would differ here, and does it come out the same again?

Three questions, each cheaper than the next: the hashes of every file of every step; the versions,
code and machine of the manifest against those here; and the whole run again, in a folder of its
own, compared file by file and, where files differ, result by result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill import manifest
from distill.compare import Arm, compare
from distill.errors import DataError, UsageError
from distill.job import VERSIONS
from distill.recipe import Recipe
from distill.report.build import Source, read_run
from distill.step import DONE, file_sha256

UNTIMED = (
    *("problems.jsonl", "heldout.jsonl", "grades.jsonl", "verdicts.jsonl", "overlaps.jsonl"),
    *("dataset.jsonl", "validation.jsonl", "samples.jsonl"),
)
"""Files whose bytes depend on nothing but what a run did: no seconds, no prices, no addresses."""


@dataclass
class Check:
    """What was found in a run's folder, and against this machine."""

    files: int = 0
    damaged: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    impossible: list[str] = field(default_factory=list)
    """What keeps the run from being made again by its recipe alone."""


@dataclass
class Again:
    """The run made again, against the recorded one."""

    run: Path
    same: dict[str, list[str]] = field(default_factory=dict)
    different: dict[str, list[str]] = field(default_factory=dict)
    comparison: dict[str, Any] | None = None

    @property
    def identical(self) -> bool:
        """True if every file that decides has the bytes it had."""
        return bool(self.same) and not self.different

    @property
    def agrees(self) -> bool:
        """True if it is identical, or no result is clearly another one."""
        tasks = (self.comparison or {}).get("tasks") or {}
        return self.identical or (
            bool(tasks) and not any(arm["clear"] for task in tasks.values() for arm in task["arms"])
        )


def check(run: Path) -> Check:
    """Hash everything and compare versions. Raises DataError where run.json cannot be read."""
    source, found = read_run(run), Check()
    found.damaged += [note["note"] for note in source.notes if note["note"].endswith("is gone")]
    for step in source.steps.values():
        marker = _marker(step.folder)
        if not marker:
            found.damaged.append(f"{step.folder.name} has no readable {DONE}")
            continue
        for name, described in marker.get("files", {}).items():
            found.files += 1
            if why := _fault(step.folder / name, described):
                found.damaged.append(f"{step.folder.name}/{name} {why}")
        kind = step.kind or step.name
        if str(marker.get("version")) != VERSIONS.get(kind, ""):
            found.differs.append(
                f"code of {kind}: version {marker.get('version')} -> {VERSIONS.get(kind, 'none')}"
            )
    found.differs += _versions(manifest.read_object(run / "manifest.json"))
    objects = source.run.get("objects") or {}
    found.impossible += [
        f"its {role} was an object of a program ({name}), which no recipe names"
        for role, name in objects.items()
    ]
    return found


def again(run: Path, runs: Path) -> Again:
    """Make a run once more in the folder `runs`, from its recorded recipe, and compare.

    Everything is made anew there, traces too. Raises UsageError for what cannot be made again.
    """
    from distill.pipeline import run as distil

    source = read_run(run)
    if impossible := check(run).impossible:
        raise UsageError(f"{run.name} cannot be made again: {'; '.join(impossible)}")
    if run.parent.resolve() == runs.resolve():
        raise UsageError(f"{runs} holds the run itself", "give another folder with --out")
    folder = Path((source.run.get("origins") or {}).get("folder") or Path.cwd())
    recipe = Recipe.from_dict(source.run.get("recipe") or {}, folder=folder)
    until = source.run.get("until") or "report"
    command = ["distill", "reproduce", run.name]
    made = distil(recipe, until=until, runs=runs, command=command).path.parent
    return against(run, made)


def against(run: Path, made: Path) -> Again:
    """Two runs of one recipe, file by file and result by result."""
    found = Again(made)
    one, two = read_run(run), read_run(made)
    for name, digest in _deciding(one).items():
        step = name.split("/")[0]
        other = _deciding(two).get(name)
        (found.same if digest == other else found.different).setdefault(step, []).append(name)
    if not found.identical and one.folder("evaluate") and two.folder("evaluate"):
        try:
            found.comparison = compare([Arm("recorded", [run]), Arm("again", [made])])
        except DataError as error:
            found.different.setdefault("evaluate", []).append(error.message)
    return found


def _deciding(source: Source) -> dict[str, str]:
    """step/file -> hash of the files that say what a run did."""
    return {
        f"{step.name}/{name}": str(described.get("sha256"))
        for step in source.steps.values()
        for name, described in (_marker(step.folder).get("files") or {}).items()
        if name in UNTIMED or name.endswith(".safetensors")
    }


def _fault(path: Path, described: Mapping[str, Any]) -> str:
    if not path.is_file():
        return "is gone"
    return "" if file_sha256(path) == described.get("sha256") else "was changed"


def _versions(recorded: Mapping[str, Any]) -> Iterator[str]:
    """What the manifest recorded and this machine does not have."""
    if not recorded:
        yield "no manifest was recorded: nothing is known of its versions"
        return
    here = manifest.make_manifest({}, Path(), {}, [])
    for key in ("python", "distill", "packages", "machine"):
        before, now = recorded.get(key), here.get(key)
        if not isinstance(before, Mapping) or not isinstance(now, Mapping):
            if before != now:
                yield f"{key}: {before} -> {now}"
            continue
        for name in dict.fromkeys([*before, *now]):
            if before.get(name) != now.get(name):
                yield f"{name}: {_said(before.get(name))} -> {_said(now.get(name))}"


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value in (None, "") else str(value)


def _marker(folder: Path) -> dict[str, Any]:
    return manifest.read_object(folder / DONE)
