"""HSTU: hierarchical sequential transduction units (Zhai et al., "Actions Speak Louder than Words", ICML 2024).

Shapes as in `models.attention`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from llm4sbr_ray.config import ModelConfig
from llm4sbr_ray.models.attention import LengthGroups, clicks_of, require_divisor
from llm4sbr_ray.models.base import Backbone, SessionVectors


class Unit(nn.Module):
    """One unit (equations 1 to 3): gates, values, queries and keys of one projection; attention without softmax.

    U, V, Q, K = split(silu(W1 norm(x)))
    A_ij = silu(q_i . k_j + b_{i-j}) / max_length      for j <= i; b: the head's bias of the distance
    x + W2 (norm(A V) * U)
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, H = config.width, config.attention_heads
        require_divisor(D, H)
        self.heads = H
        self.norm_in, self.norm_out = nn.LayerNorm(D), nn.LayerNorm(D)
        self.project_in, self.project_out = nn.Linear(D, 4 * D), nn.Linear(D, D)
        self.distance_bias = nn.Embedding(config.max_length, H)
        self.scale = 1 / config.max_length
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.distance_bias.weight, std=0.02)

    def forward(self, click_ND: Tensor, groups: LengthGroups) -> Tensor:
        D = click_ND.shape[1]
        gate_ND, rest_NF = F.silu(self.project_in(self.norm_in(click_ND))).split([D, 3 * D], dim=1)
        mixed_ND = groups.apply(self._attend, rest_NF)
        out_ND: Tensor = click_ND + self.project_out(self.dropout(self.norm_out(mixed_ND) * gate_ND))
        return out_ND

    def _attend(self, projected_BLF: Tensor) -> Tensor:
        value_BHLK, query_BHLK, key_BHLK = (
            part_BLD.unflatten(2, (self.heads, -1)).transpose(1, 2) for part_BLD in projected_BLF.chunk(3, dim=2)
        )
        bias_HLL, causal_LL = self.biases(projected_BLF.shape[1])
        weight_BHLL = F.silu(query_BHLK @ key_BHLK.mT + bias_HLL) * causal_LL
        mixed_BLD: Tensor = (weight_BHLL @ value_BHLK).transpose(1, 2).flatten(2) * self.scale
        return mixed_BLD

    def biases(self, L: int) -> tuple[Tensor, Tensor]:
        """b_{i-j} of each query i and key j, H x L x L, and where j <= i, L x L."""
        position_L = torch.arange(L, device=self.distance_bias.weight.device)
        distance_LL = position_L[:, None] - position_L
        row_LL = distance_LL.clamp(0, self.distance_bias.num_embeddings - 1)
        return self.distance_bias(row_LL).permute(2, 0, 1), distance_LL >= 0


class HSTU(Backbone):
    """HSTU with the relative position bias; there are no clock times to add the paper's relative time bias.

    H_local, the session vector too, is the output at the last click; H_global the mean of the outputs at all clicks.

    Parameters
    ----------
    n_items
        V.
    config
        `width`, `dropout`, `attention_layers`, `attention_heads`, `max_length`: distances beyond it share the last
        bias.
    """

    def __init__(self, n_items: int, config: ModelConfig) -> None:
        super().__init__()
        D = config.width
        self.scale = D**0.5
        self.item_embedding = nn.Embedding(n_items + 1, D, padding_idx=n_items)
        self.units = nn.ModuleList(Unit(config) for _ in range(config.attention_layers))
        self.norm = nn.LayerNorm(D)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.uniform_(self.item_embedding.weight, -(D**-0.5), D**-0.5)
        with torch.no_grad():
            self.item_embedding.weight[n_items] = 0

    def forward(self, items_BL: Tensor, length_B: Tensor) -> SessionVectors:
        clicks = clicks_of(items_BL, length_B)
        groups = LengthGroups(clicks)
        click_ND = self.dropout(self.item_embedding(clicks.item_N) * self.scale)
        for unit in self.units:
            click_ND = unit(click_ND, groups)
        click_ND = self.norm(click_ND)
        local_BD = click_ND[clicks.last_B]
        return SessionVectors(clicks.mean(click_ND), local_BD, session_BD=local_BD)
