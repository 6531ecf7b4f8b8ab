"""How well a training uses its devices: FLOPs against their peak (MFU), and peak memory."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.errors import UsageError
from distill.students import flops
from distill.students.catalog import Arch
from distill.students.hardware import Hardware

PEAK_VARIABLE = "DISTILL_PEAK_FLOPS"
"""Environment variable with a matrix rate measured on this machine, in FLOP/s of one device."""


@dataclass(frozen=True, slots=True)
class Meter:
    """Counts the model's FLOPs, and what the devices could have done in that time.

    `peak` is the FLOP/s of all devices together, None where nobody knows it: then there is no
    MFU. Model FLOPs are those of one forward and backward pass (flops.training_flops): computing
    activations again under gradient checkpointing is no use of the device that counts.
    """

    arch: Arch | None = None
    method: str = "full"
    rank: int = 0
    peak: float | None = None
    gpu: bool = False

    @classmethod
    def of(
        cls, arch: Arch | None, student: Mapping[str, Any], train: Mapping[str, Any], on: Hardware
    ) -> Meter:
        """For a training as its config and hardware say. Raises UsageError for a rate of words."""
        measured = os.environ.get(PEAK_VARIABLE)
        try:
            peak = float(measured) if measured else flops.peak_of(on.device)
        except ValueError:
            raise UsageError(
                f"{PEAK_VARIABLE} is '{measured}'", "give FLOP/s as a number, such as 7.9e14"
            ) from None
        return cls(
            arch,
            str(student.get("method") or "full"),
            int((train.get("lora") or {}).get("rank") or 0),
            peak * on.world if peak else None,
            gpu=on.device != "cpu",
        )

    def flops(self, lengths: Sequence[int]) -> int:
        """Of an update with examples of these lengths in tokens; 0 for an unknown architecture."""
        if self.arch is None or self.peak is None:
            return 0
        return flops.training_flops(self.arch, lengths, self.method, rank=self.rank)

    def mfu(self, done: int, seconds: float) -> float | None:
        """The share of the devices' peak that `done` FLOPs in `seconds` are, or None."""
        return done / (seconds * self.peak) if done and seconds > 0 and self.peak else None

    def peak_memory(self) -> int:
        """Bytes: the most that torch held on this process's GPU, or that the process held."""
        if self.gpu:
            import torch

            return int(torch.cuda.max_memory_allocated())
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
