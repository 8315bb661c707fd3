"""The protocol: full ranking of the catalogue for each test sample, both ways, ties against the model.

- "test": every item is ranked, those that the session already holds as well.
- "test_unseen_only": the items that the session already holds are left out. A sample whose target is one of
  them is a miss: a recommender that never repeats cannot hit it (ours; to spare the target from the filter
  would tell the model which of the seen items comes next).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from llm4sbr_ray.evaluation.metrics import KS, MISS
from llm4sbr_ray.models.base import Recommender
from llm4sbr_ray.models.ranking import Seen, target_ranks, top_items, unseen_ranks
from llm4sbr_ray.training.batches import samples_from_table

PROTOCOLS = {"test": "all items ranked", "test_unseen_only": "items of the session left out"}
K = max(KS)
MAX_SCORES = 2**24  # of one batch: with the integers that put them in order, about half a gigabyte


@dataclass
class TopLists:
    """Recommended items of B samples: up to 20 a sample, one after the other, best first."""

    item_M: npt.NDArray[np.int32]
    length_B: npt.NDArray[np.int64]


@dataclass
class RankedBatch:
    """What a model makes of B test samples; the keys of the dicts are those of `PROTOCOLS`."""

    sample_key: pa.ChunkedArray[Any]
    target_B: npt.NDArray[np.int64]
    rank_B: dict[str, npt.NDArray[np.uint8]]  # capped at MISS
    top: dict[str, TopLists]  # empty unless asked for


def batch_rows(batch_size: int, n_items: int) -> int:
    """Rows of a batch: as many as asked for, fewer where the catalogue is large."""
    return max(1, min(batch_size, MAX_SCORES // n_items))


def rank_samples(
    model: Recommender,
    tables: Iterator[pa.Table],
    n_items: int,
    max_length: int,
    perspectives: int,
    device: torch.device,
    with_lists: bool,
) -> Iterator[RankedBatch]:
    """Rank the catalogue for every sample; holds the scores of one batch at a time.

    Parameters
    ----------
    model
        On `device`, in eval mode.
    tables
        Test samples, a batch each.
    n_items
        V.
    max_length
        The last clicks that the model reads. What counts as seen is the whole prefix.
    perspectives
        P, to score with the intent columns of `tables`; 0 to score without.
    with_lists
        Whether the top 20 are wanted too.
    """
    for table in tables:
        samples = samples_from_table(table, n_items, max_length, perspectives).to(device)
        rows_B = torch.arange(len(samples), device=device)
        with torch.inference_mode():
            batch, target_B = samples.batch(rows_B)
            scores_BV = model.score(batch)
            rank_B, lists = _rank(scores_BV, target_B, samples.seen(rows_B), with_lists)
        yield RankedBatch(
            table["sample_key"],
            target_B.cpu().numpy(),
            {protocol: rank.cpu().numpy().astype(np.uint8) for protocol, rank in rank_B.items()},
            lists,
        )


def _rank(
    scores_BV: Tensor, target_B: Tensor, seen: Seen, with_lists: bool
) -> tuple[dict[str, Tensor], dict[str, TopLists]]:
    B, V = scores_BV.shape
    row, item = seen
    all_B = target_ranks(scores_BV, target_B).clamp_max(MISS)
    unseen_B = unseen_ranks(scores_BV, target_B, seen).clamp_max(MISS)
    ranks = {"test": all_B, "test_unseen_only": unseen_B}
    if not with_lists:
        return ranks, {}
    n_seen_B = torch.bincount(torch.unique(row * V + item) // V, minlength=B)
    # Ties are against the model in the lists too: the others are ordered, then the target goes to its rank.
    others_BV = scores_BV.scatter(1, target_B[:, None], float("nan"))
    k = min(K, V)
    lists = {
        "test": _place(top_items(others_BV, k), target_B, all_B, torch.full_like(n_seen_B, V)),
        "test_unseen_only": _place(top_items(others_BV, k, seen), target_B, unseen_B, V - n_seen_B),
    }
    return ranks, lists


def _place(others_Bk: Tensor, target_B: Tensor, rank_B: Tensor, allowed_B: Tensor) -> TopLists:
    """Put each target at its rank, shift what follows, cut to the items that may be recommended at all."""
    position_k = torch.arange(others_Bk.shape[1], device=others_Bk.device)
    at_B1 = rank_B[:, None] - 1
    shifted_Bk = others_Bk.gather(1, (position_k - (position_k > at_B1).long()).clamp_min(0))
    list_Bk = torch.where(position_k == at_B1, target_B[:, None], shifted_Bk)
    length_B = allowed_B.clamp_max(others_Bk.shape[1])
    kept_Bk = position_k < length_B[:, None]
    return TopLists(list_Bk[kept_Bk].cpu().numpy().astype(np.int32), length_B.cpu().numpy())
