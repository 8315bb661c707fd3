"""STAMP: short-term attention/memory priority model (Liu et al., KDD 2018).

No recurrence and no order but the last click: attention over the clicks makes a memory of general interests, which
the last click's own vector then filters.

Shapes, besides those of `models.base`: N clicks of a batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from llm4sbr_ray.config import ModelConfig
from llm4sbr_ray.models.attention import Clicks, clicks_of
from llm4sbr_ray.models.base import Backbone, SessionVectors


class STAMP(Backbone):
    """STAMP (Liu et al., KDD 2018, equations 2 to 9).

        m_a = sum_i alpha_i x_i     alpha_i = W0 sigmoid(W1 x_i + W2 x_t + W3 m_s + b_a), m_s the mean of the x_i
        h_s = tanh(Ws m_a + b_s)    h_t = tanh(Wt x_t + b_t)
        score_j = <h_s, h_t, x_j> = sum_d h_s[d] h_t[d] x_j[d]

    H_global is h_s, H_local h_t and the session vector h_s * h_t, whose product with an item is the trilinear one.
    The paper puts a sigmoid on it before the softmax; as in the authors' code there is none here, since it would keep
    the probabilities of a large catalogue nearly equal.

    Parameters
    ----------
    n_items
        V.
    config
        `width` and `dropout` (of the clicks' item vectors; the paper has none).
    """

    def __init__(self, n_items: int, config: ModelConfig) -> None:
        super().__init__()
        D = config.width
        self.item_embedding = nn.Embedding(n_items + 1, D, padding_idx=n_items)
        self.dropout = nn.Dropout(config.dropout)
        self.attend_click = nn.Linear(D, D)  # W1, b_a
        self.attend_last, self.attend_mean = nn.Linear(D, D, bias=False), nn.Linear(D, D, bias=False)
        self.attend = nn.Linear(D, 1, bias=False)
        self.memory, self.last = nn.Linear(D, D), nn.Linear(D, D)  # Ws, Wt
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(D**-0.5), D**-0.5)
        with torch.no_grad():
            self.item_embedding.weight[n_items] = 0

    def forward(self, items_BL: Tensor, length_B: Tensor) -> SessionVectors:
        clicks = clicks_of(items_BL, length_B)
        click_ND = self.dropout(self.item_embedding(clicks.item_N))
        last_BD = click_ND[clicks.last_B]
        gate_N = self.click_gates(click_ND, last_BD, length_B, clicks)
        each_N = torch.arange(len(gate_N), device=gate_N.device)
        memory_BD = F.embedding_bag(
            each_N, click_ND, clicks.offset_B, mode="sum", per_sample_weights=gate_N.to(click_ND.dtype)
        )
        global_BD, local_BD = torch.tanh(self.memory(memory_BD)), torch.tanh(self.last(last_BD))
        return SessionVectors(global_BD, local_BD, global_BD * local_BD)

    def click_gates(self, click_ND: Tensor, last_BD: Tensor, length_B: Tensor, clicks: Clicks) -> Tensor:
        """alpha_i of each click, N."""
        query_BD = self.attend_last(last_BD) + self.attend_mean(clicks.mean(click_ND))
        inner_ND = self.attend_click(click_ND) + query_BD.repeat_interleave(length_B, dim=0)
        gate_N: Tensor = self.attend(torch.sigmoid(inner_ND)).squeeze(1)
        return gate_N
