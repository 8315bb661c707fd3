"""Popularity: every session is recommended the most clicked items of the training sessions."""

from __future__ import annotations

import torch
from torch import Tensor

from llm4sbr_ray.models.base import CountModel, SessionBatch


class Popularity(CountModel):
    """Click counts.

    Parameters
    ----------
    n_items
        V.
    """

    count_V: Tensor

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.register_buffer("count_V", torch.zeros(n_items, dtype=torch.int64))

    def fit(self, items_N: Tensor, offsets_S1: Tensor) -> None:
        """Count clicks of training sessions: N int64 items; session s is offsets_S1[s]..offsets_S1[s + 1]."""
        self.count_V = torch.bincount(items_N, minlength=len(self.count_V))

    def score(self, batch: SessionBatch) -> Tensor:
        return self.count_V.float().repeat(len(batch.length_B), 1)
