"""The loss on examples kept from training: before it, ten times on the way, and at its end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from distill.students.progress import Progress

TIMES = 10


class Validation(TrainerCallback):
    """Calls `measure` (the mean loss per trained token) and logs what it returns.

    Measuring draws no random number and moves no weight: the student is the same without it.
    """

    def __init__(self, measure: Callable[[], float], total: int, progress: Progress) -> None:
        self.measure, self.total, self.progress = measure, total, progress
        self.every = math.ceil(total / TIMES)
        self.losses: dict[int, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        if state.global_step == 0:
            self._log(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == self.total:
            self._log(state.global_step)

    def _log(self, step: int) -> None:
        self.losses[step] = self.measure()
        self.progress.validated(step, self.losses[step])
