"""Fusion of the two modalities into one session vector: one class and one registry line a rule.

Every rule is additive over perspectives, session = sum_p part_p, so that a score splits exactly into the
shares of the perspectives: score_j = sum_p part_p . v_j.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llm4sbr_ray.config import ModelConfig
from llm4sbr_ray.models.base import SessionVectors


@dataclass
class Fused:
    """A fused session vector and its parts."""

    session_BD: Tensor
    part_BPD: Tensor  # sums over P to session_BD
    gate_BP: Tensor  # alpha_p; for `average` 1/P


class FusionRule(nn.Module):
    """Behaviour and intents in, one session vector out."""

    def __init__(self, perspectives: int, width: int) -> None:
        super().__init__()

    def forward(self, vectors: SessionVectors, anchor_BPD: Tensor, z_BPD: Tensor) -> Fused:
        """Fuse.

        Parameters
        ----------
        vectors
            All that the backbone says.
        anchor_BPD
            H_a(p): the behaviour vector that each perspective is anchored to.
        z_BPD
            The perspectives' intents.
        """
        raise NotImplementedError


class Average(FusionRule):
    """mean_p (H_a(p) + z_p) / 2 (LLM4SBR, first version of the paper)."""

    def forward(self, vectors: SessionVectors, anchor_BPD: Tensor, z_BPD: Tensor) -> Fused:
        P = z_BPD.shape[1]
        part_BPD = (anchor_BPD + z_BPD) / (2 * P)
        return Fused(part_BPD.sum(1), part_BPD, z_BPD.new_full(z_BPD.shape[:2], 1 / P))


class Gate(FusionRule):
    """alpha_p = Q_p^T sigmoid(H_a(p) + z_p); session = sum_p W_p (alpha_p H_a(p)) (second version).

    For a long-term and a short-term perspective this is the paper's W [alpha_l H_local; alpha_g H_global]
    with W = [W_1 W_2]. The text acts through the gates, and through what the alignment does to H. Q starts
    such that all gates are near 1 (ours): at first the model reads behaviour and favours no perspective.
    """

    def __init__(self, perspectives: int, width: int) -> None:
        super().__init__(perspectives, width)
        self.query_PD = nn.Parameter(torch.full((perspectives, width), 2 / width))  # sigmoid is 1/2 near 0
        self.project_PDD = nn.Parameter(torch.empty(perspectives, width, width).uniform_(-1, 1) * width**-0.5)

    def forward(self, vectors: SessionVectors, anchor_BPD: Tensor, z_BPD: Tensor) -> Fused:
        gate_BP = (torch.sigmoid(anchor_BPD + z_BPD) * self.query_PD).sum(2)
        part_BPD = torch.einsum("bpd,pde->bpe", gate_BP[..., None] * anchor_BPD, self.project_PDD)
        return Fused(part_BPD.sum(1), part_BPD, gate_BP)


class Residual(FusionRule):
    """session = backbone's own + sum_p alpha_p U_p z_p, alpha_p = sigmoid(q_p . [H_a(p); z_p]) (ours).

    The text enters the session vector itself. The backbone's vector is shared out evenly among the parts. U_p starts as
    the identity, for z lies in the space of the item embeddings (see `models.text_space`).
    """

    def __init__(self, perspectives: int, width: int) -> None:
        super().__init__(perspectives, width)
        self.query_PF = nn.Parameter(torch.zeros(perspectives, 2 * width))
        self.project_PDD = nn.Parameter(torch.eye(width).repeat(perspectives, 1, 1))

    def forward(self, vectors: SessionVectors, anchor_BPD: Tensor, z_BPD: Tensor) -> Fused:
        P = z_BPD.shape[1]
        gate_BP = torch.sigmoid((torch.cat([anchor_BPD, z_BPD], dim=2) * self.query_PF).sum(2))
        text_BPD = torch.einsum("bpd,pde->bpe", gate_BP[..., None] * z_BPD, self.project_PDD)
        part_BPD = vectors.session_BD[:, None] / P + text_BPD
        return Fused(part_BPD.sum(1), part_BPD, gate_BP)


FUSION_RULES: dict[str, Callable[[int, int], FusionRule]] = {  # name -> constructor(perspectives, width)
    "average": Average,
    "gate": Gate,
    "residual": Residual,
}


def build_fusion(perspectives: int, config: ModelConfig) -> FusionRule:
    return FUSION_RULES[config.fusion](perspectives, config.width)
