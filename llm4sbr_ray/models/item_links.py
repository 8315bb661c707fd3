"""Item to item: what stood beside an item in the train sessions (item-kNN), or after it (sequential rules).

Both keep one weighted list of linked items an item, flat and sorted, and score a whole batch by tensor operations.

Shapes, besides those of `models.base`: N clicks of all train sessions; X links; Q clicks of a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llm4sbr_ray.config import ItemKNN, Rules
from llm4sbr_ray.models.base import CountModel, SessionBatch
from llm4sbr_ray.models.ragged import distinct_clicks, expand, group_offsets, split_key

TIE_BREAK = 1e-7  # of items with equal scores the more popular one is first


class ItemLinks(CountModel):
    """Links i -> j with weights, in rows by i; subclasses say which, and how much a click of the session counts."""

    link_item_X: Tensor  # int32, j
    link_weight_X: Tensor  # float32
    link_offset_V1: Tensor  # int64, where the links of each i begin
    count_V: Tensor  # int64, training clicks

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.n_items = n_items
        self._keep(torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(n_items, dtype=torch.int64))

    def click_weights(self, step_Q: Tensor) -> Tensor:
        """Weight of the click that many steps before the last; 0 leaves it out."""
        raise NotImplementedError

    def score(self, batch: SessionBatch) -> Tensor:
        row_Q, item_Q, step_Q, _ = distinct_clicks(batch, self.n_items)
        weight_Q = self.click_weights(step_Q)
        counts = weight_Q > 0
        row_Q, item_Q, weight_Q = row_Q[counts], item_Q[counts], weight_Q[counts]
        click, link = expand(self.link_offset_V1[item_Q], self.link_offset_V1[item_Q + 1])
        cell = row_Q[click] * self.n_items + self.link_item_X[link]
        scores = torch.zeros(len(batch.length_B) * self.n_items, device=cell.device)
        scores.index_add_(0, cell, weight_Q[click] * self.link_weight_X[link])
        return scores.view(-1, self.n_items) + TIE_BREAK * self.count_V / self.count_V.max().clamp_min(1)

    def _keep(self, key_X: Tensor, weight_X: Tensor, count_V: Tensor) -> None:
        """Register links, `key_X` = i * V + j sorted."""
        source_X, target_X = split_key(key_X, self.n_items)
        self.register_buffer("link_item_X", target_X.int())
        self.register_buffer("link_weight_X", weight_X.float())
        self.register_buffer("link_offset_V1", group_offsets(source_X, self.n_items))
        self.register_buffer("count_V", count_V)


class SequentialRules(ItemLinks):
    """Sequential rules (Ludewig and Jannach, UMUAI 2018): what was clicked soon after the session's last item.

        score(j) = sum over train sessions, over i before j at distance d <= reach:  1 / d       i the last click

    Parameters
    ----------
    n_items
        V.
    config
        `reach`.
    """

    def __init__(self, n_items: int, config: Rules) -> None:
        super().__init__(n_items)
        self.config = config

    def fit(self, items_N: Tensor, offsets_S1: Tensor) -> None:
        session_N = torch.repeat_interleave(torch.arange(len(offsets_S1) - 1), offsets_S1.diff())
        source, target, distance, _ = _pairs(items_N, session_N, self.config.reach)
        key_X, pair = torch.unique(source * self.n_items + target, return_inverse=True)
        weight_X = torch.zeros(len(key_X), dtype=torch.float64).index_add_(0, pair, 1 / distance.double())
        self._keep(key_X, weight_X, torch.bincount(items_N, minlength=self.n_items))

    def click_weights(self, step_Q: Tensor) -> Tensor:
        return (step_Q == 0).float()


class ItemNeighbours(ItemLinks):
    """Item-kNN: cosine of co-occurrence (Sarwar et al., WWW 2001), the session's late clicks counting most.

        score(j) = sum_{i in session} exp(-step_i / decay) |S_ij| / sqrt(|S_i| |S_j|)        j other than i

    S_i are the train sessions that hold i, S_ij those that hold both with at most `reach` clicks between them.
    A repeated click counts as its last one.

    Parameters
    ----------
    n_items
        V.
    config
        `reach`, `decay`.
    """

    def __init__(self, n_items: int, config: ItemKNN) -> None:
        super().__init__(n_items)
        self.config = config

    def fit(self, items_N: Tensor, offsets_S1: Tensor) -> None:
        V = self.n_items
        session_N = torch.repeat_interleave(torch.arange(len(offsets_S1) - 1), offsets_S1.diff())
        sessions_V = torch.bincount(torch.unique(session_N * V + items_N) % V, minlength=V)
        source, target, _, session = _pairs(items_N, session_N, self.config.reach)
        low, high = torch.minimum(source, target), torch.maximum(source, target)
        once = torch.unique(torch.stack([session, low * V + high], dim=1)[low != high], dim=0)[:, 1]
        key_H, together_H = torch.unique(once, return_counts=True)
        low_H, high_H = split_key(key_H, V)
        cosine_H = together_H / (sessions_V[low_H] * sessions_V[high_H]).double().sqrt()
        key_X, order = torch.cat([key_H, high_H * V + low_H]).sort()
        self._keep(key_X, torch.cat([cosine_H, cosine_H])[order], torch.bincount(items_N, minlength=V))

    def click_weights(self, step_Q: Tensor) -> Tensor:
        return torch.exp(-step_Q / self.config.decay)


def _pairs(items_N: Tensor, session_N: Tensor, reach: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(earlier item, later item, clicks from one to the other, session) of all pairs at most `reach` clicks apart."""
    sources, targets, distances, sessions = [], [], [], []
    for distance in range(1, reach + 1):
        same = session_N[distance:] == session_N[:-distance]
        if not same.any():
            break  # no session is longer
        sources.append(items_N[:-distance][same])
        targets.append(items_N[distance:][same])
        distances.append(torch.full((int(same.sum()),), distance))
        sessions.append(session_N[distance:][same])
    if not sources:
        return (torch.zeros(0, dtype=torch.int64),) * 4
    return torch.cat(sources), torch.cat(targets), torch.cat(distances), torch.cat(sessions)
