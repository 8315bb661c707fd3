"""Alignment and uniformity of two modalities (Wang and Isola, ICML 2020), as LLM4SBR uses them.

Both look at directions alone: vectors are L2-normalised here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

UNIFORMITY_ROWS = 256  # at most this many rows of a batch are paired, so that the cost does not grow with B^2


def alignment(x_BD: Tensor, y_BD: Tensor, counts_B: Tensor) -> Tensor:
    """mean |x - y|^2 over the rows that count (scalar; 0 if none does). Dimensions before B are kept."""
    square_B = (F.normalize(x_BD, dim=-1) - F.normalize(y_BD, dim=-1)).square().sum(-1)
    return (square_B * counts_B).sum(-1) / counts_B.sum(-1).clamp_min(1)


def uniformity(x_BD: Tensor, counts_B: Tensor) -> Tensor:
    """log mean exp(-2 |x_i - x_j|^2) over the pairs i < j of rows that count (scalar; 0 without any pair).

    Only the first `UNIFORMITY_ROWS` rows are paired: batches are shuffled, so they are a random sample. Dimensions
    before B are kept, those of the counts broadcast.
    """
    x_BD, counts_B = F.normalize(x_BD[..., :UNIFORMITY_ROWS, :], dim=-1), counts_B[..., :UNIFORMITY_ROWS]
    pair_BB = torch.triu(counts_B[..., :, None] & counts_B[..., None, :], diagonal=1)
    pairs = pair_BB.sum((-2, -1))
    close_BB = torch.exp(4 * (x_BD @ x_BD.mT) - 4)  # |x_i - x_j|^2 = 2 - 2 x_i . x_j of unit vectors
    mean = (close_BB * pair_BB).sum((-2, -1)) / pairs.clamp_min(1)
    return torch.log(torch.where(pairs > 0, mean, 1.0))
