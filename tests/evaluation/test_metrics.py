"""Metrics against a naive loop in plain Python floats."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4sbr_ray.evaluation.metrics import KS, METRICS, MISS, gain_tables, metric_means, over_seeds


def naive(ranks: list[int], metric: str) -> float:
    name, k = metric.split("@")
    total = 0.0
    for rank in ranks:
        if rank <= int(k):
            total += {"recall": 1.0, "mrr": 1 / rank, "ndcg": 1 / math.log2(rank + 1)}[name]
    return total / len(ranks)


@given(st.lists(st.integers(1, MISS), min_size=1, max_size=300))
def test_means_are_those_of_a_naive_loop_where_a_miss_counts_0(ranks: list[int]) -> None:
    means = metric_means(np.array(ranks, np.uint8))
    assert set(means) == set(METRICS)
    for metric in METRICS:
        assert means[metric] == pytest.approx(naive(ranks, metric), abs=1e-12)


def test_a_hit_beyond_k_counts_0_for_that_k_alone() -> None:
    means = metric_means(np.array([7, MISS], np.uint8))
    assert means["mrr@5"] == means["ndcg@5"] == means["recall@5"] == 0
    assert means["mrr@10"] == means["mrr@20"] == pytest.approx(1 / 14)


def test_gain_tables_cover_every_capped_rank() -> None:
    for metric, table in gain_tables().items():
        assert len(table) == MISS + 1
        assert table[MISS] == 0
        assert (np.diff(table[1:]) <= 0).all(), metric
    assert gain_tables()["recall@20"][1:MISS].sum() == max(KS)


def test_spread_over_seeds_is_the_sample_standard_deviation() -> None:
    per_seed = [dict.fromkeys(METRICS, value) for value in (0.1, 0.2, 0.6)]
    figures = over_seeds(per_seed)
    assert figures["mrr@20"] == pytest.approx(0.3)
    assert figures["mrr@20_std"] == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2))
    assert over_seeds(per_seed[:1])["mrr@20_std"] == 0.0
