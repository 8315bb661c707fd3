"""Ranks of targets and top-k lists from scores, with ties always broken against the model.

Both take `seen`, the items to leave out of the ranking, as (row, item) indices: two int64 tensors of one
length, entry i saying that session row[i] has seen item[i]. Repeats are harmless.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Seen = tuple[Tensor, Tensor]
INT32 = torch.iinfo(torch.int32)
NEVER = INT32.max  # rank of what can't be recommended


def target_ranks(scores_BV: Tensor, target_B: Tensor, seen: Seen | None = None) -> Tensor:
    """Rank of each target among all items, 1 = best.

    The rank is 1 + the number of other items whose score is not lower than the target's, so ties count
    against the model, and so does every NaN: a target with a NaN score is the last of all (ours).

    Parameters
    ----------
    scores_BV
        Higher is better.
    target_B
        int64.
    seen
        Items left out of the ranking; a target is never left out.

    Returns
    -------
    rank_B
        int64, 1..V.
    """
    lower_BV = scores_BV < scores_BV.gather(1, target_B[:, None])
    if seen is not None:
        lower_BV[seen] = True
        lower_BV[torch.arange(len(target_B), device=target_B.device), target_B] = False
    # Summing bytes is several times faster than count_nonzero of booleans on a CPU.
    return scores_BV.shape[1] - lower_BV.view(torch.uint8).sum(dim=1, dtype=torch.int32).long()


def unseen_ranks(scores_BV: Tensor, target_B: Tensor, seen: Seen) -> Tensor:
    """`target_ranks` without the seen items, and `NEVER` for a target that is one of them.

    Such a target can't be recommended. To give it a rank among the unseen items would tell the model which of the
    seen ones comes next.
    """
    row, item = seen
    rank_B = target_ranks(scores_BV, target_B, seen)
    rank_B[row[item == target_B[row]]] = NEVER
    return rank_B


def top_items(scores_BV: Tensor, k: int, seen: Seen | None = None) -> Tensor:
    """The k best items, best first; of equal scores the lower item index first.

    NaN ranks below every number. Seen items come last of all: they appear only where fewer than k others
    exist.

    Parameters
    ----------
    scores_BV
        float32, higher is better.
    k
        At most V.
    seen
        Items left out.

    Returns
    -------
    item_Bk
        int64.
    """
    V = scores_BV.shape[1]
    plain_BV = scores_BV.float().masked_fill(scores_BV.isnan(), -torch.inf)
    if seen is not None:
        plain_BV[seen] = -torch.inf
    value_Bk, item_Bk = plain_BV.topk(min(k + 1, V), dim=1)
    # Torch's topk leaves open which of equal scores it takes: that matters where the last taken equals the first left.
    last_B = value_Bk[:, k - 1]
    open_B = (last_B == -torch.inf) | (last_B == value_Bk[:, -1] if k < V else last_B.isnan())
    item_Bk = item_Bk[:, :k].sort(dim=1).values
    best_first_Bk = plain_BV.gather(1, item_Bk).argsort(dim=1, descending=True, stable=True)
    item_Bk = item_Bk.gather(1, best_first_Bk)
    if open_B.any():
        rows = open_B.nonzero()[:, 0]
        seen_rows = None if seen is None else _rows_of(seen, open_B)
        item_Bk[rows] = _top_items_with_ties(scores_BV[rows], k, seen_rows)
    return item_Bk


def _rows_of(seen: Seen, chosen_B: Tensor) -> Seen:
    """`seen` of the chosen rows, numbered as these."""
    row, item = seen
    kept = chosen_B[row]
    return (chosen_B.cumsum(0) - 1)[row[kept]], item[kept]


def _top_items_with_ties(scores_BV: Tensor, k: int, seen: Seen | None) -> Tensor:
    """`top_items` by one exact total order; several times slower."""
    V = scores_BV.shape[1]
    # Integers that order as the scores do, with the item index in the lower half, are all different. Adding 0.0
    # turns -0.0 into 0.0.
    bits_BV = (scores_BV.float() + 0.0).contiguous().view(torch.int32)
    order_BV = torch.where(bits_BV < 0, bits_BV ^ INT32.max, bits_BV)
    order_BV[scores_BV.isnan()] = INT32.min + 1
    if seen is not None:
        order_BV[seen] = INT32.min
    index_V = torch.arange(V - 1, -1, -1, device=scores_BV.device)
    key_BV = order_BV.long() * 2**31 + index_V
    item_Bk: Tensor = V - 1 - key_BV.topk(k, dim=1).values.remainder(2**31)
    return item_Bk


def metric_sums(rank_B: Tensor, ks: Sequence[int]) -> dict[str, Tensor]:
    """Sums over the batch of Recall@K, MRR@K and NDCG@K with one target a row; a miss adds 0.

    Parameters
    ----------
    rank_B
        Ranks from 1.
    ks
        Cut-offs K.

    Returns
    -------
    dict
        "recall@K", "mrr@K" and "ndcg@K" for each K: float64 scalars. Divided by the number of rows of all
        batches they are the means.
    """
    rank = rank_B.double()
    sums = {}
    for k in ks:
        hit = (rank_B <= k).double()
        sums[f"recall@{k}"] = hit.sum()
        sums[f"mrr@{k}"] = (hit / rank).sum()
        sums[f"ndcg@{k}"] = (hit / torch.log2(rank + 1)).sum()
    return sums
