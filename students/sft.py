"""Supervised fine-tuning: a data set and a base in, a model folder out.

    prepare (tokenizer, render, pre-flight) -> fit (trl) -> export (merge, save, card)

`SFT().train(dataset, out, config)` is what a pipeline calls; `python -m distill.students.sft
CONFIG.json` does the same from a file and is what the processes of a distributed run execute.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import DataError, DistillError, PreflightError
from distill.students import checkpoints, data, keeping, launch, sharding
from distill.students.loading import Prepared, prepare
from distill.students.packing import updates

log = logging.getLogger(__name__)

WORK = ("tokens", "validation", "checkpoints", "log.jsonl", "prepared.json", "nan_batch.json")


class SFT:
    """Trains by supervised fine-tuning: in full, with LoRA or with QLoRA.

    `config` is `{"student": StudentSpec, "train": Training, "seed": int, "card": {...}}` as plain
    dicts; distill/schema.py names every key. `card` adds rows to the model card. `validation`, a
    JSONL file like the data set, is measured while training goes on; it changes nothing unless
    `train.keep: best` or `train.early_stop` go by it.
    """

    version = "2"

    def train(self, dataset: Path, out: Path, config: Mapping[str, Any]) -> Path:
        """Train on `dataset` (JSONL rows `{"messages": [...]}`) and return `out/student`.

        Called again with the same arguments it goes on from the last complete checkpoint.
        Raises DataError, ModelError, PreflightError, MissingExtra.
        """
        job = Job(Path(dataset), Path(out), config)
        if launch.inside():
            from distill.students.launch_worker import take_part

            return take_part(job.as_json()) or job.student
        started = time.monotonic()
        if job.done():
            return job.student
        job.out.mkdir(parents=True, exist_ok=True)
        prepared = job.prepare()
        if launch.several(config["train"]):
            launch.distributed(job.as_json(), job.out)
        else:
            from distill.students.fit import fit

            fit(job, prepared)
        return job.finish(time.monotonic() - started)


@dataclasses.dataclass
class Job:
    """One training in one folder, and what is known about it between its stages."""

    dataset: Path
    out: Path
    config: Mapping[str, Any]
    notes: list[str] = dataclasses.field(default_factory=list)
    _fingerprint: str = ""

    @property
    def student(self) -> Path:
        return self.out / "student"

    @property
    def train(self) -> Mapping[str, Any]:
        train: Mapping[str, Any] = self.config["train"]
        return train

    @property
    def seed(self) -> int:
        own = self.train.get("seed")
        return int(self.config.get("seed") or 0) if own is None else int(own)

    @property
    def fingerprint(self) -> str:
        if not self._fingerprint:
            self._fingerprint = checkpoints.fingerprint(self.dataset, self.config)
        return self._fingerprint

    def done(self) -> bool:
        """Whether this very training was finished here before."""
        return self.student.is_dir() and self._read("summary.json").get("id") == self.fingerprint

    def prepare(self) -> Prepared:
        """Render the data set and check it; nothing of a different training stays in `out`."""
        keeping.check(self.train, self.config.get("validation"))
        sharding.check(self.config["student"], self.train)
        prepared = prepare(self.config["student"])
        max_length = int(self.train["max_length"])
        if max_length > prepared.positions:
            raise PreflightError(
                f"train.max_length = {max_length} is beyond the student's {prepared.positions} "
                "positions: the model has never seen such distances",
                f"lower it, or set student.positions: {max_length} (and student.rope_theta)",
            )
        if self._read("prepared.json").get("id") == self.fingerprint:
            return prepared
        for name in WORK:
            path = self.out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        started = time.monotonic()
        _, counts, report = data.tokenise(self.dataset, self.out / "tokens", prepared, max_length)
        self._write("preflight.json", report)
        state = {"counts": dataclasses.asdict(counts), "seconds": time.monotonic() - started}
        state["validation_note"] = self._prepare_validation(prepared, max_length)
        self._write("prepared.json", {"id": self.fingerprint, **state})
        self._tell(counts)
        return prepared

    def _prepare_validation(self, prepared: Prepared, max_length: int) -> str:
        """Render the validation split, if there is one; returns what a reader must know of it."""
        split = self.config.get("validation")
        if not split:
            return ""
        folder = self.out / "validation"
        try:
            _, counts, _ = data.tokenise(Path(split), folder, prepared, max_length, show=False)
        except DataError as error:
            return f"no validation loss: {error.message}"
        left = counts.rows - counts.examples
        return f"{left} validation examples left out as too long or untrainable" if left else ""

    @property
    def validation_note(self) -> str:
        """What `prepare` said of the validation split."""
        return str(self._read("prepared.json").get("validation_note") or "")

    @property
    def counts(self) -> data.Counts:
        """What `prepare` counted."""
        return data.Counts(**self._read("prepared.json")["counts"])

    def plan(self) -> list[list[int]]:
        """The examples of each update, in order."""
        train = self.train
        found = updates(
            self.counts.examples, int(train["batch_size"]), float(train["epochs"]), self.seed
        )
        return found[: train.get("max_steps") or len(found)]

    def finish(self, seconds: float) -> Path:
        """Complete summary.json and remove what only an interrupted training needs."""
        summary = self._read("fit.json")
        summary["seconds"] = round(seconds, 2)
        self._write("summary.json", {"id": self.fingerprint, **summary})
        for name in ("tokens", "validation", "checkpoints", "prepared.json", "fit.json"):
            path = self.out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return self.student

    def as_json(self) -> dict[str, Any]:
        """What another process needs to take part."""
        return {
            "dataset": str(self.dataset.resolve()),
            "out": str(self.out.resolve()),
            "config": json.loads(json.dumps(self.config, default=str)),
        }

    def _tell(self, counts: data.Counts) -> None:
        train = self.train
        per_epoch = -(-counts.examples // int(train["batch_size"]))
        print(
            f"{counts.examples:,} examples, {counts.tokens:,} tokens and {per_epoch:,} updates "
            f"per epoch ({counts.tokens // per_epoch:,} tokens per update)",
            file=sys.stderr,
        )

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.out / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        path = self.out / name
        temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        os.replace(temporary, path)


def main(arguments: list[str]) -> int:
    """Train as a JSON file says: `{"dataset": ..., "out": ..., "config": {...}}`."""
    if launch.inside():
        from distill.students.launch_worker import main as worker

        return worker(arguments)
    told = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    job = Job(Path(told["dataset"]), Path(told["out"]), told["config"])
    try:
        SFT().train(job.dataset, job.out, job.config)
    except DistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
