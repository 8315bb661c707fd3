"""Session-kNN: what sessions like this one went on to click (V-SkNN, Ludewig and Jannach, UMUAI 2018).

Posting lists and sessions are flat tensors, and a whole batch is scored by tensor operations.

Shapes, besides those of `models.base`: S training sessions, N clicks in them; Q clicks of a batch (an item
once a session), C candidates (pairs of a batch's session and a training session that share items).
"""

from __future__ import annotations

import torch
from torch import Tensor

from llm4sbr_ray.config import Neighbours
from llm4sbr_ray.models.base import CountModel, SessionBatch
from llm4sbr_ray.models.ragged import distinct_clicks, expand, group_offsets, rank_in_group, split_key

SCORE_DECAY = 0.1  # a neighbour whose latest shared click is i steps back counts 1 - 0.1 i, at least 0


class SessionKNN(CountModel):
    """V-SkNN.

    The click i steps before the last has weight w_i = exp(-i / decay); a repeated item that of its last.
    For a training session t that shares items with session s,

        similarity(s, t) = sum_{shared} w_i / sqrt(|s| |t|)         |.| counts distinct items
        score(j) = sum_{t of the k most similar, j in t} similarity(s, t) max(0, 1 - 0.1 i_t)

    where i_t is the step of the latest shared click. Only the `sample_size` most recent sessions that share
    an item are candidates. `decay` 0 is plain S-kNN: w = 1, no factor in the score. Of equally similar
    sessions the later one is nearer; of items with equal scores the more popular one is first.

    Parameters
    ----------
    n_items
        V.
    config
        `k`, `sample_size`, `decay`.
    """

    posting_session: Tensor  # int32: of each item the training sessions that hold it, latest first
    posting_offset: Tensor  # int64, V + 1
    session_item: Tensor  # int32: the distinct items of each training session
    session_offset: Tensor  # int64, S + 1
    count_V: Tensor  # int64, training clicks

    def __init__(self, n_items: int, config: Neighbours) -> None:
        super().__init__()
        self.n_items, self.config = n_items, config
        self.fit(torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))

    def fit(self, items_N: Tensor, offsets_S1: Tensor) -> None:
        """Index training sessions in time order: N int64 items; s is at offsets_S1[s]..offsets_S1[s + 1]."""
        V, S = self.n_items, len(offsets_S1) - 1
        session_N = torch.repeat_interleave(torch.arange(S), offsets_S1.diff())
        session, item = split_key(torch.unique(session_N * V + items_N), V)
        posting_item, negative = split_key(torch.unique(item * S + (S - 1 - session)), max(S, 1))
        # A session among the latest `sample_size` of all candidates is so in each of its items' lists: the
        # rest of a list never matters.
        kept = rank_in_group(posting_item) < self.config.sample_size
        self.register_buffer("posting_session", (S - 1 - negative[kept]).int())
        self.register_buffer("posting_offset", group_offsets(posting_item[kept], V))
        self.register_buffer("session_item", item.int())
        self.register_buffer("session_offset", group_offsets(session, S))
        self.register_buffer("count_V", torch.bincount(items_N, minlength=V))

    def score(self, batch: SessionBatch) -> Tensor:
        B, V = len(batch.length_B), self.n_items
        row_C, session_C, similarity_C, step_C = self._neighbours(batch)
        if self.config.decay > 0:
            similarity_C = similarity_C * (1 - SCORE_DECAY * step_C).clamp_min(0)
        entry, position = expand(self.session_offset[session_C], self.session_offset[session_C + 1])
        cell = row_C[entry] * V + self.session_item[position]
        scores_BV = torch.zeros(B * V, device=cell.device).index_add_(0, cell, similarity_C[entry]).view(B, V)
        return scores_BV + 1e-7 * self.count_V / self.count_V.max().clamp_min(1)

    def _neighbours(self, batch: SessionBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(row, training session, similarity, step of the latest shared click) of the nearest sessions."""
        S = len(self.session_offset) - 1
        row_Q, item_Q, step_Q, size_B = distinct_clicks(batch, self.n_items)
        entry, position = expand(self.posting_offset[item_Q], self.posting_offset[item_Q + 1])
        step = step_Q[entry]
        key = row_Q[entry] * S + self.posting_session[position]
        key_C, pair = torch.unique(key, return_inverse=True)
        decay = self.config.decay
        weight = torch.exp(-step / decay) if decay > 0 else torch.ones_like(step, dtype=torch.float32)
        shared_C = torch.zeros(len(key_C), device=key.device).index_add_(0, pair, weight)
        step_C = torch.full((len(key_C),), 1 << 30, device=key.device).scatter_reduce_(0, pair, step, "amin")
        row_C, session_C = split_key(key_C, max(S, 1))
        latest_first = torch.arange(len(key_C) - 1, -1, -1, device=key.device)  # rows descend too
        latest_first = latest_first[rank_in_group(row_C[latest_first]) < self.config.sample_size]
        row_C, session_C, shared_C, step_C = (t[latest_first] for t in (row_C, session_C, shared_C, step_C))
        size_C = size_B[row_C] * self.session_offset.diff()[session_C]
        similarity_C = shared_C / size_C.sqrt()
        nearest = torch.argsort(similarity_C, descending=True, stable=True)
        nearest = nearest[torch.argsort(row_C[nearest], stable=True)]
        nearest = nearest[rank_in_group(row_C[nearest]) < self.config.k]
        return row_C[nearest], session_C[nearest], similarity_C[nearest], step_C[nearest]
