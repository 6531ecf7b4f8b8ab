"""What a training says: speed, MFU, ETA after a resume; trackers get the rows of log.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from distill.errors import UsageError
from distill.students import flops, progress, trackers
from distill.students.catalog import Arch
from distill.students.hardware import Hardware
from distill.students.metering import Meter
from distill.students.progress import Progress

ARCH = Arch(
    hidden=64, layers=2, heads=4, kv_heads=2, intermediate=128, vocab=320, tied=True, head_dim=0
)


class Clock:
    """A clock that goes only when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


class Loop:
    """The Trainer's events of a training: two updates between logs."""

    def __init__(self, told: Progress, clock: Clock, total: int, start: int = 0) -> None:
        self.told, self.clock = told, clock
        self.state = SimpleNamespace(global_step=start, max_steps=total, num_input_tokens_seen=0)

    def begin(self, seen: int = 0) -> None:
        self.state.num_input_tokens_seen = seen
        self.told.on_train_begin(None, self.state, None)

    def update(self, seconds: float, lengths: list[int]) -> None:
        self.clock.now += seconds
        self.told.on_update(sum(lengths), lengths)
        self.state.global_step += 1
        self.told.on_step_end(None, self.state, None)

    def log(self, loss: float = 1.0) -> None:
        logs = {"loss": loss, "learning_rate": 1e-5, "grad_norm": 0.5}
        self.told.on_log(None, self.state, None, logs=logs)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_speed_and_mfu_are_those_of_the_updates_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, path = Clock(monkeypatch), tmp_path / "log.jsonl"
    meter = Meter(ARCH, "full", 0, peak=1e9)
    told = Progress(path, 16, 4, 0, log=True, meter=meter)
    loop = Loop(told, clock, total=8)
    loop.begin()
    clock.now += 50  # measuring before the first update
    told.validated(0, 2.0)
    for _ in range(2):
        loop.update(2.0, [30, 20])
    clock.now += 7
    loop.log()
    told.on_save(None, loop.state, None)
    loop.update(2.0, [30, 20])
    loop.log()
    first, second = rows(path)[1:]
    assert first["tokens_per_second"] == second["tokens_per_second"] == 25.0
    done = flops.training_flops(ARCH, [30, 20], "full")
    assert first["mfu"] == pytest.approx(done / 2.0 / 1e9, abs=1e-4)
    assert first["peak_memory"] > 10 << 20
    assert second["tokens"] == 150
    assert told.told()["mfu"] == first["mfu"]


def test_eta_is_right_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, path = Clock(monkeypatch), tmp_path / "log.jsonl"
    earlier = [
        {"step": 90, "loss": 1.0, "tokens": 900, "seconds": 500.0},
        {"step": 110, "loss": 0.9, "tokens": 1100, "seconds": 600.0},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in earlier) + '{"step": 12')
    told = Progress(path, 400, 4, 100, log=True)
    loop = Loop(told, clock, total=160, start=100)
    loop.begin(seen=1000)
    clock.now += 40
    told.validated(100, 2.0)
    loop.update(31.0, [10])
    loop.update(1.0, [10])
    loop.log()
    assert [row["step"] for row in rows(path)] == [90, 100, 102]
    # 1,000 tokens before the checkpoint, which the last row of the log did not know.
    assert rows(path)[-1]["tokens"] == 1020
    assert rows(path)[-1]["seconds"] == 500 + 72
    assert told.tokens_per_second == pytest.approx(20 / 32)
    # 59 updates of 31 s are left; what was measured before the first is not done again.
    assert "101/160 updates" in (said := capsys.readouterr().err)
    assert "ETA 30 min" in said
    loop.update(31.0, [10])
    assert "ETA 20 min" in capsys.readouterr().err.splitlines()[-1]


def test_meter_knows_devices_and_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = Hardware("cpu", "fp32", "sdpa")
    assert Meter.of(ARCH, {}, {}, cpu).mfu(10, 1.0) is None
    h100 = Hardware("NVIDIA H100 80GB HBM3", "bf16", "sdpa", world=4)
    meter = Meter.of(ARCH, {"method": "lora"}, {"lora": {"rank": 8}}, h100)
    assert meter.peak == 4 * flops.PEAK["H100"]
    assert meter.flops([5]) == flops.training_flops(ARCH, [5], "lora", rank=8)
    assert meter.mfu(round(meter.peak), 2.0) == pytest.approx(0.5)
    monkeypatch.setenv("DISTILL_PEAK_FLOPS", "2e10")
    assert Meter.of(ARCH, {}, {}, cpu).mfu(10**10, 1.0) == 0.5
    monkeypatch.setenv("DISTILL_PEAK_FLOPS", "fast")
    with pytest.raises(UsageError, match="'fast'"):
        Meter.of(ARCH, {}, {}, cpu)


def test_other_processes_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = Loop(Progress(tmp_path / "log.jsonl", 8, 4, 0, log=False), Clock(monkeypatch), 4)
    loop.begin()
    for _ in range(2):
        loop.update(60.0, [4])
    loop.log()
    loop.told.on_train_end(None, loop.state, None)
    assert not (tmp_path / "log.jsonl").exists()
    assert capsys.readouterr().err == ""


class Seen:
    """A tracker that keeps what it gets."""

    made: ClassVar[list[tuple[str, Path, Any]]] = []

    def __init__(self, name: str, folder: Path, config: Any) -> None:
        self.made.append((name, folder, config))
        self.rows: list[Any] = []
        self.ended = False

    def log(self, row: Any, step: int) -> None:
        self.rows.append((step, row))

    def end(self) -> None:
        self.ended = True


def test_a_tracker_gets_the_rows_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen("x", tmp_path, {})
    told = Progress(tmp_path / "log.jsonl", 8, 4, 0, log=True, trackers=[seen])
    loop = Loop(told, Clock(monkeypatch), 4)
    loop.begin()
    loop.update(1.0, [4])
    loop.log()
    told.validated(1, 0.7)
    told.on_train_end(None, loop.state, None)
    assert [step for step, _ in seen.rows] == [1, 1]
    assert seen.rows[0][1]["loss"] == 1.0
    assert seen.rows[1][1]["validation_loss"] == 0.7
    assert seen.ended


def test_trackers_are_named_by_recipe_and_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "KNOWN", {"json": Seen})  # a package that is always there
    config = {"student": {"base": "b"}, "card": {"recipe": "r1", "stage": "hard (2 of 2)"}}
    job = SimpleNamespace(
        train={"trackers": ["json"]}, config=config, fingerprint="a" * 64, out=tmp_path, seed=3
    )
    trackers.start(job)
    trackers.start(job)
    (name, folder, told), again = Seen.made[-2:]
    assert name == "r1-hard-aaaaaaaa" == again[0]
    assert folder == tmp_path / "scratch" / "json"
    assert told["student"] == {"base": "b"}
    with pytest.raises(UsageError, match="'mlflow', which is none of"):
        trackers.check(["mlflow"])
    monkeypatch.setattr(trackers, "KNOWN", {"no_such_package": Seen})
    with pytest.raises(UsageError, match="needs the package 'no_such_package'"):
        trackers.check(["no_such_package"])
    trackers.check(["no_such_package"], installed=False)
