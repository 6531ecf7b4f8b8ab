"""One real training through `distill.students`, with its tensors counted.

As a module it is what torchrun starts: `python -m benchmarks.planner_train JOB.json` writes
`measured-RANK.json` next to it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill.students.catalog import Arch, find
from distill.students.memory import Parts, Setting, estimate
from tests import tiny_students


@dataclasses.dataclass(frozen=True)
class Case:
    """A student and how it is trained; `words` are the lengths of its chains of thought."""

    name: str
    kind: str = "llama"
    sizes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    words: tuple[int, int] = (4, 40)
    world: int = 1


@dataclasses.dataclass(frozen=True)
class Row:
    """What one process predicted and measured."""

    predicted: Parts
    measured: int
    tokens: int

    @property
    def ratio(self) -> float:
        return self.predicted.peak / self.measured


def prepare(case: Case, folder: Path) -> dict[str, Any]:
    """A base with random weights, a data set, and the training of `case` on them."""
    folder.mkdir(parents=True, exist_ok=True)
    specials = tiny_students.CHATML
    with contextlib.redirect_stderr(io.StringIO()):
        base = tiny_students.base(
            folder / "base", case.kind, specials, max_position_embeddings=4096, **case.sizes
        )
    rng = random.Random(0)
    data = folder / "data.jsonl"
    rows = [tiny_students.example(7, 5, rng.randint(*case.words)) for _ in range(12)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"max_length": 4096, "batch_size": 4, "epochs": 1, "micro_batch_tokens": 1024}
    config = tiny_students.config(base, **{**settings, **case.changes})
    return {"dataset": str(data), "out": str(folder / "out"), "config": config}


def run(case: Case) -> Row:
    """Train `case`; the row of the process with the greater peak."""
    with tempfile.TemporaryDirectory() as folder:
        job = prepare(case, Path(folder))
        if case.world == 1:
            return train(job)
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", str(case.world), "-m", __spec__.name, str(path)]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{case.name}: {done.stderr[-3000:]}")
        found = []
        for rank in range(case.world):
            told = json.loads((Path(folder) / f"measured-{rank}.json").read_text())
            found.append(Row(Parts(**told["predicted"]), told["measured"], told["tokens"]))
        return max(found, key=lambda row: row.measured)


def train(job: Mapping[str, Any]) -> Row:
    """Train in this process with every tensor counted."""
    from distill.students.sft import SFT

    found: list[Row] = []
    with counted(job, found), contextlib.redirect_stderr(io.StringIO()):
        SFT().train(Path(job["dataset"]), Path(job["out"]), job["config"])
    return found[0]


@contextlib.contextmanager
def counted(job: Mapping[str, Any], found: list[Row]) -> Iterator[None]:
    """Within it the students' trainer counts, and adds a row when it is done."""
    from benchmarks.planner_tally import Tally, held
    from distill.students.trainer import UpdateTrainer

    original = UpdateTrainer.train

    def measured(self: Any, *args: Any, **kw: Any) -> Any:
        tally = Tally()
        tally.add(held(self.model))
        with tally:
            result = original(self, *args, **kw)
        tokens, parts = predicted(job, self)
        found.append(Row(parts, tally.peak, tokens))
        return result

    UpdateTrainer.train = measured
    try:
        yield
    finally:
        UpdateTrainer.train = original


def predicted(job: Mapping[str, Any], trainer: Any) -> tuple[int, Parts]:
    """What students/memory.py says of the micro-batches that this process passes."""
    student, train = job["config"]["student"], job["config"]["train"]
    arch = find(student["base"]).arch
    assert isinstance(arch, Arch)
    updates = trainer.updates
    best: tuple[int, Parts] | None = None
    for number in range(len(updates)):
        parts = updates[number]["micro_batches"]
        for index, part in enumerate(parts):
            rows, width = part["input_ids"].shape
            setting = Setting.of(
                student,
                train,
                tokens=rows * width,
                longest=width,
                trained=int((part["labels"] >= 0).sum()),
                layout=_layout(part),
                precision="bf16" if trainer.args.bf16 else "fp32",
                accumulates=index > 0,
                world=updates.world,
                device="cpu",
                new_tokens=2 if student["think_tokens"] == "tokens" else 0,
            )
            # What the vocabulary gained, the config of the trained model knows.
            vocab = trainer.model.config.get_text_config().vocab_size
            one = estimate(dataclasses.replace(arch, vocab=vocab), setting)
            if number == 0:  # AdamW makes its states at the end of the first update
                one = dataclasses.replace(one, optimiser=0)
            if best is None or one.peak > best[1].peak:
                best = rows * width, one
    assert best is not None
    return best


def _layout(part: Mapping[str, Any]) -> str:
    if "position_ids" not in part:
        return "padded"
    return "flat" if "cu_seq_lens_q" in part else "rectangle"


def main() -> None:
    from distill.students import sft

    path = Path(sys.argv[1])
    found: list[Row] = []
    with counted(json.loads(path.read_text()), found):
        code = sft.main([str(path)])
    if code == 0:
        row = found[0]
        told = {
            "predicted": dataclasses.asdict(row.predicted),
            "measured": row.measured,
            "tokens": row.tokens,
        }
        path.with_name(f"measured-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(told))
    sys.exit(code)


if __name__ == "__main__":
    main()
