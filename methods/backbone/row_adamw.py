"""AdamW on the rows of a table: only the people of a batch are read and written, each with their own step count."""

from __future__ import annotations

import torch
from torch import Tensor


class RowAdamW:
    """Adam with decoupled weight decay for a table [U, P] whose rows are touched a few at a time.

    A row that is absent keeps its moments and its step count, so a person's path is the one that `torch.optim.AdamW`
    would take on the steps they are in, and a step costs by the people present and not by all there are. Source: AdamW
    (Loshchilov and Hutter 2019, algorithm 2), bias correction per row.
    """

    def __init__(
        self,
        table: Tensor,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.table = table
        self.first = torch.zeros_like(table)
        self.second = torch.zeros_like(table)
        self.steps = torch.zeros(len(table), dtype=torch.float64, device=table.device)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay

    @torch.no_grad()
    def step(self, rows: Tensor, gradient: Tensor, lr: float) -> None:
        """Update the rows int64 [n], all different, by their gradient [n, P]."""
        beta1, beta2 = self.betas
        self.steps[rows] += 1
        count = self.steps[rows]
        correct1 = (1 - beta1**count).to(gradient.dtype)[:, None]
        correct2 = (1 - beta2**count).to(gradient.dtype)[:, None]
        first = self.first[rows].lerp_(gradient, 1 - beta1)
        second = self.second[rows].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        self.first[rows], self.second[rows] = first, second
        value = self.table[rows].mul_(1 - lr * self.weight_decay)
        self.table[rows] = value.sub_(lr * (first / correct1) / ((second / correct2).sqrt_().add_(self.eps)))
