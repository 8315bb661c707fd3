"""Validation metrics: full ranking over the catalogue, with seen items or without, ties against the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llm4sbr_ray.models.base import Recommender, SessionBatch, SessionVectors
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.models.plain import PlainRecommender
from llm4sbr_ray.models.ranking import Seen, metric_sums, target_ranks, unseen_ranks
from llm4sbr_ray.models.row_shards import ShardedEmbedding
from llm4sbr_ray.models.sharded_softmax import sharded_ranks
from llm4sbr_ray.training.batches import Samples
from llm4sbr_ray.training.workers import own_share, sum_over_workers, world_size

K = 20
MAX_SCORES = 1 << 26  # of one batch: 256 MB in float32, however large the catalogue


@torch.inference_mode()
def validate(model: Recommender, samples: Samples, batch_size: int, rank_seen: bool) -> dict[str, float]:
    """Mean Recall@20, MRR@20 and NDCG@20 over the samples; each worker ranks its share of them.

    Parameters
    ----------
    rank_seen
        Whether a session's own items are ranked too. Without them a repeated target is a miss, as in
        "test_unseen_only" of evaluation.protocol.

    Returns
    -------
    dict
        "valid_recall@20", "valid_mrr@20", "valid_ndcg@20"; LLM4SBR with intents is also validated without
        them: "valid_llm_free_recall@20", ... Fractions.
    """
    model.eval()
    batch_size = max(1, min(batch_size, MAX_SCORES // samples.n_items))
    sums: dict[str, Tensor] = {}
    device = samples.target_N.device
    for rows_N in torch.arange(len(samples), device=device).split(batch_size * world_size()):
        rows_B = own_share(rows_N)
        own = len(rows_B)  # a worker may have none
        rows_B = rows_B if own else rows_N[:1]
        batch, target_B = samples.batch(rows_B)
        seen = None if rank_seen else samples.seen(rows_B)
        for way, rank_B in _ranks(model, batch, target_B, seen).items():
            for metric, value in metric_sums(rank_B[:own], (K,)).items():
                name = f"valid_{way}{metric}"
                sums[name] = sums[name] + value if name in sums else value
    total = sum_over_workers(torch.stack(list(sums.values())))
    return {name: float(value / len(samples)) for name, value in zip(sums, total, strict=True)}


def valid_score(metrics: dict[str, Any], metric: str) -> float:
    """What a model is picked by: its validation metric, for LLM4SBR the mean of it with LLM intents and LLM-free."""
    names = [f"valid_{way}{metric}" for way in ("", "llm_free_")]
    scores = [metrics[name] for name in names if name in metrics]
    return float(sum(scores) / len(scores))


def _ranks(model: Recommender, batch: SessionBatch, target_B: Tensor, seen: Seen | None) -> dict[str, Tensor]:
    """Ranks of the targets; of LLM4SBR with intents also LLM-free."""
    if not isinstance(model, LLM4SBR | PlainRecommender):
        return {"": _ranked(model.score(batch), target_B, seen)}
    table = model.backbone.item_embedding
    vectors = _session_vectors(model, batch)
    if isinstance(table, ShardedEmbedding):
        assert seen is None, "TrainConfig allows rank_seen: false for whole tables alone"
        return {way: sharded_ranks(session_BD, table, target_B) for way, session_BD in vectors.items()}
    item_VD = model.backbone.item_vectors()
    return {way: _ranked(session_BD @ item_VD.T, target_B, seen) for way, session_BD in vectors.items()}


def _ranked(scores_BV: Tensor, target_B: Tensor, seen: Seen | None) -> Tensor:
    return target_ranks(scores_BV, target_B) if seen is None else unseen_ranks(scores_BV, target_B, seen)


def _session_vectors(model: LLM4SBR | PlainRecommender, batch: SessionBatch) -> dict[str, Tensor]:
    """What each way of a model ranks with, B x D."""
    vectors: SessionVectors = model.backbone(batch.items_BL, batch.length_B)
    if isinstance(model, PlainRecommender):
        return {"": vectors.session_BD}
    intents_BPD = {"": model.intent_vectors(vectors, batch.intents)}
    if batch.intents is not None:
        intents_BPD["llm_free_"] = model.predict(vectors)
    return {way: model.fuse(vectors, z_BPD).session_BD for way, z_BPD in intents_BPD.items()}
