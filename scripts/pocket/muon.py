"""Muon in fp32: torch's own orthogonalises in bf16, which is ten times slower on most CPUs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz iteration (Jordan 2024)


def orthogonal(batch: Tensor, steps: int = 4) -> Tensor:
    """Nearly the nearest semi-orthogonal matrices; shape (n, rows, columns)."""
    a, b, c = COEFFICIENTS
    tall = batch.size(1) > batch.size(2)
    x = batch.mT if tall else batch
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised per matrix; the step's RMS is AdamW's usual 0.2 (Liu 2025)."""

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, decay: float = 0.02
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update; matrices of one shape are orthogonalised together."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                shapes[p.shape].append(p)
            for shape, params in shapes.items():
                updates = []
                for p in params:
                    state = self.state[p]
                    if not state:
                        state["buffer"] = torch.zeros_like(p)
                    state["buffer"].lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(state["buffer"], group["momentum"]))
                scale = group["lr"] * 0.2 * max(shape) ** 0.5
                for p, update in zip(params, orthogonal(torch.stack(updates)), strict=True):
                    p.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-scale)
