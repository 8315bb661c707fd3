"""Soft attention over the clicks of a session with reversed positions: how GCE-GNN and S2-DHCN read out a session.

Shapes, besides those of `models.base`: N clicks of a batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from llm4sbr_ray.models.attention import Clicks


class PositionalAttention(nn.Module):
    """S = sum_i beta_i h_i (Wang et al., SIGIR 2020, equations 13 to 18; Xia et al., AAAI 2021, equations 5 and 6).

        z_i = tanh(W3 [h_i ; p_{l-i+1}] + b3)               p: position counted from the last click
        beta_i = q^T sigmoid(W4 z_i + W5 mean(h) + b4)      no softmax

    Parameters
    ----------
    width
        D.
    max_length
        The longest session.
    """

    def __init__(self, width: int, max_length: int) -> None:
        super().__init__()
        self.position = nn.Embedding(max_length, width)
        self.mix_click, self.mix_position = nn.Linear(width, width), nn.Linear(width, width, bias=False)  # W3, b3
        self.attend_click, self.attend_mean = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.attend = nn.Linear(width, 1, bias=False)

    def forward(self, value_ND: Tensor, clicks: Clicks) -> Tensor:
        """B x D of the clicks' vectors."""
        each_N = torch.arange(len(value_ND), device=value_ND.device)
        session_N = torch.bucketize(each_N, clicks.offset_B, right=True) - 1
        position_LD = self.mix_position(self.position.weight)  # fewer rows than there are clicks
        z_ND = torch.tanh(self.mix_click(value_ND) + position_LD[clicks.steps_N])
        mean_ND = self.attend_mean(clicks.mean(value_ND))[session_N]
        beta_N = self.attend(torch.sigmoid(self.attend_click(z_ND) + mean_ND)).squeeze(1)
        return F.embedding_bag(
            each_N, value_ND, clicks.offset_B, mode="sum", per_sample_weights=beta_N.to(value_ND.dtype)
        )
