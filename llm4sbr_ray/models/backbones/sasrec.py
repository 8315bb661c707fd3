"""SASRec: self-attentive sequential recommendation (Kang and McAuley, ICDM 2018).

Causal self-attention blocks over a session's clicks. With today's training, the full softmax over the catalogue,
in place of the paper's one negative item a click, this plain model is hard to beat (Klenitskiy and Vasilev, RecSys
2023; Petrov and Macdonald, RecSys 2023).

Shapes as in `models.attention`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from llm4sbr_ray.config import ModelConfig
from llm4sbr_ray.models.attention import CausalAttention, LengthGroups, clicks_of
from llm4sbr_ray.models.base import Backbone, SessionVectors


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)), the feed-forward net as wide as the model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D = config.width
        self.norm_attention, self.norm_forward = nn.LayerNorm(D), nn.LayerNorm(D)
        self.attention = CausalAttention(D, config.attention_heads)
        self.inner, self.outer = nn.Linear(D, D), nn.Linear(D, D)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, click_ND: Tensor, groups: LengthGroups) -> Tensor:
        click_ND = click_ND + self.dropout(self.attention(self.norm_attention(click_ND), groups))
        inner_ND = self.dropout(F.relu(self.inner(self.norm_forward(click_ND))))
        out_ND: Tensor = click_ND + self.dropout(self.outer(inner_ND))
        return out_ND


class SASRec(Backbone):
    """SASRec.

    H_local, the session vector too, is the output at the last click; H_global the mean of the outputs at all clicks.

    Differences to the paper: norms before each sublayer and after the last block ("pre-norm"); positions are
    counted from the end of the session, so that the last click is position 0 in every session; no dropout inside
    the attention.

    Parameters
    ----------
    n_items
        V.
    config
        `width`, `dropout`, `attention_layers`, `attention_heads`, `max_length`: clicks further from the end share
        the last position.
    """

    def __init__(self, n_items: int, config: ModelConfig) -> None:
        super().__init__()
        D = config.width
        self.scale = D**0.5
        self.item_embedding = nn.Embedding(n_items + 1, D, padding_idx=n_items)
        self.position_embedding = nn.Embedding(config.max_length, D)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.attention_layers))
        self.norm = nn.LayerNorm(D)
        self.dropout = nn.Dropout(config.dropout)
        for embedding in (self.item_embedding, self.position_embedding):
            nn.init.uniform_(embedding.weight, -(D**-0.5), D**-0.5)
        with torch.no_grad():
            self.item_embedding.weight[n_items] = 0

    def forward(self, items_BL: Tensor, length_B: Tensor) -> SessionVectors:
        clicks = clicks_of(items_BL, length_B)
        groups = LengthGroups(clicks)
        position_N = clicks.steps_N.clamp_max(self.position_embedding.num_embeddings - 1)
        click_ND = self.item_embedding(clicks.item_N) * self.scale + self.position_embedding(position_N)
        click_ND = self.dropout(click_ND)
        for block in self.blocks:
            click_ND = block(click_ND, groups)
        click_ND = self.norm(click_ND)
        local_BD = click_ND[clicks.last_B]
        return SessionVectors(clicks.mean(click_ND), local_BD, session_BD=local_BD)
