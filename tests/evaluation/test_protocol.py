"""Ranks and lists, both ways, against a naive loop over items."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm4sbr_ray.evaluation.metrics import MISS
from llm4sbr_ray.evaluation.protocol import MAX_SCORES, RankedBatch, batch_rows, rank_samples
from llm4sbr_ray.models.base import Recommender, SessionBatch


class ByLastClick(Recommender):
    """Scores from a table by the last click, so that ties and any order can be planted."""

    def __init__(self, scores_VV: Tensor) -> None:
        super().__init__()
        self.scores_VV = scores_VV

    def score(self, batch: SessionBatch) -> Tensor:
        assert batch.intents is None
        return self.scores_VV[batch.items_BL[torch.arange(len(batch.length_B)), batch.length_B - 1]]


def table_of(sessions: list[list[int]], targets: list[int]) -> pa.Table:
    return pa.table(
        {
            "sample_key": [f"s{n}" for n in range(len(sessions))],
            "items": pa.array(sessions, pa.list_(pa.int32())),
            "target": pa.array(targets, pa.int32()),
        }
    )


def ranked(scores_VV: Tensor, table: pa.Table, max_length: int = 3) -> RankedBatch:
    (batch,) = rank_samples(
        ByLastClick(scores_VV), iter([table]), len(scores_VV), max_length, 0, torch.device("cpu"), True
    )
    return batch


def naive(scores: list[float], session: list[int], target: int, protocol: str) -> tuple[int, list[int]]:
    """Capped rank and list: better items first, the target behind its ties, other ties by index."""
    left_out = set(session) if protocol == "test_unseen_only" else set()
    candidates = [item for item in range(len(scores)) if item not in left_out]
    order = sorted(candidates, key=lambda item: (-scores[item], item == target, item))
    rank = order.index(target) + 1 if target in order else MISS
    return min(rank, MISS), order[:20]


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, list[list[int]], list[int]]:
    n_items = draw(st.integers(2, 40))
    item = st.integers(0, n_items - 1)
    sessions = draw(st.lists(st.lists(item, min_size=1, max_size=8), min_size=1, max_size=6))
    targets = draw(st.lists(item, min_size=len(sessions), max_size=len(sessions)))
    return n_items, draw(st.integers(0, 2**31)), sessions, targets


@settings(deadline=None, max_examples=150)
@given(cases())
def test_ranks_and_lists_are_those_of_a_naive_loop(case: tuple[int, int, list[list[int]], list[int]]) -> None:
    n_items, seed, sessions, targets = case
    scores_VV = torch.from_numpy(np.random.default_rng(seed).integers(-3, 4, (n_items, n_items))).float()
    batch = ranked(scores_VV, table_of(sessions, targets))
    for protocol, lists in batch.top.items():
        ends = np.cumsum(lists.length_B)
        for n, (session, target) in enumerate(zip(sessions, targets, strict=True)):
            rank, wanted = naive(scores_VV[session[-1]].tolist(), session, target, protocol)
            assert batch.rank_B[protocol][n] == rank
            assert lists.item_M[ends[n] - lists.length_B[n] : ends[n]].tolist() == wanted


def test_a_model_that_gives_every_item_one_score_is_never_right() -> None:
    batch = ranked(torch.zeros(30, 30), table_of([[1], [2, 3]], [0, 5]))
    assert batch.rank_B["test"].tolist() == [MISS, MISS]


def test_clicks_before_the_window_of_the_model_count_as_seen() -> None:
    scores_VV = torch.zeros(30, 30)
    scores_VV[:, 9] = 2.0
    scores_VV[:, 4] = 1.0
    batch = ranked(scores_VV, table_of([[9, 1, 2, 3]], [4]), max_length=2)
    assert batch.rank_B["test"].tolist() == [2]
    assert batch.rank_B["test_unseen_only"].tolist() == [1]


def test_a_repeated_target_is_a_miss_where_seen_items_are_left_out() -> None:
    scores_VV = torch.zeros(30, 30)
    scores_VV[:, 4] = 1.0
    batch = ranked(scores_VV, table_of([[4, 1]], [4]))
    assert batch.rank_B["test"].tolist() == [1]
    assert batch.rank_B["test_unseen_only"].tolist() == [MISS]
    assert 4 not in batch.top["test_unseen_only"].item_M


@pytest.mark.parametrize("with_lists", [True, False])
def test_batches_come_one_by_one(with_lists: bool) -> None:
    drawn: list[int] = []

    def tables() -> list[pa.Table]:
        for n in range(3):
            drawn.append(n)
            yield table_of([[n]], [n + 1])

    batches = rank_samples(ByLastClick(torch.eye(30)), tables(), 30, 3, 0, torch.device("cpu"), with_lists)
    assert bool(next(batches).top) == with_lists
    assert drawn == [0]


def test_a_large_catalogue_makes_batches_smaller() -> None:
    assert batch_rows(512, 12_000) == 512
    assert batch_rows(512, 1_000_000) == MAX_SCORES // 1_000_000 == 16
    assert batch_rows(512, 10**9) == 1
