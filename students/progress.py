"""What a training says while it runs: log.jsonl and one live line on stderr."""

from __future__ import annotations

import collections
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from distill.students.metering import Meter
from distill.students.trackers import Tracker, numbers

PERIOD_S = 30.0
LIVE_PERIOD_S = 0.5
RECENT = 100
"""Updates whose pace says how long the others will take."""


class Progress(TrainerCallback):
    """Writes a row of log.jsonl at every logging step and keeps the line on stderr current.

    `examples` and `batch_size` give the epoch; `resumed` is the update that training goes on
    from: later rows of an earlier log are dropped, for they are done again. `trackers` get the
    same rows. Speed and MFU are those of the updates, without measuring and saving in between.
    """

    def __init__(
        self,
        path: Path,
        examples: int,
        batch_size: int,
        resumed: int,
        log: bool,
        *,
        meter: Meter | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.path, self.examples, self.batch_size = path, examples, batch_size
        self.resumed, self.enabled = resumed, log
        self.meter, self.trackers = meter or Meter(), trackers
        self.tokens = 0
        self.last_loss: float | None = None
        self.validation_loss: float | None = None
        self.started = time.monotonic()
        self._before = 0.0
        self._clock = _Clock(self.started)
        self._said = 0.0
        self._live = log and sys.stderr.isatty()
        if log:
            self._drop_rows_after(resumed)
        self._earlier = self.tokens

    def on_update(self, tokens: int, lengths: Sequence[int]) -> None:
        """Count the tokens (of all processes) of an update whose examples have these lengths."""
        self.tokens += tokens
        self._clock.add(tokens, self.meter.flops(lengths))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        if state.global_step and state.num_input_tokens_seen:
            self.tokens = int(state.num_input_tokens_seen)
        self._earlier = self.tokens
        self.started = self._said = time.monotonic()
        self._clock = _Clock(self.started)

    def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        now = time.monotonic()
        self._clock.update(now)
        state.num_input_tokens_seen = self.tokens  # a checkpoint knows it
        period = LIVE_PERIOD_S if self._live else PERIOD_S
        if self.enabled and now - self._said >= period:
            self._said = now
            self._say(state.global_step, state.max_steps)

    def on_save(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        self._clock.pause(time.monotonic())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kw: Any) -> None:
        if not logs or "loss" not in logs:
            return
        tokens, flops, busy = self._clock.lap()
        self.last_loss = float(logs["loss"])
        per_epoch = math.ceil(self.examples / self.batch_size)
        mfu = self.meter.mfu(flops, busy)
        row = {
            "step": state.global_step,
            "epoch": round(state.global_step / per_epoch, 4),
            "loss": round(self.last_loss, 6),
            "learning_rate": logs.get("learning_rate"),
            "grad_norm": round(float(logs["grad_norm"]), 6) if "grad_norm" in logs else None,
            "tokens": self.tokens,
            "tokens_per_second": round(tokens / max(busy, 1e-9), 1),
            **({"mfu": round(mfu, 4)} if mfu is not None else {}),
            "peak_memory": self.meter.peak_memory(),
            "seconds": self._seconds(),
        }
        self._append(row)

    def validated(self, step: int, loss: float) -> None:
        """Log the loss on the validation split after `step` updates."""
        self._clock.pause(time.monotonic())
        self.validation_loss = loss
        seconds = self._seconds()
        self._append({"step": step, "validation_loss": round(loss, 6), "seconds": seconds})

    def on_train_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        if self.enabled:
            self._say(state.global_step, state.max_steps)
            if self._live:
                print(file=sys.stderr)
        for tracker in self.trackers:
            tracker.end()

    @property
    def tokens_per_second(self) -> float:
        """Over this call of train, start-up not counted."""
        return self._clock.tokens / max(self._clock.busy, 1e-9)

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation over this call of train; None where no peak is known."""
        return self.meter.mfu(self._clock.flops, self._clock.busy)

    def told(self) -> dict[str, Any]:
        """What summary.json says of the speed: `mfu` where a peak is known, `peak_memory` bytes."""
        mfu = self.mfu
        share = {"mfu": round(mfu, 4)} if mfu is not None else {}
        return {**share, "peak_memory": self.meter.peak_memory()}

    def _seconds(self) -> float:
        """Since the training began, without what lay between interruption and going on."""
        return round(self._before + time.monotonic() - self.started, 2)

    def _append(self, row: dict[str, Any]) -> None:
        if self.enabled:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            for tracker in self.trackers:
                tracker.log(numbers(row), row["step"])

    def _say(self, step: int, total: int) -> None:
        left = self._clock.pace() * (total - step)
        loss = f"  loss {self.last_loss:.3f}" if self.last_loss is not None else ""
        if self.validation_loss is not None:
            loss += f"  validation {self.validation_loss:.3f}"
        mfu = f"  MFU {self.mfu:.0%}" if self.mfu is not None else ""
        line = (
            f"train  {step:,}/{total:,} updates{loss}  {self.tokens_per_second:,.0f} tok/s{mfu}"
            f"  {self.meter.peak_memory() / 2**30:.1f} GiB  ETA {_duration(left)}"
        )
        if self._live:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _drop_rows_after(self, step: int) -> None:
        if not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the line an interruption tore
                continue
            if row.get("step", 0) <= step:
                kept.append(line)
                self.tokens = int(row.get("tokens", self.tokens))
                self.last_loss = row.get("loss", self.last_loss)
                self.validation_loss = row.get("validation_loss", self.validation_loss)
                self._before = float(row.get("seconds") or self._before)
        self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


class _Clock:
    """The time that updates took, apart from what was done between them."""

    def __init__(self, now: float) -> None:
        self.tokens = self.flops = 0
        self.busy = 0.0
        self._since = now
        self._lap = (0, 0, 0.0)
        self._ends: collections.deque[float] = collections.deque([now], maxlen=RECENT + 1)

    def add(self, tokens: int, flops: int) -> None:
        self.tokens += tokens
        self.flops += flops

    def update(self, now: float) -> None:
        """An update has ended."""
        self.busy += now - self._since
        self._since = now
        self._ends.append(now)

    def pause(self, now: float) -> None:
        """Something that is no update has ended."""
        self._since = now
        if len(self._ends) == 1:  # before the first update: done once, not again and again
            self._ends[0] = now

    def lap(self) -> tuple[int, int, float]:
        """Tokens, FLOPs and seconds of updates since the last call."""
        now = (self.tokens, self.flops, self.busy)
        before, self._lap = self._lap, now
        return now[0] - before[0], now[1] - before[1], now[2] - before[2]

    def pace(self) -> float:
        """Seconds of an update of late, measuring and saving included; 0 before the first."""
        ends = self._ends
        return (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else 0.0


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
