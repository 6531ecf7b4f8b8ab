"""trl's SFTTrainer, fed with whole optimizer updates instead of batches of fixed size.

One item of the data loader is one update: a list of micro-batches that together hold exactly
`batch_size` examples. The loss is the mean over all trained tokens of the update, whatever the
number of micro-batches and processes. Optimizer, schedule and DDP are the Trainer's; checkpoints
and sharding are in saving.py and sharding.py.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, SequentialSampler
from torch.utils.data import Dataset as TorchDataset
from trl import SFTTrainer

from distill.errors import DistillError, UsageError
from distill.students import attention, context
from distill.students.head import add_nll_head
from distill.students.packing import Layout, MicroBatch, lay_out, share
from distill.students.render import IGNORED

LEAK = 1e-3  # far above rounding, far below what another example's tokens do


class Updates(TorchDataset):
    """All updates of a training in order; item i holds this process's micro-batches of update i.

    `plan` are the example numbers of each update, `data` has `input_ids` and `start`. `square` is
    what an example's squared length costs beside its length (packing.cost). `shared_by` processes
    share each row, of which this is number `part`; `rank` and `world` count such groups.
    """

    def __init__(
        self,
        data: Any,
        plan: list[list[int]],
        *,
        budget: int,
        layout: Layout,
        pad: int,
        rank: int = 0,
        world: int = 1,
        square: float = 0.0,
        shared_by: int = 1,
        part: int = 0,
    ) -> None:
        self.data, self.plan = data, plan
        self.budget, self.layout, self.pad = budget, layout, pad
        self.rank, self.world, self.square = rank, world, square
        self.shared_by, self.part = shared_by, part

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> dict[str, Any]:
        wanted = self.plan[number]
        rows = self.data[wanted]
        ids = {i: torch.as_tensor(x) for i, x in zip(wanted, rows["input_ids"], strict=True)}
        # The first token of an example has no prediction.
        starts = {i: max(1, int(s)) for i, s in zip(wanted, rows["start"], strict=True)}
        lengths = {i: len(x) for i, x in ids.items()}
        parts = lay_out(wanted, lengths, self.budget, self.layout, self.world, self.square)
        mine = share(parts, lengths, self.world, self.square)[self.rank]
        return {
            "micro_batches": [self._collate(m, ids, starts) for m in mine],
            "trained": sum(lengths[i] - starts[i] for i in wanted),
            "tokens": sum(lengths.values()),
            "lengths": [lengths[i] for i in wanted],
        }

    def _collate(
        self, micro: MicroBatch, ids: dict[int, torch.Tensor], starts: dict[int, int]
    ) -> dict[str, Any]:
        shape = (len(micro.rows), micro.width)
        input_ids = torch.full(shape, self.pad, dtype=torch.long)
        labels = torch.full(shape, IGNORED, dtype=torch.long)
        positions = torch.zeros(shape, dtype=torch.long)
        bounds = [0]
        for r, row in enumerate(micro.rows):
            at = 0
            for i in row:
                end = at + len(ids[i])
                input_ids[r, at:end] = ids[i]
                positions[r, at:end] = torch.arange(end - at)
                if not micro.empty:
                    # A label stands where its token is predicted: one place before it.
                    labels[r, at + starts[i] - 1 : end - 1] = ids[i][starts[i] :]
                at = end
                bounds.append(at)
            positions[r, at:] = torch.arange(micro.width - at)
        batch: dict[str, Any] = {"input_ids": input_ids, "labels": labels}
        # Without several examples in a row, plain causal attention is right (padding comes
        # last and nobody looks at it) and much faster than attention with a mask.
        several = micro.packed or self.shared_by > 1
        if several:
            batch["position_ids"] = positions
        if several and self.layout == "flat":
            cu = torch.tensor(bounds, dtype=torch.int32)
            longest = int(cu.diff().max())
            batch |= {"cu_seq_lens_q": cu, "cu_seq_lens_k": cu}
            batch |= {"max_length_q": longest, "max_length_k": longest}
        if self.shared_by > 1:
            return context.split(batch, self.shared_by, self.part, self.pad)
        return batch


class UpdateTrainer(SFTTrainer):
    """SFTTrainer over `Updates`.

    `on_update(tokens, lengths)` is called after every update's passes: the tokens of the update and
    the lengths of its examples, those of all processes.
    """

    # compute_loss divides by the update's tokens itself.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *args: Any,
        updates: Updates,
        bad_batch: Path,
        on_update: Callable[..., None],
        **kw: Any,
    ) -> None:
        self.updates, self.bad_batch, self.on_update = updates, bad_batch, on_update
        model = args[0] if args else kw["model"]
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        forward = vars(base).get("forward")
        super().__init__(*args, **kw)
        # Again without trl's entropy and accuracy, which cost time at every step.
        vars(base).pop("forward", None)
        if forward is not None:
            base.forward = forward
        add_nll_head(base)
        self._require_no_leak()

    def _require_no_leak(self) -> None:
        """Raise UsageError where packed examples of this model would see each other."""
        layout = self.updates.layout
        here = next(self.model.parameters())
        if layout == "padded" or here.device != self.args.device:
            return
        with self.compute_loss_context_manager():
            moved = attention.leaks(self.model, layout)
        if not moved <= LEAK:
            kind = self.model.config.model_type
            raise UsageError(
                f"train.packing: examples in one row of a {kind} model see each other (the outputs "
                f"of one move by {moved:.1%} when another changes)",
                "set train.packing: false",
            )

    def _send_telemetry(self) -> None:
        """No telemetry: distill reports nothing to anybody."""

    def get_train_dataloader(self) -> DataLoader:
        """One update per item, in order; resuming skips items without computing them."""
        return DataLoader(
            self.updates,
            batch_size=1,
            sampler=SequentialSampler(self.updates),
            collate_fn=_only,
            num_workers=0,
        )

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward over all micro-batches of one update; returns the update's loss."""
        parts = inputs["micro_batches"]
        total = torch.zeros((), device=self.args.device)
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            quiet = contextlib.nullcontext() if last else self.accelerator.no_sync(model)
            with quiet:
                total += super().training_step(model, part, num_items_in_batch=inputs["trained"])
        if not torch.isfinite(total):
            self._stop_on_nan(float(total), inputs)
        self.on_update(inputs["tokens"], inputs["lengths"])
        return total

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Sum of the trained tokens' negative log-likelihoods over the update's trained tokens."""
        labels = inputs.pop("labels")
        total = model(**inputs, nll=labels, use_cache=False)
        # DDP and FSDP average gradients over processes; the sum is wanted.
        return total / num_items_in_batch * self.accelerator.num_processes

    def mean_loss(self, updates: Updates) -> float:
        """The mean loss over all trained tokens of `updates`, of all processes; trains nothing."""
        total = torch.zeros((), dtype=torch.float64, device=self.args.device)
        tokens = 0
        self.model_wrapped.eval()
        with torch.no_grad():
            for number in range(len(updates)):
                item = updates[number]
                tokens += item["trained"]
                for part in item["micro_batches"]:
                    inputs = self._prepare_inputs(part)
                    with self.compute_loss_context_manager():
                        total += self.compute_loss(self.model_wrapped, inputs, num_items_in_batch=1)
        self.model_wrapped.train()
        # Each process's sum came multiplied by their number, so the mean is the sum of all.
        return float(self.accelerator.reduce(total, "mean")) / tokens

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's log, without trl's metrics."""
        self._metrics["train"].clear()
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """6 times weights times tokens."""
        return 6 * self.model.num_parameters() * int(inputs["tokens"])

    def create_model_card(self, *args: Any, **kw: Any) -> None:
        """Checkpoints are ours alone; the student's card is written by export."""

    def _stop_on_nan(self, loss: float, inputs: dict[str, Any]) -> None:
        rows = [
            {"input_ids": m["input_ids"].tolist(), "labels": m["labels"].tolist()}
            for m in inputs["micro_batches"]
            if "labels" in m
        ]
        examples = self.updates.plan[self.state.global_step]
        saved = {"update": self.state.global_step, "loss": str(loss), "examples": examples}
        # Of several processes that find out at once one's batch stays, whole.
        temporary = self.bad_batch.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({**saved, "micro_batches": rows}))
        os.replace(temporary, self.bad_batch)
        raise DistillError(
            f"the loss became {loss} at update {self.state.global_step}",
            f"its batch is in {self.bad_batch}; lower train.learning_rate or max_grad_norm",
        )


def _only(items: list[Any]) -> Any:
    return items[0]
