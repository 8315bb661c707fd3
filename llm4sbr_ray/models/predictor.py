"""The intent predictor (ours): a small head from behaviour to the intents that the LLM would have given.

It is what lets serving answer without an LLM call.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from llm4sbr_ray.models.base import SessionVectors


class IntentPredictor(nn.Module):
    """One hidden layer a perspective, from [H_global; H_local; session] to z_p."""

    def __init__(self, perspectives: int, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(3 * width, width), nn.GELU(), nn.Linear(width, width)) for _ in range(perspectives)
        )

    def forward(self, vectors: SessionVectors) -> Tensor:
        """z_BPD."""
        behaviour_BF = torch.cat([vectors.global_BD, vectors.local_BD, vectors.session_BD], dim=1)
        return torch.stack([head(behaviour_BF) for head in self.heads], dim=1)


def predictor_loss(predicted_BPD: Tensor, text_BPD: Tensor, counts_BP: Tensor) -> Tensor:
    """(1 - cos) + (|predicted| / |z| - 1)^2, the mean over the entries that count (scalar; 0 if none does).

    Direction and length both matter, as a predicted z takes the place of the LLM's in the fusion. The
    gradient stops at z: the intents shall not move towards what is easy to predict.
    """
    target_BPD = text_BPD.detach()
    direction_BP = 1 - F.cosine_similarity(predicted_BPD, target_BPD, dim=2)
    length_BP = (predicted_BPD.norm(dim=2) / target_BPD.norm(dim=2).clamp_min(1e-6) - 1).square()
    loss: Tensor = ((direction_BP + length_BP) * counts_BP).sum() / counts_BP.sum().clamp_min(1)
    return loss
