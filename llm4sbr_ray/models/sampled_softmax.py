"""Softmax cross-entropy against a sample of the catalogue, with log-q correction.

The sum over all items in the softmax's denominator is estimated from the sample: a negative j stands for 1 / pi_j
items, pi_j its probability to be in the sample, so log pi_j is taken off its score (Bengio and Senecal, 2008). The
target is always there, pi = 1, and its score stays as it is: Khrylchenko et al. (RecSys 2025) show that correcting it
too is wrong. The estimate of the denominator is unbiased, that of its logarithm and of the gradient nearly so, the
nearer the larger the sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llm4sbr_ray.models.negatives import Negatives


def sampled_softmax(
    session_BD: Tensor, target_BD: Tensor, negative_ND: Tensor, target_B: Tensor, negatives: Negatives
) -> Tensor:
    """Mean cross-entropy (scalar).

    Parameters
    ----------
    session_BD
        Session vectors.
    target_BD, negative_ND
        Item vectors of targets and negatives.
    target_B
        int64. A negative that is a session's target counts for the other sessions alone.
    negatives
        Which items `negative_ND` are. With all items and inclusion 1 this is the full softmax.
    """
    positive_B1 = (session_BD * target_BD).sum(1, keepdim=True)
    scores_BN = session_BD @ negative_ND.T - negatives.log_inclusion_N
    scores_BN = scores_BN.masked_fill(negatives.item_N == target_B[:, None], -torch.inf)
    return (torch.cat([positive_B1, scores_BN], dim=1).logsumexp(1) - positive_B1[:, 0]).mean()
