"""Training sessions that share items with a session, found for a whole batch at once: what all session-kNN use.

Posting lists and sessions are flat tensors. Shapes, besides those of `models.base`: S training sessions, N clicks in
them; Q clicks of a batch (an item once a session); C candidates (pairs of a batch's session and a training session
that share items); X items of candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llm4sbr_ray.models.base import CountModel, SessionBatch
from llm4sbr_ray.models.ragged import distinct_clicks, expand, group_offsets, rank_in_group, split_key


@dataclass
class Clicks:
    """The distinct items of each session of a batch."""

    row_Q: Tensor
    item_Q: Tensor
    step_Q: Tensor  # steps of the item's latest click before the session's last: 0 is the last item
    size_B: Tensor  # distinct items


@dataclass
class Candidates:
    """Training sessions that share items with the sessions of a batch; of one row the latest first."""

    row_C: Tensor
    session_C: Tensor
    shared_C: Tensor  # float64, sum of the weights of shared items
    step_C: Tensor  # step of the latest shared click

    def take(self, index: Tensor) -> Candidates:
        return Candidates(self.row_C[index], self.session_C[index], self.shared_C[index], self.step_C[index])


class SessionIndex(CountModel):
    """An inverted index of training sessions.

    Parameters
    ----------
    n_items
        V.
    sample_size
        The most recent sessions that share an item are candidates, at most so many.
    """

    posting_session: Tensor  # int32: of each item the training sessions that hold it, latest first
    posting_offset: Tensor  # int64, V + 1
    session_item: Tensor  # int32: the distinct items of each training session, ascending
    session_offset: Tensor  # int64, S + 1
    count_V: Tensor  # int64, training clicks

    def __init__(self, n_items: int, sample_size: int) -> None:
        super().__init__()
        self.n_items, self.sample_size = n_items, sample_size
        self.fit(torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))

    def fit(self, items_N: Tensor, offsets_S1: Tensor) -> None:
        V, S = self.n_items, len(offsets_S1) - 1
        session_N = torch.repeat_interleave(torch.arange(S), offsets_S1.diff())
        session, item = split_key(torch.unique(session_N * V + items_N), V)
        posting_item, negative = split_key(torch.unique(item * S + (S - 1 - session)), max(S, 1))
        # A session among the latest `sample_size` of all candidates is so in each of its items' lists: the
        # rest of a list never matters.
        kept = rank_in_group(posting_item) < self.sample_size
        self.register_buffer("posting_session", (S - 1 - negative[kept]).int())
        self.register_buffer("posting_offset", group_offsets(posting_item[kept], V))
        self.register_buffer("session_item", item.int())
        self.register_buffer("session_offset", group_offsets(session, S))
        self.register_buffer("count_V", torch.bincount(items_N, minlength=V))

    def clicks(self, batch: SessionBatch) -> Clicks:
        return Clicks(*distinct_clicks(batch, self.n_items))

    def candidates(self, clicks: Clicks, weight_Q: Tensor) -> Candidates:
        """The `sample_size` most recent training sessions that share items with each session."""
        S = len(self.session_offset) - 1
        entry, position = expand(self.posting_offset[clicks.item_Q], self.posting_offset[clicks.item_Q + 1])
        key_C, pair = torch.unique(clicks.row_Q[entry] * S + self.posting_session[position], return_inverse=True)
        shared_C = weight_Q.new_zeros(len(key_C)).index_add_(0, pair, weight_Q[entry])
        step_C = torch.full_like(key_C, 1 << 30).scatter_reduce_(0, pair, clicks.step_Q[entry], "amin")
        row_C, session_C = split_key(key_C, max(S, 1))
        latest_first = torch.arange(len(key_C) - 1, -1, -1, device=key_C.device)  # rows descend too
        latest_first = latest_first[rank_in_group(row_C[latest_first]) < self.sample_size]
        return Candidates(row_C, session_C, shared_C, step_C).take(latest_first)

    def cosine(self, clicks: Clicks, found: Candidates) -> Tensor:
        """similarity_C = sum of shared weights / sqrt(|s| |t|), where |.| counts distinct items."""
        size_C = clicks.size_B[found.row_C] * self.session_offset.diff()[found.session_C]
        return found.shared_C / size_C.double().sqrt()

    @staticmethod
    def nearest(found: Candidates, similarity_C: Tensor, k: int) -> tuple[Candidates, Tensor]:
        """The k most similar candidates of each session, and their similarities; of equals the later."""
        # As float32, so that sums of the same weights in another order are equal.
        best = torch.argsort(similarity_C.float(), descending=True, stable=True)
        best = best[torch.argsort(found.row_C[best], stable=True)]
        best = best[rank_in_group(found.row_C[best]) < k]
        return found.take(best), similarity_C[best]

    def items_of(self, found: Candidates) -> tuple[Tensor, Tensor]:
        """entry_X, position_X: candidate entry_X holds the item session_item[position_X]."""
        return expand(self.session_offset[found.session_C], self.session_offset[found.session_C + 1])

    def sum_items(self, n_rows: int, row_X: Tensor, position_X: Tensor, value_X: Tensor) -> Tensor:
        """scores_BV: the sum of the values of each row's items, the more popular first among equals."""
        cell_X = row_X * self.n_items + self.session_item[position_X]
        scores = torch.zeros(n_rows * self.n_items, device=cell_X.device).index_add_(0, cell_X, value_X.float())
        return scores.view(n_rows, self.n_items) + 1e-7 * self.count_V / self.count_V.max().clamp_min(1)


def decayed(step: Tensor, decay: float) -> Tensor:
    """exp(-step / decay), float64; 1 everywhere where `decay` is 0."""
    return torch.exp(-step.double() / decay) if decay > 0 else torch.ones_like(step, dtype=torch.float64)
