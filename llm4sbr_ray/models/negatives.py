"""Negatives for losses that rank a target against a sample of the catalogue: the same ones for all sessions of a batch.

Shape, besides those of `models.base`: N negatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Negatives:
    """Distinct items, and how likely a draw was to hold each."""

    item_N: Tensor  # int64
    log_inclusion_N: Tensor  # float32, at most 0


class NegativeSampler(nn.Module):
    """`draws` items drawn with replacement, of which the distinct ones are kept.

    An item of probability q is then among them with probability 1 - (1 - q)^draws, exactly: dividing what it adds to a
    sum over the catalogue by that gives an unbiased estimate of the sum (Horvitz and Thompson, 1952). Where as many are
    asked for as there are items, all are taken.

    Parameters
    ----------
    n_items
        V.
    draws
        At most so many negatives.
    weight_V
        q up to a factor, all above 0; None: uniform.
    """

    cumulative_V: Tensor | None  # float64, sums of weights: a million small ones are too many for float32

    def __init__(self, n_items: int, draws: int, weight_V: Tensor | None = None) -> None:
        super().__init__()
        self.n_items, self.draws = n_items, draws
        cumulative_V = None if weight_V is None else weight_V.double().cumsum(0)
        self.register_buffer("cumulative_V", cumulative_V, persistent=False)

    def forward(self, device: torch.device) -> Negatives:
        """A sample, from torch's generator of that device."""
        if self.draws >= self.n_items:
            return Negatives(torch.arange(self.n_items, device=device), torch.zeros(self.n_items, device=device))
        if self.cumulative_V is None:
            item_N = torch.randint(self.n_items, (self.draws,), device=device).unique()
            share_N = torch.full((len(item_N),), 1 / self.n_items, dtype=torch.float64, device=device)
        else:
            total = self.cumulative_V[-1]
            point = torch.rand(self.draws, dtype=torch.float64, device=device) * total
            item_N = torch.searchsorted(self.cumulative_V, point, right=True).clamp_max(self.n_items - 1).unique()
            before_N = self.cumulative_V[(item_N - 1).clamp_min(0)].masked_fill(item_N == 0, 0)
            share_N = (self.cumulative_V[item_N] - before_N) / total
        inclusion_N = -torch.expm1(self.draws * torch.log1p(-share_N))  # 1 - (1 - q)^draws, exact for tiny q as well
        return Negatives(item_N, inclusion_N.log().float())
