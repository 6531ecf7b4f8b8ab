"""wandb, trackio and tensorboard, by choice: they get the rows of log.jsonl, and nothing else.

None is looked for: only those that `train.trackers` names are used. A training that goes on after
an interruption goes on in the same run of the tracker.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from distill.errors import UsageError

if TYPE_CHECKING:
    from distill.students.sft import Job

PROJECT = "distill"


class Tracker(Protocol):
    """Something that takes a row of numbers for an update."""

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Take a row."""

    def end(self) -> None:
        """Write what is left."""


def check(names: Sequence[str], installed: bool = True) -> None:
    """Raise UsageError for a tracker that is not known, or not `installed` though it must be."""
    for name in names:
        if name not in KNOWN:
            raise UsageError(
                f"train.trackers names '{name}', which is none of {', '.join(KNOWN)}",
                "every row is in the step's log.jsonl, for any other tool",
            )
        if installed and importlib.util.find_spec(name) is None:
            raise UsageError(
                f"train.trackers: [{name}] needs the package '{name}', which is not installed",
                f"pip install {name}",
            )


def start(job: Job) -> list[Tracker]:
    """Those that `train.trackers` names, with the recipe's name and the whole configuration."""
    names = list(job.train.get("trackers") or [])
    check(names)
    card = job.config.get("card") or {}
    told = str(card.get("recipe") or card.get("name") or "student")
    stage = str(card.get("stage") or "").partition(" ")[0]
    key = job.fingerprint[:8]
    name = "-".join(part for part in (told, stage, key) if part)
    # In `scratch/`: what a tracker writes is no part of the step's result.
    folder = job.out / "scratch"
    config = {
        "recipe": told,
        "stage": stage or None,
        "student": job.config["student"],
        "train": job.train,
        "seed": job.seed,
    }
    return [KNOWN[each](name, folder / each, config) for each in names]


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """What can be drawn of a row of log.jsonl."""
    return {k: v for k, v in row.items() if k != "step" and isinstance(v, int | float)}


class Wandb:
    """Weights & Biases; `WANDB_MODE=offline` keeps it on this machine."""

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            id=name,
            resume="allow",
            dir=str(folder),
            config=dict(config),
            settings=wandb.Settings(silent=True),
        )

    def log(self, row: Mapping[str, float], step: int) -> None:
        self.run.log(dict(row), step=step)

    def end(self) -> None:
        self.run.finish()


class Trackio:
    """trackio: a local database and page (`trackio show`)."""

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        import trackio

        self.run = trackio.init(project=PROJECT, name=name, resume="allow", config=dict(config))

    def log(self, row: Mapping[str, float], step: int) -> None:
        self.run.log(dict(row), step=step)

    def end(self) -> None:
        self.run.finish()


class Tensorboard:
    """tensorboard's event files, in the step's `scratch/tensorboard/`."""

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        import json

        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / name))
        text = json.dumps(dict(config), indent=1, default=str)
        self.writer.add_text("config", f"```json\n{text}\n```")

    def log(self, row: Mapping[str, float], step: int) -> None:
        for key, value in row.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def end(self) -> None:
        self.writer.close()


KNOWN: dict[str, Callable[[str, Path, Mapping[str, Any]], Tracker]] = {
    "wandb": Wandb,
    "trackio": Trackio,
    "tensorboard": Tensorboard,
}
"""Name in `train.trackers` -> what writes to it."""
