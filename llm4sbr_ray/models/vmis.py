"""VMIS-kNN: session-kNN from an index of each item's latest sessions (Kersbergen et al., Serenade, SIGMOD 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from llm4sbr_ray.config import Vmis
from llm4sbr_ray.models.base import SessionBatch
from llm4sbr_ray.models.session_index import SessionIndex, decayed

MATCH_DECAY = (
    0.1  # lambda of the paper: a neighbour whose latest shared click is the x-th from the end counts 1 - 0.1 x
)


class VMISKNN(SessionIndex):
    """VMIS-kNN.

    The index holds each item's `m` most recent sessions, and the `m` most recent sessions that share an item with
    session s are candidates. With i the steps of a click before the last (a repeated item's latest click), |s| clicks
    in s, h_j training sessions that hold item j, and S training sessions:

        r(t) = sum_{shared} pi_i                 pi_i = 1 - i / |s|, or exp(-i / decay) where `decay` is set
        score(j) = sum_{t of the k largest r, j in t} r(t) max(0, 1 - 0.1 (1 + i_t)) log(S / h_j) ^ idf

    where i_t is the step of the latest shared click. `idf` is 1 in the paper; 0 leaves the factor away. Of equal r
    the later session is nearer; of items with equal scores the more popular one is first.

    Parameters
    ----------
    n_items
        V.
    config
        `k`, `m`, `decay`, `idf`.
    """

    idf_V: Tensor  # float32, log(S / h_j) ^ idf

    def __init__(self, n_items: int, config: Vmis) -> None:
        self.idf = config.idf
        super().__init__(n_items, config.m)
        self.config = config

    def fit(self, items_N: Tensor, offsets_S1: Tensor) -> None:
        super().fit(items_N, offsets_S1)
        holding_V = torch.bincount(self.session_item, minlength=self.n_items).clamp_min(1)
        idf_V = torch.log(max(len(offsets_S1) - 1, 1) / holding_V.double())
        self.register_buffer("idf_V", (idf_V**self.idf).float())

    def score(self, batch: SessionBatch) -> Tensor:
        clicks = self.clicks(batch)
        if self.config.decay > 0:
            weight_Q = decayed(clicks.step_Q, self.config.decay)
        else:
            weight_Q = 1 - clicks.step_Q.double() / batch.length_B[clicks.row_Q]
        found = self.candidates(clicks, weight_Q)
        found, shared_C = self.nearest(found, found.shared_C, self.config.k)
        value_C = shared_C * (1 - MATCH_DECAY * (1 + found.step_C)).clamp_min(0)
        entry_X, position_X = self.items_of(found)
        value_X = value_C[entry_X] * self.idf_V[self.session_item[position_X]]
        return self.sum_items(len(batch.length_B), found.row_C[entry_X], position_X, value_X)
