"""Ranks and top-k lists against loops that follow the definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm4sbr_ray.models.ranking import NEVER, metric_sums, target_ranks, top_items, unseen_ranks

VALUES = st.sampled_from([-math.inf, -2.5, -1e-40, -0.0, 0.0, 1e-40, 1.0, 1.0 + 2**-23, math.inf, math.nan])


@st.composite
def rankings(draw: st.DrawFn) -> tuple[list[list[float]], list[int], list[tuple[int, int]]]:
    """(scores, targets, seen pairs with repeats) full of ties and odd numbers."""
    rows, items = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    scores = draw(st.lists(st.lists(VALUES, min_size=items, max_size=items), min_size=rows, max_size=rows))
    targets = draw(st.lists(st.integers(0, items - 1), min_size=rows, max_size=rows))
    pairs = st.tuples(st.integers(0, rows - 1), st.integers(0, items - 1))
    return scores, targets, draw(st.lists(pairs, max_size=10))


def naive_rank(scores: list[float], target: int, seen: set[int]) -> int:
    rank = 1
    for item, score in enumerate(scores):
        if item != target and item not in seen and not score < scores[target]:
            rank += 1
    return rank


def naive_order(scores: list[float], seen: set[int]) -> list[int]:
    def key(item: int) -> tuple[bool, bool, float, int]:
        if item in seen:
            return True, False, 0.0, item
        nan = math.isnan(scores[item])
        return False, nan, 0.0 if nan else -scores[item], item

    return sorted(range(len(scores)), key=key)


def indices(pairs: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    return torch.tensor([r for r, _ in pairs]).long(), torch.tensor([i for _, i in pairs]).long()


@given(rankings())
@settings(max_examples=200, deadline=None)
def test_ranks_and_lists_equal_the_definition(
    case: tuple[list[list[float]], list[int], list[tuple[int, int]]],
) -> None:
    scores, targets, pairs = case
    scores_BV, target_B = torch.tensor(scores), torch.tensor(targets)
    before = scores_BV.clone()
    for seen, sets in (
        (None, [set[int]() for _ in scores]),
        (indices(pairs), [{i for r, i in pairs if r == row} for row in range(len(scores))]),
    ):
        ranks = target_ranks(scores_BV, target_B, seen)
        assert ranks.dtype == torch.int64
        assert ranks.tolist() == [naive_rank(*row) for row in zip(scores, targets, sets, strict=True)]
        for k in range(1, len(scores[0]) + 1):
            expected = [naive_order(row, out)[:k] for row, out in zip(scores, sets, strict=True)]
            assert top_items(scores_BV, k, seen).tolist() == expected
    expected = [
        NEVER if target in out else naive_rank(row, target, out)
        for row, target, out in zip(scores, targets, sets, strict=True)
    ]
    assert unseen_ranks(scores_BV, target_B, indices(pairs)).tolist() == expected
    assert (
        torch.equal(
            scores_BV,
            before,
        )
        or scores_BV.isnan().any()
    )


def test_a_constant_model_ranks_every_target_last() -> None:
    assert target_ranks(torch.zeros(2, 9), torch.tensor([0, 8])).tolist() == [9, 9]


def test_nan_scores_rank_last() -> None:
    scores_BV = torch.tensor([[math.nan, 1.0, 2.0]])
    assert target_ranks(scores_BV, torch.tensor([0])).tolist() == [3]
    assert target_ranks(scores_BV, torch.tensor([2])).tolist() == [2]  # the NaN counts as better


@given(st.lists(st.integers(1, 30), max_size=20))
@settings(deadline=None)
def test_metric_sums_equal_the_definition(ranks: list[int]) -> None:
    sums = metric_sums(torch.tensor(ranks, dtype=torch.int64), (5, 20))
    for k in (5, 20):
        recall = mrr = ndcg = 0.0
        for rank in ranks:
            if rank <= k:
                recall += 1
                mrr += 1 / rank
                ndcg += 1 / math.log2(rank + 1)
        assert float(sums[f"recall@{k}"]) == pytest.approx(recall)
        assert float(sums[f"mrr@{k}"]) == pytest.approx(mrr)
        assert float(sums[f"ndcg@{k}"]) == pytest.approx(ndcg)
