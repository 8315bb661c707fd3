"""gBCE: binary cross-entropy whose positive term makes up for the negatives that were not drawn.

Petrov and Macdonald, "gSASRec: reducing overconfidence in sequential recommendation trained with negative sampling"
(RecSys 2023). Few negatives make a model believe that every item is liked; sigma(s+)^beta for sigma(s+) undoes that:

    loss = -beta log sigma(s+) - sum_negatives log(1 - sigma(s-)),     beta = alpha (t (1 - 1/alpha) + 1/alpha)

alpha is the share of the catalogue's negatives that is drawn. t = 0 is plain binary cross-entropy; with t = 1 the
probabilities are those that all negatives would give. The paper divides by the number of terms; here that would let
weight decay outweigh the loss as negatives grow many.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llm4sbr_ray.models.negatives import Negatives


def gbce(
    session_BD: Tensor, target_BD: Tensor, negative_ND: Tensor, target_B: Tensor, negatives: Negatives, t: float
) -> Tensor:
    """Mean over sessions (scalar).

    Parameters
    ----------
    session_BD
        Session vectors.
    target_BD, negative_ND
        Item vectors of targets and negatives.
    target_B
        int64. A negative that is a session's target counts for the other sessions alone.
    negatives
        Which items `negative_ND` are: drawn uniformly, so that one alpha holds for all.
    t
        Calibration, 0 to 1.
    """
    alpha = negatives.log_inclusion_N[:1].exp()
    beta = t * (alpha - 1) + 1  # the formula above, without its divisions
    own_BN = negatives.item_N == target_B[:, None]
    negative_B = F.softplus(session_BD @ negative_ND.T).masked_fill(own_BN, 0).sum(1)
    positive_B = beta * F.softplus(-(session_BD * target_BD).sum(1))
    return (positive_B + negative_B).mean()
