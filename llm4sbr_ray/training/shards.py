"""A model's item tables spread over the workers (`train.shard_items`): for catalogues too large for one device."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.backbones import BACKBONES
from llm4sbr_ray.models.base import Backbone
from llm4sbr_ray.models.build import backbone_of
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.models.plain import PlainRecommender
from llm4sbr_ray.models.row_shards import RowShards, ShardedEmbedding
from llm4sbr_ray.training.workers import rank, world_size

MIN_ITEMS = 2  # of a worker


def require_shardable(model: str, n_items: int, workers: int) -> None:
    """Check that this model's items can be shared among so many workers.

    Raises
    ------
    UserError
        There are too few items, or the backbone needs the whole table.
    """
    backbone = cast(type[Backbone], BACKBONES[backbone_of(model)])
    if not backbone.ranks_with_embedding:
        raise UserError(f"train.shard_items: {model!r} computes item vectors from the whole table: set it to false")
    if n_items < MIN_ITEMS * workers:
        raise UserError(f"train.shard_items: {n_items} items are too few for {workers} workers: set it to false")


def shard_items(model: LLM4SBR | PlainRecommender) -> None:
    """Leave this worker its rows of the item embedding and of the text table. All workers together, before training.

    Parameters
    ----------
    model
        Whole, with the same weights on every worker; changed in place.

    """
    table, group = model.backbone.item_embedding, dist.new_group()
    shards = RowShards(table.num_embeddings, rank(), world_size(), group)
    model.backbone.item_embedding = ShardedEmbedding(table, shards)
    if isinstance(model, LLM4SBR):
        model.text_shards = replace(shards, rows=len(model.item_text_VE))
        model.item_text_VE = model.item_text_VE[model.text_shards.own].clone()


def own_rows(model: nn.Module) -> slice | None:
    """The rows of the item table that this worker holds; None: all."""
    return next((part.shards.own for part in model.modules() if isinstance(part, ShardedEmbedding)), None)


def keep_apart(module: nn.Module) -> None:
    """Have DistributedDataParallel leave each worker's own rows alone. Before it wraps the module."""
    apart: list[str] = []
    for name, part in module.named_modules():
        own = ["weight"] if isinstance(part, ShardedEmbedding) else []
        own += ["item_text_VE"] if isinstance(part, LLM4SBR) and part.text_shards is not None else []
        apart += [f"{name}.{each}" for each in own]
    if apart:
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, apart)
