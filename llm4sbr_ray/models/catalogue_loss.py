"""What training minimises for the targets of a batch: one class a loss.

A model has full softmax until training gives it another (`training.loss`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llm4sbr_ray.models.base import Backbone
from llm4sbr_ray.models.cross_entropy import catalogue_cross_entropy
from llm4sbr_ray.models.gbce import gbce
from llm4sbr_ray.models.negatives import Negatives, NegativeSampler
from llm4sbr_ray.models.row_shards import ShardedEmbedding
from llm4sbr_ray.models.sampled_softmax import sampled_softmax
from llm4sbr_ray.models.sharded_softmax import sharded_cross_entropy
from llm4sbr_ray.models.text_neighbours import TextNeighbours, above_neighbours, above_neighbours_in


class CatalogueLoss(nn.Module):
    """Session vectors, the items' vectors and the targets to a loss. Without state: it is not saved with a model."""

    samples_items = False  # whether a step reads some rows of the item embedding only

    def forward(self, session_BD: Tensor, backbone: Backbone, target_B: Tensor) -> Tensor:
        """Mean loss of the sessions (scalar)."""
        raise NotImplementedError


@dataclass(frozen=True)
class TextSmoothing:
    """A share of each target's probability that goes to the items with the nearest texts."""

    share: float
    neighbours: TextNeighbours


class FullSoftmax(CatalogueLoss):
    """Cross-entropy over the whole catalogue.

    Parameters
    ----------
    label_smoothing
        Share of each target's probability that is spread over all items evenly.
    text_smoothing
        What of it goes to items with like texts, besides.
    """

    def __init__(self, label_smoothing: float = 0.0, text_smoothing: TextSmoothing | None = None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.share, self.neighbours = _parts(text_smoothing)

    def forward(self, session_BD: Tensor, backbone: Backbone, target_B: Tensor) -> Tensor:
        table = backbone.item_embedding
        if isinstance(table, ShardedEmbedding):
            loss = sharded_cross_entropy(session_BD, table, target_B, self.label_smoothing)
            if self.neighbours is not None:
                target_BD = backbone.item_rows(target_B)
                loss = loss + self.share * _above(session_BD, target_BD, backbone, target_B, self.neighbours)
            return loss
        item_VD = backbone.item_vectors()
        loss = catalogue_cross_entropy(session_BD, item_VD, target_B)
        if self.label_smoothing:  # the mean score over all items is the score of the mean item
            above_mean_B = (session_BD * (item_VD[target_B] - item_VD.mean(0))).sum(1)
            loss = loss + self.label_smoothing * above_mean_B.mean()
        if self.neighbours is not None:
            loss = loss + self.share * above_neighbours_in(session_BD, item_VD, target_B, self.neighbours)
        return loss


class SampledSoftmax(CatalogueLoss):
    """Cross-entropy over the target and sampled items; `text_smoothing` as for `FullSoftmax`."""

    samples_items = True

    def __init__(self, sampler: NegativeSampler, text_smoothing: TextSmoothing | None = None) -> None:
        super().__init__()
        self.sampler = sampler
        self.share, self.neighbours = _parts(text_smoothing)

    def forward(self, session_BD: Tensor, backbone: Backbone, target_B: Tensor) -> Tensor:
        target_BD, negative_ND, negatives = _draw(self.sampler, backbone, target_B)
        loss = sampled_softmax(session_BD, target_BD, negative_ND, target_B, negatives)
        if self.neighbours is not None:
            loss = loss + self.share * _above(session_BD, target_BD, backbone, target_B, self.neighbours)
        return loss


class GBCE(CatalogueLoss):
    """Generalised binary cross-entropy; the sampler has to be a uniform one."""

    samples_items = True

    def __init__(self, sampler: NegativeSampler, t: float) -> None:
        super().__init__()
        self.sampler, self.t = sampler, t

    def forward(self, session_BD: Tensor, backbone: Backbone, target_B: Tensor) -> Tensor:
        target_BD, negative_ND, negatives = _draw(self.sampler, backbone, target_B)
        return gbce(session_BD, target_BD, negative_ND, target_B, negatives, self.t)


def _parts(text_smoothing: TextSmoothing | None) -> tuple[float, TextNeighbours | None]:
    return (0.0, None) if text_smoothing is None else (text_smoothing.share, text_smoothing.neighbours)


def _above(
    session_BD: Tensor, target_BD: Tensor, backbone: Backbone, target_B: Tensor, neighbours: TextNeighbours
) -> Tensor:
    """`above_neighbours`, of whose items the rows are fetched."""
    neighbour_BKD = backbone.item_rows(neighbours.item_VK[target_B])
    return above_neighbours(session_BD, target_BD, neighbour_BKD, neighbours.weight_VK[target_B])


def _draw(sampler: NegativeSampler, backbone: Backbone, target_B: Tensor) -> tuple[Tensor, Tensor, Negatives]:
    """Item vectors of the targets and of drawn negatives, and which these are."""
    negatives: Negatives = sampler(target_B.device)
    rows = backbone.item_rows(torch.cat([target_B, negatives.item_N]))  # once: one gradient to add up
    return rows[: len(target_B)], rows[len(target_B) :], negatives
