"""S2-DHCN: self-supervised hypergraph convolutional networks (Xia et al., AAAI 2021).

Every train session is a hyperedge over its items; convolution over that hypergraph gives the item vectors that
sessions are read and ranked with. A second channel, the line graph of the batch's sessions, takes part in
training alone: both channels' vectors of a session shall agree.

Shapes, besides those of `models.base`: S train sessions, E pairs of a train session and an item in it; N clicks of a
batch, U distinct items of a batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from llm4sbr_ray.config import ModelConfig
from llm4sbr_ray.models.attention import Clicks, clicks_of
from llm4sbr_ray.models.base import GraphBackbone, SessionVectors
from llm4sbr_ray.models.positional import PositionalAttention


class _Convolution(torch.autograd.Function):
    """D^-1 H B^-1 H^T X: of each item the mean over its sessions of the mean over their items; 0 for no session.

    H B^-1 H^T is symmetric, so going back is the same two look-ups: several times faster than the gradient of
    `embedding_bag`.
    """

    @staticmethod
    def forward(ctx: Any, value_VD: Tensor, graph: tuple[Tensor, ...]) -> Tensor:
        ctx.graph = graph
        item_E, session_offset, posting_E, item_offset = graph
        session_SD = F.embedding_bag(item_E, value_VD, session_offset, mode="mean", include_last_offset=True)
        return F.embedding_bag(posting_E, session_SD, item_offset, mode="mean", include_last_offset=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        item_E, session_offset, posting_E, item_offset = ctx.graph
        scaled_VD = gradients[0] / item_offset.diff().clamp_min(1)[:, None]
        session_SD = F.embedding_bag(item_E, scaled_VD, session_offset, mode="mean", include_last_offset=True)
        return F.embedding_bag(posting_E, session_SD, item_offset, mode="sum", include_last_offset=True), None


class DHCN(GraphBackbone):
    """S2-DHCN (Xia et al., AAAI 2021).

    X_h is the mean of the item embeddings and their `hypergraph_layers` convolutions; the session vector theta_h a
    soft attention with reversed positions over the clicks' rows of it. H_global is theta_h too, H_local the
    last click's row. Items are ranked with X_h. Before `fit_graph` X_h is the item embeddings.

    In training, with theta_l the mean of the sessions' mean embeddings and their convolutions over the line graph,

        auxiliary = self_supervision mean(-log sigmoid(theta_h . theta_l) - log(1 - sigmoid(shuffled . theta_l)))

    where shuffled is theta_h with its rows and its columns in another order, drawn from torch's generator. As in the
    authors' code, the weight of two sessions in the line graph is that of their item sets: |a & b| / |a | b|. They
    sum the loss over batches of 100: their weight 0.01 is 1 here.

    Parameters
    ----------
    n_items
        V.
    config
        `width`, `max_length`, `hypergraph_layers`, `self_supervision` and `dropout` (of the clicks' vectors; the
        paper has none).
    """

    ranks_with_embedding = False
    item_E: Tensor  # int32: the distinct items of each train session
    session_offset: Tensor  # int32, S + 1
    posting_E: Tensor  # int32: the train sessions of each item
    item_offset: Tensor  # int32, V + 1

    def __init__(self, n_items: int, config: ModelConfig) -> None:
        super().__init__()
        D = config.width
        self.n_items, self.layers, self.self_supervision = n_items, config.hypergraph_layers, config.self_supervision
        self.item_embedding = nn.Embedding(n_items + 1, D, padding_idx=n_items)
        self.readout = PositionalAttention(D, config.max_length)
        self.dropout = nn.Dropout(config.dropout)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(D**-0.5), D**-0.5)
        with torch.no_grad():
            self.item_embedding.weight[n_items] = 0
        self.fit_graph(torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))

    def fit_graph(self, items_N: Tensor, offsets_S1: Tensor) -> None:
        V, S = self.n_items, len(offsets_S1) - 1
        session_N = torch.repeat_interleave(offsets_S1.diff())
        key_E = torch.unique(session_N * V + items_N)
        session_E, item_E = key_E // V, key_E % V
        by_item_E = torch.argsort(item_E, stable=True)
        self.register_buffer("item_E", item_E.int())
        self.register_buffer("session_offset", F.pad(torch.bincount(session_E, minlength=S).cumsum(0), (1, 0)).int())
        self.register_buffer("posting_E", session_E[by_item_E].int())
        self.register_buffer("item_offset", F.pad(torch.bincount(item_E, minlength=V).cumsum(0), (1, 0)).int())
        self._table: tuple[Any, Tensor] | None = None

    def forward(self, items_BL: Tensor, length_B: Tensor) -> SessionVectors:
        if torch.is_grad_enabled():
            self._table = None  # an autograd graph serves one backward pass
        clicks = clicks_of(items_BL, length_B)
        click_ND = self.dropout(self.item_vectors()[clicks.item_N])
        session_BD = self.readout(click_ND, clicks)
        vectors = SessionVectors(session_BD, click_ND[clicks.last_B], session_BD)
        if self.training:
            vectors.auxiliary = self.self_supervision * self.disagreement(session_BD, clicks, length_B)
        return vectors

    def item_vectors(self) -> Tensor:
        """X_h, V x D, computed once for each state of the weights."""
        weight = self.item_embedding.weight
        state = (weight._version, weight.data_ptr(), torch.is_grad_enabled())
        if self._table is None or self._table[0] != state:
            graph = (self.item_E, self.session_offset, self.posting_E, self.item_offset)
            layers = [weight[:-1]]
            for _ in range(self.layers if len(self.item_E) else 0):
                layers.append(_Convolution.apply(layers[-1], graph))
            self._table = (state, sum(layers[1:], layers[0]) / len(layers))
        return self._table[1]

    def disagreement(self, session_BD: Tensor, clicks: Clicks, length_B: Tensor) -> Tensor:
        """The self-supervised loss of theta_h (scalar)."""
        layer_BD = total_BD = clicks.mean(self.item_embedding(clicks.item_N))
        weight_BB = line_graph(clicks, length_B).to(layer_BD)
        for _ in range(self.layers):
            layer_BD = weight_BB @ layer_BD
            total_BD = total_BD + layer_BD
        line_BD = total_BD / (self.layers + 1)
        rows_B, columns_D = (torch.randperm(size, device=session_BD.device) for size in session_BD.shape)
        agree_B = (session_BD * line_BD).sum(1)
        shuffled_B = (session_BD[rows_B][:, columns_D] * line_BD).sum(1)
        return (F.softplus(-agree_B) + F.softplus(shuffled_B)).mean()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, buffer in self.named_buffers():  # the number of sessions is known from the state alone
            if prefix + name in state_dict:
                self.register_buffer(name, buffer.new_empty(state_dict[prefix + name].shape))
        self._table = None
        super()._load_from_state_dict(state_dict, prefix, *rest)


def line_graph(clicks: Clicks, length_B: Tensor) -> Tensor:
    """D^-1 A of a batch, B x B float32: A the Jaccard overlap of item sets, 1 of a session with itself."""
    B = len(length_B)
    session_N = torch.repeat_interleave(length_B)
    item_U, column_N = torch.unique(clicks.item_N, return_inverse=True)
    holds_BU = torch.zeros(B, len(item_U), device=session_N.device)
    holds_BU[session_N, column_N] = 1
    shared_BB, size_B = holds_BU @ holds_BU.T, holds_BU.sum(1)
    weight_BB = shared_BB / (size_B[:, None] + size_B - shared_BB)
    return weight_BB / weight_BB.sum(1, keepdim=True)
