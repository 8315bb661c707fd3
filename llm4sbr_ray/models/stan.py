"""STAN: session-kNN with three decay factors (Garg et al., SIGIR 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from llm4sbr_ray.config import Stan
from llm4sbr_ray.models.base import SessionBatch
from llm4sbr_ray.models.session_index import SessionIndex, decayed


class STAN(SessionIndex):
    """STAN.

    For a session s, a training session t that shares items with it, and p(j, t) the position of item j's last
    click in t:

        similarity(s, t) = sum_{shared} w1 / sqrt(|s| |t|) x w2(t)     w1 = exp(-steps before the last / click_decay)
        score(j) = sum_{t of the k most similar, j in t} similarity(s, t) x exp(-|p(j, t) - p(i*, t)| / item_decay)

    where i* is the latest click of s that t shares, and |.| counts distinct items. The paper's second factor is
    w2(t) = exp(-(time of s - time of t) / lambda). Samples carry no timestamps, so the time of s, which is the same
    for all t, drops out, and the place of t among the training sessions stands for its time: w2(t) = exp(-a /
    recency_decay), a = the share of training sessions after t. Where the order of sessions means nothing, leave the
    factor away: `recency_decay` 0, the default. Each other decay can be left away by 0 as well.
    Of equally similar sessions the later one is nearer; of items with equal scores the more popular one is first.

    Parameters
    ----------
    n_items
        V.
    config
        `k`, `sample_size` and the three decays.
    """

    session_position: Tensor  # int32: position of the last click on each entry of `session_item`

    def __init__(self, n_items: int, config: Stan) -> None:
        super().__init__(n_items, config.sample_size)
        self.config = config

    def fit(self, items_N: Tensor, offsets_S1: Tensor) -> None:
        super().fit(items_N, offsets_S1)
        session_N = torch.repeat_interleave(torch.arange(len(offsets_S1) - 1), offsets_S1.diff())
        position_N = torch.arange(len(items_N)) - offsets_S1[session_N]
        key, click = torch.unique(session_N * self.n_items + items_N, return_inverse=True)
        last = torch.zeros_like(key).scatter_reduce_(0, click, position_N, "amax")
        self.register_buffer("session_position", last.int())

    def score(self, batch: SessionBatch) -> Tensor:
        S = len(self.session_offset) - 1
        clicks = self.clicks(batch)
        found = self.candidates(clicks, decayed(clicks.step_Q, self.config.click_decay))
        later_C = (S - 1 - found.session_C) / max(S, 1)
        similarity_C = self.cosine(clicks, found) * decayed(later_C, self.config.recency_decay)
        found, similarity_C = self.nearest(found, similarity_C, self.config.k)
        entry_X, position_X = self.items_of(found)
        place_X = self.session_position[position_X].long()
        anchor_C = batch.items_BL[found.row_C, batch.length_B[found.row_C] - 1 - found.step_C]
        is_anchor_X = self.session_item[position_X] == anchor_C[entry_X]  # true once a candidate
        anchor_place_C = place_X[is_anchor_X]
        near_X = decayed((place_X - anchor_place_C[entry_X]).abs(), self.config.item_decay)
        value_X = similarity_C[entry_X] * near_X
        return self.sum_items(len(batch.length_B), found.row_C[entry_X], position_X, value_X)
