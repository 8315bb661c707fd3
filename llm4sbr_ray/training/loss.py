"""Which loss a training minimises, from its settings and its samples."""

from __future__ import annotations

import torch
from torch import Tensor

from llm4sbr_ray.config import TrainConfig
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.catalogue_loss import GBCE, CatalogueLoss, FullSoftmax, SampledSoftmax, TextSmoothing
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.models.negatives import NegativeSampler
from llm4sbr_ray.models.plain import PlainRecommender
from llm4sbr_ray.models.row_shards import ShardedEmbedding
from llm4sbr_ray.training.workers import can_reduce_rows

POPULARITY_POWER = 0.75  # flattens counts, as in word2vec (Mikolov et al., NIPS 2013)


def set_loss(model: LLM4SBR | PlainRecommender, config: TrainConfig, n_items: int, target_N: Tensor) -> None:
    """Give the model the loss of these settings. Before it is made distributed; all workers together.

    Where a step reads a few rows of the item embedding only, its gradient is made of these rows: a dense one, and Adam
    on all rows, would cost as much as the catalogue is large.

    Parameters
    ----------
    model
        Changed in place. Its `text_smoothing` is part of a softmax, full or sampled.
    config
        Of the training.
    n_items
        V.
    target_N
        Targets of all train samples: popularity is how often an item is one.

    Raises
    ------
    UserError
        `train.label_smoothing` for a loss that samples.
    """
    loss = _loss(config, n_items, target_N, model.text_smoothing)
    if loss.samples_items and config.label_smoothing:
        raise UserError(
            f"train.label_smoothing: it is for full softmax, and this catalogue of {n_items} items (above "
            "train.sampled_above) is sampled: set it to 0, or train.loss to full"
        )
    model.ranking_loss = loss.to(target_N.device)
    backbone = model.backbone
    rows_can_be_reduced = isinstance(backbone.item_embedding, ShardedEmbedding) or can_reduce_rows()
    backbone.item_embedding.sparse = loss.samples_items and backbone.ranks_with_embedding and rows_can_be_reduced


def _loss(config: TrainConfig, n_items: int, target_N: Tensor, smoothing: TextSmoothing | None) -> CatalogueLoss:
    kind = config.loss
    if kind == "auto":
        kind = "sampled" if n_items > config.sampled_above else "full"
    if kind == "full":
        return FullSoftmax(config.label_smoothing, smoothing)
    weight_V = None
    if config.negatives_by == "popularity":
        count_V = torch.bincount(target_N, minlength=n_items)
        weight_V = (count_V + 1).double() ** POPULARITY_POWER  # an item that is never a target can be drawn too
    sampler = NegativeSampler(n_items, config.negatives, weight_V)
    return SampledSoftmax(sampler, smoothing) if kind == "sampled" else GBCE(sampler, config.gbce_t)
