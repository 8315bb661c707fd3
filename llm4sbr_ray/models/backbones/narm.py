"""NARM: neural attentive session-based recommendation (Li et al., CIKM 2017).

A GRU reads the clicks; its last state asks, by attention, which of its states the session is about.

Shapes, besides those of `models.base`: N clicks of a batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from llm4sbr_ray.config import ModelConfig
from llm4sbr_ray.models.attention import clicks_of
from llm4sbr_ray.models.base import Backbone, SessionVectors


class NARM(Backbone):
    """NARM (Li et al., CIKM 2017, equations 1 to 11), with one GRU for both encoders, as the paper allows.

        alpha_j = v^T sigmoid(A1 h_t + A2 h_j)      no softmax
        c = [h_t ; sum_j alpha_j h_j]
        score_i = x_i^T B c

    H_global is the paper's global encoding h_t, the whole sequence of clicks; H_local its local one, the sum over
    the states that matter to the main purpose; the session vector is B c, so the paper's bilinear decoder
    is a product of session and item.

    Parameters
    ----------
    n_items
        V.
    config
        `width`, also that of the GRU; `dropout` of item vectors and of c (the paper: 0.25 and 0.5).
    """

    def __init__(self, n_items: int, config: ModelConfig) -> None:
        super().__init__()
        D = config.width
        self.item_embedding = nn.Embedding(n_items + 1, D, padding_idx=n_items)
        self.dropout = nn.Dropout(config.dropout)
        self.gru = nn.GRU(D, D, batch_first=True)
        self.attend_last, self.attend_click = nn.Linear(D, D, bias=False), nn.Linear(D, D, bias=False)  # A1, A2
        self.attend = nn.Linear(D, 1, bias=False)  # v
        self.decode = nn.Linear(2 * D, D, bias=False)  # B
        nn.init.uniform_(self.item_embedding.weight, -(D**-0.5), D**-0.5)
        with torch.no_grad():
            self.item_embedding.weight[n_items] = 0

    def forward(self, items_BL: Tensor, length_B: Tensor) -> SessionVectors:
        clicks = clicks_of(items_BL, length_B)
        item_BLD = clicks.padded(self.dropout(self.item_embedding(clicks.item_N)))
        packed, _ = self.gru(pack_padded_sequence(item_BLD, length_B.cpu(), batch_first=True, enforce_sorted=False))
        L = items_BL.shape[1]
        state_ND = clicks.flat(pad_packed_sequence(packed, batch_first=True, total_length=L)[0])
        global_BD = state_ND[clicks.last_B]
        last_ND = self.attend_last(global_BD).repeat_interleave(length_B, dim=0)
        alpha_N = self.attend(torch.sigmoid(last_ND + self.attend_click(state_ND))).squeeze(1)
        each_N = torch.arange(len(alpha_N), device=alpha_N.device)
        local_BD = F.embedding_bag(
            each_N, state_ND, clicks.offset_B, mode="sum", per_sample_weights=alpha_N.to(state_ND.dtype)
        )
        session_BD = self.decode(self.dropout(torch.cat([global_BD, local_BD], dim=1)))
        return SessionVectors(global_BD, local_BD, session_BD)
