"""GRU4Rec: session-based recommendations with recurrent neural networks (Hidasi et al., ICLR 2016).

Shapes, besides those of `models.base`: N clicks of all sessions of a batch, in the order of the packed sequence.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from llm4sbr_ray.config import ModelConfig
from llm4sbr_ray.models.base import Backbone, SessionVectors


class GRU4Rec(Backbone):
    """GRU4Rec with the full softmax in place of its sampled ranking losses.

    H_local, the session vector too, is the state after the last click; H_global the mean of the states after all
    clicks. Items go in and are ranked with the same embeddings (the paper has one-hot inputs and an output
    matrix of its own; its authors' later code offers the shared ones as `constrained_embedding`).

    Parameters
    ----------
    n_items
        V.
    config
        `width`, `gru_layers`, `dropout` (of the item vectors, between layers, and of the session vector).
    """

    def __init__(self, n_items: int, config: ModelConfig) -> None:
        super().__init__()
        D = config.width
        self.item_embedding = nn.Embedding(n_items + 1, D, padding_idx=n_items)
        between = config.dropout if config.gru_layers > 1 else 0.0  # torch warns where there is nothing between
        self.gru = nn.GRU(D, D, config.gru_layers, batch_first=True, dropout=between)
        self.output = nn.Linear(D, D)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.uniform_(self.item_embedding.weight, -(D**-0.5), D**-0.5)
        with torch.no_grad():
            self.item_embedding.weight[n_items] = 0

    def forward(self, items_BL: Tensor, length_B: Tensor) -> SessionVectors:
        # Packing runs each step for the sessions that are that long, and no other: the padding costs nothing.
        packed = pack_padded_sequence(items_BL, length_B.cpu(), batch_first=True, enforce_sorted=False)
        item_ND = self.dropout(self.item_embedding(packed.data))
        state, last_GBD = self.gru(PackedSequence(item_ND, *packed[1:]))
        local_BD = self.output(self.dropout(last_GBD[-1]))
        # Unpacking would make a padded copy, and one more for the gradient: the packed rows are added up as they are.
        begin_L = (packed.batch_sizes.cumsum(0) - packed.batch_sizes).to(items_BL.device)
        is_click_BL = torch.arange(len(begin_L), device=items_BL.device) < length_B[:, None]
        session_N, step_N = torch.nonzero(is_click_BL, as_tuple=True)
        assert packed.unsorted_indices is not None  # none where sessions come sorted
        row_N = begin_L[step_N] + packed.unsorted_indices[session_N]
        sum_BD = F.embedding_bag(row_N, state.data, length_B.cumsum(0) - length_B, mode="sum")
        return SessionVectors(sum_BD / length_B[:, None], local_BD, session_BD=local_BD)
