"""Validation metrics: full ranking over the catalogue, seen items ranked, ties against the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llm4sbr_ray.models.base import Recommender, SessionBatch
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.models.ranking import metric_sums, target_ranks
from llm4sbr_ray.training.batches import Samples
from llm4sbr_ray.training.workers import own_share, sum_over_workers

K = 20
MAX_SCORES = 1 << 26  # of one batch: 256 MB in float32, however large the catalogue


@torch.inference_mode()
def validate(model: Recommender, samples: Samples, batch_size: int) -> dict[str, float]:
    """Mean Recall@20, MRR@20 and NDCG@20 over the samples; each worker ranks its share of them.

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
    own_N = own_share(torch.arange(len(samples), device=device))
    for rows_B in own_N.split(batch_size) if len(own_N) else ():  # a worker may have none
        batch, target_B = samples.batch(rows_B)
        for way, scores_BV in _scores(model, batch).items():
            for metric, value in metric_sums(target_ranks(scores_BV, target_B), (K,)).items():
                name = f"valid_{way}{metric}"
                sums[name] = sums[name] + value if name in sums else value
    names = [f"valid_{way}{metric}@{K}" for way in _ways(model, samples) for metric in ("recall", "mrr", "ndcg")]
    zero = torch.zeros((), dtype=torch.float64, device=device)
    total = sum_over_workers(torch.stack([*(sums.get(name, zero) for name in names), zero + len(own_N)]))
    return {name: float(value / total[-1]) for name, value in zip(names, total, strict=False)}


def valid_score(metrics: dict[str, Any], metric: str) -> float:
    """What a model is picked by: its validation metric, for LLM4SBR the mean of it with LLM intents and LLM-free."""
    names = [f"valid_{way}{metric}" for way in ("", "llm_free_")]
    scores = [metrics[name] for name in names if name in metrics]
    return float(sum(scores) / len(scores))


def _ways(model: Recommender, samples: Samples) -> tuple[str, ...]:
    return ("", "llm_free_") if isinstance(model, LLM4SBR) and samples.intents is not None else ("",)


def _scores(model: Recommender, batch: SessionBatch) -> dict[str, Tensor]:
    if not isinstance(model, LLM4SBR) or batch.intents is None:
        return {"": model.score(batch)}
    vectors = model.encode(batch.items_BL, batch.length_B)  # once for both ways
    intents_BPD = {"": model.intent_vectors(vectors, batch.intents), "llm_free_": model.predict(vectors)}
    return {way: model.rank_scores(model.fuse(vectors, z).session_BD) for way, z in intents_BPD.items()}
