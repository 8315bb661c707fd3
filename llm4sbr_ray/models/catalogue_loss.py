"""What training minimises for the targets of a batch: one class a loss.

A model has full softmax until training gives it another (`training.loss`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llm4sbr_ray.models.base import Backbone
from llm4sbr_ray.models.cross_entropy import catalogue_cross_entropy
from llm4sbr_ray.models.gbce import gbce
from llm4sbr_ray.models.negatives import Negatives, NegativeSampler
from llm4sbr_ray.models.row_shards import ShardedEmbedding
from llm4sbr_ray.models.sampled_softmax import sampled_softmax
from llm4sbr_ray.models.sharded_softmax import sharded_cross_entropy


class CatalogueLoss(nn.Module):
    """Session vectors, the items' vectors and the targets to a loss. Without state: it is not saved with a model."""

    samples_items = False  # whether a step reads some rows of the item embedding only

    def forward(self, session_BD: Tensor, backbone: Backbone, target_B: Tensor) -> Tensor:
        """Mean loss of the sessions (scalar)."""
        raise NotImplementedError


class FullSoftmax(CatalogueLoss):
    """Cross-entropy over the whole catalogue.

    Parameters
    ----------
    label_smoothing
        Share of each target's probability that is spread over all items evenly.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, session_BD: Tensor, backbone: Backbone, target_B: Tensor) -> Tensor:
        table = backbone.item_embedding
        if isinstance(table, ShardedEmbedding):
            return sharded_cross_entropy(session_BD, table, target_B, self.label_smoothing)
        item_VD = backbone.item_vectors()
        loss = catalogue_cross_entropy(session_BD, item_VD, target_B)
        if self.label_smoothing:  # the mean score over all items is the score of the mean item
            above_mean_B = (session_BD * (item_VD[target_B] - item_VD.mean(0))).sum(1)
            loss = loss + self.label_smoothing * above_mean_B.mean()
        return loss


class SampledSoftmax(CatalogueLoss):
    """Cross-entropy over the target and sampled items."""

    samples_items = True

    def __init__(self, sampler: NegativeSampler) -> None:
        super().__init__()
        self.sampler = sampler

    def forward(self, session_BD: Tensor, backbone: Backbone, target_B: Tensor) -> Tensor:
        target_BD, negative_ND, negatives = _draw(self.sampler, backbone, target_B)
        return sampled_softmax(session_BD, target_BD, negative_ND, target_B, negatives)


class GBCE(CatalogueLoss):
    """Generalised binary cross-entropy; the sampler has to be a uniform one."""

    samples_items = True

    def __init__(self, sampler: NegativeSampler, t: float) -> None:
        super().__init__()
        self.sampler, self.t = sampler, t

    def forward(self, session_BD: Tensor, backbone: Backbone, target_B: Tensor) -> Tensor:
        target_BD, negative_ND, negatives = _draw(self.sampler, backbone, target_B)
        return gbce(session_BD, target_BD, negative_ND, target_B, negatives, self.t)


def _draw(sampler: NegativeSampler, backbone: Backbone, target_B: Tensor) -> tuple[Tensor, Tensor, Negatives]:
    """Item vectors of the targets and of drawn negatives, and which these are."""
    negatives: Negatives = sampler(target_B.device)
    rows = backbone.item_rows(torch.cat([target_B, negatives.item_N]))  # once: one gradient to add up
    return rows[: len(target_B)], rows[len(target_B) :], negatives
