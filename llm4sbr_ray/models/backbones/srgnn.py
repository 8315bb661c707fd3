"""SR-GNN: session-based recommendation with graph neural networks (Wu et al., AAAI 2019).

A session becomes a directed graph of its distinct items; a gated graph network updates the item vectors;
attention reads two session vectors from it. All sessions of a batch form one flat graph: nothing is padded.

Shapes, besides those of `models.base`: N clicks, M nodes (distinct items of a session), X edges of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from llm4sbr_ray.config import ModelConfig
from llm4sbr_ray.models.base import Backbone, SessionVectors


@dataclass
class Neighbourhoods:
    """The neighbours of every node, node after node (compressed sparse rows)."""

    node_X: Tensor  # int64, neighbours
    offset_M: Tensor  # int64, where the neighbours of each node begin

    def mean(self, value_MD: Tensor) -> Tensor:
        """Mean of the neighbours' values, M x D; 0 for a node without neighbours."""
        return F.embedding_bag(self.node_X, value_MD, self.offset_M, mode="mean")


@dataclass
class SessionGraphs:
    """The graphs of a batch of sessions, side by side in one flat graph."""

    item_M: Tensor  # int64, item of each node
    node_N: Tensor  # int64, node of each click: sessions one after the other, each in click order
    session_N: Tensor  # int64, session of each click
    offset_B: Tensor  # int64, where each session begins in node_N
    last_B: Tensor  # int64, node of each session's last click
    incoming: Neighbourhoods
    outgoing: Neighbourhoods


def build_graphs(items_BL: Tensor, length_B: Tensor, n_items: int) -> SessionGraphs:
    """Graphs of sessions: a node per distinct item, an edge u -> v where v was clicked right after u.

    An edge that occurs several times counts once, as in the public implementation of the paper. (The paper's
    formula weights it by its occurrences.) An item clicked twice in a row gives a loop.

    Parameters
    ----------
    items_BL
        int64, padded at the end.
    length_B
        int64, at least 1.
    n_items
        V.
    """
    L = items_BL.shape[1]
    session_N, position_N = torch.nonzero(torch.arange(L, device=items_BL.device) < length_B[:, None], as_tuple=True)
    key_M, node_N = torch.unique(session_N * n_items + items_BL[session_N, position_N], return_inverse=True)
    M = len(key_M)
    follows = session_N[1:] == session_N[:-1]
    source, target = node_N[:-1][follows], node_N[1:][follows]
    end_B = length_B.cumsum(0)
    return SessionGraphs(
        item_M=key_M % n_items,
        node_N=node_N,
        session_N=session_N,
        offset_B=end_B - length_B,
        last_B=node_N[end_B - 1],
        incoming=_neighbourhoods(of=target, node=source, M=M),
        outgoing=_neighbourhoods(of=source, node=target, M=M),
    )


def _neighbourhoods(of: Tensor, node: Tensor, M: int) -> Neighbourhoods:
    edge_X = torch.unique(of * M + node)
    degree_M = torch.bincount(edge_X // M, minlength=M)
    return Neighbourhoods(node_X=edge_X % M, offset_M=degree_M.cumsum(0) - degree_M)


class SRGNN(Backbone):
    """SR-GNN (Wu et al., AAAI 2019, equations 1 to 7).

    H_local is the vector of the last click's node, H_global the attention-weighted sum over clicks (sigmoid
    gates, no softmax), and the session vector W3 [H_local; H_global].

    Sessions are taken as they come: cutting them to `config.max_length` clicks is up to whoever batches them.

    Parameters
    ----------
    n_items
        V.
    config
        `width`, `gnn_steps` and `dropout` (of the item vectors that enter the graph; the paper has none).
    """

    def __init__(self, n_items: int, config: ModelConfig) -> None:
        super().__init__()
        D = config.width
        self.n_items, self.steps = n_items, config.gnn_steps
        self.item_embedding = nn.Embedding(n_items + 1, D, padding_idx=n_items)
        self.dropout = nn.Dropout(config.dropout)
        self.edge_in, self.edge_out = nn.Linear(D, D), nn.Linear(D, D)
        self.bias_in, self.bias_out = nn.Parameter(torch.empty(D)), nn.Parameter(torch.empty(D))
        self.cell = nn.GRUCell(2 * D, D)  # equations 2 to 5 are those of the GRU
        self.attend_last, self.attend_click = nn.Linear(D, D), nn.Linear(D, D, bias=False)
        self.attend = nn.Linear(D, 1, bias=False)
        self.mix = nn.Linear(2 * D, D, bias=False)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(D**-0.5), D**-0.5)
        with torch.no_grad():
            self.item_embedding.weight[n_items] = 0

    def forward(self, items_BL: Tensor, length_B: Tensor) -> SessionVectors:
        graphs = build_graphs(items_BL, length_B, self.n_items)
        node_MD = self.dropout(self.item_embedding(graphs.item_M))
        for _ in range(self.steps):
            node_MD = self.propagate(node_MD, graphs)
        local_BD = F.embedding(graphs.last_B, node_MD)  # rows, with a faster gradient than indexing has
        gate_N = self.click_gates(node_MD, local_BD, graphs)
        global_BD = F.embedding_bag(
            graphs.node_N, node_MD, graphs.offset_B, mode="sum", per_sample_weights=gate_N.to(node_MD.dtype)
        )
        return SessionVectors(global_BD, local_BD, self.mix(torch.cat([local_BD, global_BD], dim=1)))

    def propagate(self, node_MD: Tensor, graphs: SessionGraphs) -> Tensor:
        """One step of the gated graph network (equations 1 to 5): the new node_MD."""
        message = torch.cat(
            [
                graphs.incoming.mean(self.edge_in(node_MD)) + self.bias_in,
                graphs.outgoing.mean(self.edge_out(node_MD)) + self.bias_out,
            ],
            dim=1,
        )
        out: Tensor = self.cell(message, node_MD)
        return out

    def click_gates(self, node_MD: Tensor, local_BD: Tensor, graphs: SessionGraphs) -> Tensor:
        """alpha_i = q^T sigmoid(W1 v_n + W2 v_i + c) of each click (equation 6), N."""
        last_ND = F.embedding(graphs.session_N, self.attend_last(local_BD))
        click_ND = F.embedding(graphs.node_N, self.attend_click(node_MD))
        gate_N: Tensor = self.attend(torch.sigmoid(last_ND + click_ND)).squeeze(1)
        return gate_N
