"""GCE-GNN: global context enhanced graph neural networks (Wang et al., SIGIR 2020).

An item's vector in a session is the sum of two: from the session's own graph, with typed edges, and from a graph of
all train sessions, where an item's neighbours are those most often clicked near it. A soft attention with
reversed positions reads out the session.

Shapes, besides those of `models.base`: N clicks, M nodes (distinct items of a session), X edges of a batch; K
neighbours in the global graph.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from llm4sbr_ray.config import ModelConfig
from llm4sbr_ray.models.attention import clicks_of
from llm4sbr_ray.models.backbones.srgnn import SessionGraphs, build_graphs
from llm4sbr_ray.models.base import GraphBackbone, SessionVectors
from llm4sbr_ray.models.positional import PositionalAttention

SELF, IN, OUT, BOTH = range(4)  # types of session edges, seen from the node that receives
SLOPE = 0.2  # of the leaky ReLUs, as in the public implementation


def global_graph(items_N: Tensor, offsets_S1: Tensor, n_items: int, reach: int, k: int) -> tuple[Tensor, Tensor]:
    """The k items that were clicked most often within `reach` clicks of each item, in one session.

    Parameters
    ----------
    items_N, offsets_S1
        Train sessions: s is items_N[offsets_S1[s] : offsets_S1[s + 1]].
    n_items
        V.

    Returns
    -------
    item_VK, count_VK
        int64, best first, equal counts by item; V and 0 where an item has fewer neighbours. An item is no
        neighbour of its own. (The public implementation takes it for one when it's clicked again.)
    """
    session_N = torch.repeat_interleave(offsets_S1.diff())
    keys = []
    for gap in range(1, reach + 1):
        early, late = items_N[:-gap], items_N[gap:]
        near = (session_N[:-gap] == session_N[gap:]) & (early != late)
        keys += [early[near] * n_items + late[near], late[near] * n_items + early[near]]
    key_X, count_X = torch.unique(torch.cat(keys), return_counts=True)
    best_first = torch.argsort(count_X, descending=True, stable=True)
    best_first = best_first[torch.argsort(key_X[best_first] // n_items, stable=True)]
    owner_X = key_X[best_first] // n_items
    degree_V = torch.bincount(owner_X, minlength=n_items)
    rank_X = torch.arange(len(owner_X), device=owner_X.device) - (degree_V.cumsum(0) - degree_V)[owner_X]
    kept = rank_X < k
    item_VK = torch.full((n_items, k), n_items, device=items_N.device)
    count_VK = torch.zeros_like(item_VK)
    item_VK[owner_X[kept], rank_X[kept]] = key_X[best_first[kept]] % n_items
    count_VK[owner_X[kept], rank_X[kept]] = count_X[best_first[kept]]
    return item_VK, count_VK


def typed_edges(graphs: SessionGraphs) -> tuple[Tensor, Tensor, Tensor]:
    """(receiver, sender, type) of each edge, sorted by receiver: one of each node to itself, one of each pair u, v."""
    M = len(graphs.item_M)
    node_M = torch.arange(M, device=graphs.item_M.device)
    degree_M = torch.cat([graphs.incoming.offset_M[1:], node_M.new_tensor([len(graphs.incoming.node_X)])])
    after_X = torch.repeat_interleave(degree_M - graphs.incoming.offset_M)
    before_X = graphs.incoming.node_X
    forth, back = after_X * M + before_X, before_X * M + after_X  # what came before me; what came after me
    apart = before_X != after_X
    keys = torch.cat([node_M * (M + 1), forth[apart], back[apart]])
    key_X, found = torch.unique(keys, return_inverse=True)
    type_X = torch.zeros_like(key_X)  # SELF
    pairs = int(apart.sum())
    type_X[found[M : M + pairs]] += IN
    type_X[found[M + pairs :]] += OUT  # IN + OUT = BOTH
    return key_X // M, key_X % M, type_X


class GCEGNN(GraphBackbone):
    """GCE-GNN with one hop in the global graph (the paper's GCE-GNN-1-hop).

    The session vector is the paper's S; H_global is S too, H_local the vector of the last click's node. Before
    `fit_graph` no item has a global neighbour.

    Parameters
    ----------
    n_items
        V.
    config
        `width`, `max_length`, `global_neighbours` (K), `global_reach` (epsilon) and `dropout`, of the global
        vectors as in the paper.
    """

    neighbour_VK: Tensor  # int32, V for none
    count_VK: Tensor  # int32

    def __init__(self, n_items: int, config: ModelConfig) -> None:
        super().__init__()
        D, K = config.width, config.global_neighbours
        self.n_items, self.reach = n_items, config.global_reach
        self.item_embedding = nn.Embedding(n_items + 1, D, padding_idx=n_items)
        self.edge_type = nn.Embedding(4, D)  # a_in, a_out, ...
        self.neighbour_in, self.neighbour_count = nn.Linear(D, D, bias=False), nn.Linear(1, D, bias=False)  # W1
        self.neighbour_attend = nn.Linear(D, 1, bias=False)  # q1
        self.aggregate = nn.Linear(2 * D, D, bias=False)  # W2
        self.readout = PositionalAttention(D, config.max_length)
        self.dropout = nn.Dropout(config.dropout)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(D**-0.5), D**-0.5)
        with torch.no_grad():
            self.item_embedding.weight[n_items] = 0
        self.register_buffer("neighbour_VK", torch.full((n_items, K), n_items, dtype=torch.int32))
        self.register_buffer("count_VK", torch.zeros(n_items, K, dtype=torch.int32))

    def fit_graph(self, items_N: Tensor, offsets_S1: Tensor) -> None:
        neighbour_VK, count_VK = global_graph(items_N, offsets_S1, self.n_items, self.reach, self.count_VK.shape[1])
        self.neighbour_VK.copy_(neighbour_VK)
        self.count_VK.copy_(count_VK)

    def forward(self, items_BL: Tensor, length_B: Tensor) -> SessionVectors:
        clicks, graphs = clicks_of(items_BL, length_B), build_graphs(items_BL, length_B, self.n_items)
        node_MD = self.item_embedding(graphs.item_M)
        session_M = torch.empty_like(graphs.item_M).index_copy_(0, graphs.node_N, graphs.session_N)
        mean_MD = F.embedding(session_M, clicks.mean(F.embedding(graphs.node_N, node_MD)))
        from_global_MD = self.dropout(self.global_vectors(node_MD, mean_MD, graphs.item_M))
        node_MD = self.session_vectors(node_MD, graphs) + from_global_MD
        session_BD = self.readout(F.embedding(graphs.node_N, node_MD), clicks)
        return SessionVectors(session_BD, F.embedding(graphs.last_B, node_MD), session_BD)

    def session_vectors(self, node_MD: Tensor, graphs: SessionGraphs) -> Tensor:
        """sum_j alpha_ij h_j over the session's edges (equations 7 to 9), M x D."""
        to_X, from_X, type_X = typed_edges(graphs)
        logit_X = (node_MD[to_X] * node_MD[from_X] * self.edge_type(type_X)).sum(1)
        weight_X = torch.exp(_less_its_maximum(F.leaky_relu(logit_X, SLOPE), to_X, len(node_MD)))
        total_M = torch.zeros_like(node_MD[:, 0]).index_add(0, to_X, weight_X)
        degree_M = torch.bincount(to_X, minlength=len(node_MD))
        alpha_X = (weight_X / total_M[to_X]).to(node_MD.dtype)
        return F.embedding_bag(from_X, node_MD, degree_M.cumsum(0) - degree_M, mode="sum", per_sample_weights=alpha_X)

    def global_vectors(self, node_MD: Tensor, mean_MD: Tensor, item_M: Tensor) -> Tensor:
        """relu(W2 [h ; sum_j pi_j h_j]) with pi from the neighbours, their counts and the session (1 to 5), M x D.

        The logarithm of the counts is ours: they span orders of magnitude, and as they are would leave the
        softmax with one neighbour each in large data.
        """
        neighbour_MK = self.neighbour_VK[item_M].long()
        near_MKD = self.item_embedding(neighbour_MK)
        log_MK1 = torch.log1p(self.count_VK[item_M].to(near_MKD)).unsqueeze(2)
        inner_MKD = self.neighbour_in(mean_MD[:, None] * near_MKD) + self.neighbour_count(log_MK1)
        logit_MK = self.neighbour_attend(F.leaky_relu(inner_MKD, SLOPE)).squeeze(2)
        # Where an item has no neighbour at all, the softmax spreads over vectors that are zero.
        logit_MK = logit_MK.masked_fill(neighbour_MK == self.n_items, torch.finfo(logit_MK.dtype).min)
        mixed_MD = (logit_MK.softmax(1).unsqueeze(1) @ near_MKD).squeeze(1)
        return torch.relu(self.aggregate(torch.cat([node_MD, mixed_MD], dim=1)))


def _less_its_maximum(logit_X: Tensor, group_X: Tensor, groups: int) -> Tensor:
    """Logits minus the largest of their group, so that exp cannot overflow."""
    largest = logit_X.detach().new_full((groups,), -torch.inf)
    return logit_X - largest.scatter_reduce(0, group_X, logit_X.detach(), "amax")[group_X]
