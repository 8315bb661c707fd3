"""Recall@K, MRR@K and NDCG@K from ranks; a miss counts 0 in every mean.

Ranks are kept capped: beyond the largest K all ranks are misses for every metric, so one byte a sample is
enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from llm4sbr_ray.models.ranking import metric_sums

KS = (5, 10, 20)
MISS = max(KS) + 1  # the rank of everything that is not in the top 20
METRICS = tuple(f"{name}@{k}" for name in ("recall", "mrr", "ndcg") for k in KS)

Ranks = npt.NDArray[np.uint8]  # N ranks from 1, capped at MISS
Floats = npt.NDArray[np.float64]


@cache
def gain_tables() -> dict[str, Floats]:
    """What a sample of each rank adds to each metric.

    Returns
    -------
    dict
        Metric name -> float64 array of MISS + 1 entries, to be indexed with `Ranks`; entry 0 is unused.
    """
    by_rank = [metric_sums(torch.tensor([rank]), KS) for rank in range(1, MISS + 1)]
    return {metric: np.array([0.0, *(float(sums[metric]) for sums in by_rank)]) for metric in METRICS}


def metric_means(rank_N: Ranks) -> dict[str, float]:
    """All metrics over N samples, as fractions; N at least 1.

    Computed from the counts of each rank, so the order of the samples cannot change a digit.
    """
    share = np.bincount(rank_N, minlength=MISS + 1) / len(rank_N)
    return {metric: float(share @ table) for metric, table in gain_tables().items()}


def over_seeds(per_seed: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean and sample standard deviation (n - 1; 0 for a single seed) of each metric over seeds.

    Returns
    -------
    dict
        "recall@5", "recall@5_std", and so on.
    """
    result = {}
    for metric in METRICS:
        values = np.array([figures[metric] for figures in per_seed])
        result[metric] = float(values.mean())
        result[f"{metric}_std"] = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return result
