"""The loss on examples kept from training: before it, ten times on the way, and at its end.

It may decide which weights the student gets (`train.keep: best`) and when to stop
(`train.early_stop`). Where it is measured depends on the number of updates only, so that
`save_every` changes no student.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback

from distill.students.progress import Progress

TIMES = 10


class Validation(TrainerCallback):
    """Calls `measure` (the mean loss per trained token) and logs what it returns.

    Measuring draws no random number and moves no weight: the student is the same without it,
    unless `keep_best` has a checkpoint written after every new lowest loss, or `patience`
    measurements without one end the training. `losses` are those of an interrupted training, by
    update.
    """

    def __init__(
        self,
        measure: Callable[[], float],
        total: int,
        progress: Progress,
        *,
        keep_best: bool = False,
        patience: int | None = None,
        losses: Mapping[int, float] | None = None,
    ) -> None:
        self.measure, self.total, self.progress = measure, total, progress
        self.keep_best, self.patience = keep_best, patience
        self.every = math.ceil(total / TIMES)
        self.losses: dict[int, float] = dict(losses or {})

    @property
    def best(self) -> int | None:
        """The update (the first one of equals) with the lowest loss; the base does not count."""
        trained = [(loss, step) for step, loss in self.losses.items() if step and loss == loss]
        return min(trained)[1] if trained else None

    @property
    def stopped(self) -> int | None:
        """The update after which `patience` measurements in a row had found nothing lower."""
        if self.patience is None or self.best is None:
            return None
        since = sorted(step for step in self.losses if step > self.best)
        return since[self.patience - 1] if len(since) >= self.patience else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        if state.global_step == 0:
            self._log(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        step = state.global_step
        if step % self.every and step != self.total:
            return
        self._log(step)
        if self.keep_best and self.best == step:
            control.should_save = True
        if self.stopped is not None:
            control.should_save = control.should_training_stop = True

    def _log(self, step: int) -> None:
        self.losses[step] = self.measure()
        self.progress.validated(step, self.losses[step])
