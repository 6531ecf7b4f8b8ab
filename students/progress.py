"""What a training says while it runs: log.jsonl and one live line on stderr."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

PERIOD_S = 30.0
LIVE_PERIOD_S = 0.5


class Progress(TrainerCallback):
    """Writes a row of log.jsonl at every logging step and keeps the line on stderr current.

    `examples` and `batch_size` give the epoch; `resumed` is the update that training goes on
    from: later rows of an earlier log are dropped, for they are done again.
    """

    def __init__(self, path: Path, examples: int, batch_size: int, resumed: int, log: bool) -> None:
        self.path, self.examples, self.batch_size = path, examples, batch_size
        self.resumed, self.enabled = resumed, log
        self.tokens = 0
        self.last_loss: float | None = None
        self.validation_loss: float | None = None
        self.started = time.monotonic()
        self._marked = (self.started, 0)
        self._said = 0.0
        self._live = log and sys.stderr.isatty()
        if log:
            self._drop_rows_after(resumed)

    def on_update(self, tokens: int, lengths: Sequence[int]) -> None:
        """Count the tokens (of all processes) of an update whose examples have these lengths."""
        self.tokens += tokens

    def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        self.started = time.monotonic()
        self._marked = (self.started, self.tokens)
        self._said = self.started

    def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        now = time.monotonic()
        period = LIVE_PERIOD_S if self._live else PERIOD_S
        if self.enabled and now - self._said >= period:
            self._said = now
            self._say(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kw: Any) -> None:
        if not logs or "loss" not in logs:
            return
        now = time.monotonic()
        before, tokens = self._marked
        self._marked = (now, self.tokens)
        self.last_loss = float(logs["loss"])
        per_epoch = math.ceil(self.examples / self.batch_size)
        row = {
            "step": state.global_step,
            "epoch": round(state.global_step / per_epoch, 4),
            "loss": round(self.last_loss, 6),
            "learning_rate": logs.get("learning_rate"),
            "grad_norm": round(float(logs["grad_norm"]), 6) if "grad_norm" in logs else None,
            "tokens": self.tokens,
            "tokens_per_second": round((self.tokens - tokens) / max(now - before, 1e-9), 1),
            "seconds": round(now - self.started, 2),
        }
        self._append(row)

    def validated(self, step: int, loss: float) -> None:
        """Log the loss on the validation split after `step` updates."""
        self.validation_loss = loss
        seconds = round(time.monotonic() - self.started, 2)
        self._append({"step": step, "validation_loss": round(loss, 6), "seconds": seconds})

    def on_train_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        if self.enabled:
            self._say(state.global_step, state.max_steps)
            if self._live:
                print(file=sys.stderr)

    @property
    def tokens_per_second(self) -> float:
        """Over this call of train, start-up not counted."""
        return self.tokens / max(time.monotonic() - self.started, 1e-9)

    def _append(self, row: dict[str, Any]) -> None:
        if self.enabled:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def _say(self, step: int, total: int) -> None:
        done = step - self.resumed
        spent = time.monotonic() - self.started
        left = spent / done * (total - step) if done else 0.0
        loss = f"  loss {self.last_loss:.3f}" if self.last_loss is not None else ""
        if self.validation_loss is not None:
            loss += f"  validation {self.validation_loss:.3f}"
        line = (
            f"train  {step:,}/{total:,} updates{loss}"
            f"  {self.tokens_per_second:,.0f} tok/s  ETA {_duration(left)}"
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
                self.validation_loss = row.get("validation_loss", self.validation_loss)
        self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
