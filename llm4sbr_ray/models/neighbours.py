"""Session-kNN: what sessions like this one went on to click (V-SkNN, Ludewig and Jannach, UMUAI 2018)."""

from __future__ import annotations

from torch import Tensor

from llm4sbr_ray.config import Neighbours
from llm4sbr_ray.models.base import SessionBatch
from llm4sbr_ray.models.session_index import SessionIndex, decayed

SCORE_DECAY = 0.1  # a neighbour whose latest shared click is i steps back counts 1 - 0.1 i, at least 0


class SessionKNN(SessionIndex):
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

    def __init__(self, n_items: int, config: Neighbours) -> None:
        super().__init__(n_items, config.sample_size)
        self.config = config

    def score(self, batch: SessionBatch) -> Tensor:
        clicks = self.clicks(batch)
        found = self.candidates(clicks, decayed(clicks.step_Q, self.config.decay))
        found, value_C = self.nearest(found, self.cosine(clicks, found), self.config.k)
        if self.config.decay > 0:
            value_C = value_C * (1 - SCORE_DECAY * found.step_C).clamp_min(0)
        entry_X, position_X = self.items_of(found)
        return self.sum_items(len(batch.length_B), found.row_C[entry_X], position_X, value_C[entry_X])
