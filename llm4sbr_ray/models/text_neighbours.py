"""Items with the nearest texts: what text smoothing shares a target's probability with (ours).

Of an item that was clicked once a softmax learns one session. Items whose texts are like a target's are better guesses
than the rest of the catalogue, so a share of the target's probability is theirs: label smoothing (Szegedy et al., CVPR
2016) that knows which labels are near. Items of few clicks get gradients from the clicks of like items.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

NEIGHBOURS = 20  # of an item
TEMPERATURE = 0.05  # of the softmax over their cosines: a neighbour .05 nearer counts e times as much
ROWS = 1024  # at a time
EXACT_ITEMS = 50_000  # beyond, neighbours are looked for in the nearest clusters of texts alone
CLUSTERS, READ = 1024, 16


class TextNeighbours(nn.Module):
    """The nearest items of every item, and how a share is spread over them.

    Parameters
    ----------
    item_VK
        int64; no item is its own neighbour.
    weight_VK
        float32, rows sum to 1; rows of zeros for items without text.
    """

    item_VK: Tensor
    weight_VK: Tensor

    def __init__(self, item_VK: Tensor, weight_VK: Tensor) -> None:
        super().__init__()
        self.register_buffer("item_VK", item_VK, persistent=False)
        self.register_buffer("weight_VK", weight_VK, persistent=False)


def text_neighbours(item_text_VE: Tensor, k: int = NEIGHBOURS) -> TextNeighbours | None:
    """The k items with the nearest texts of every item; None where fewer than two items have texts.

    Parameters
    ----------
    item_text_VE
        L2-normalised, zeros for items without text: these have no neighbours and are nobody's.
    k
        Fewer, where fewer items have texts.
    """
    told_N = item_text_VE.any(dim=1).nonzero()[:, 0]
    text_NE, V = item_text_VE[told_N], len(item_text_VE)
    if len(told_N) < 2:
        return None
    k = min(k, len(told_N) - 1)
    item_VK, weight_VK = torch.zeros(V, k, dtype=torch.int64), torch.zeros(V, k)
    cosine_NK, place_NK = _nearest(text_NE, k)
    item_VK[told_N] = told_N[place_NK]
    weight_VK[told_N] = (cosine_NK / TEMPERATURE).softmax(dim=1)
    return TextNeighbours(item_VK, weight_VK)


def _nearest(text_NE: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines and places of the k nearest other rows."""
    if len(text_NE) > EXACT_ITEMS:
        cosine_Nk, place_Nk = _search_clusters(text_NE, k + 1)
    else:
        parts = [(part_nE @ text_NE.T).topk(k + 1, dim=1) for part_nE in text_NE.split(ROWS)]
        cosine_Nk, place_Nk = torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])
    itself_Nk = place_Nk == torch.arange(len(text_NE))[:, None]
    # Where many texts are alike an item may be missing among its own nearest: then the last one goes.
    itself_Nk[:, -1] |= ~itself_Nk.any(dim=1)
    kept = (~itself_Nk).nonzero(as_tuple=True)
    return cosine_Nk[kept].view(-1, k), place_Nk[kept].view(-1, k)


def _search_clusters(text_NE: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k rows with the largest inner products of each row, among those of its nearest clusters."""
    import faiss  # small catalogues do without

    rows = text_NE.numpy()
    index = faiss.index_factory(rows.shape[1], f"IVF{CLUSTERS},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    reading = faiss.SearchParametersIVF()
    reading.nprobe = READ
    cosine_Nk, place_Nk = (torch.from_numpy(found) for found in index.search(rows, k, params=reading))
    missing_Nk = place_Nk < 0  # the clusters that were read hold fewer: some other item, of next to no weight
    other_N1 = (torch.arange(len(rows))[:, None] + 1) % len(rows)
    return cosine_Nk.masked_fill(missing_Nk, -1), torch.where(missing_Nk, other_N1, place_Nk)


def above_neighbours(session_BD: Tensor, target_BD: Tensor, neighbour_BKD: Tensor, weight_BK: Tensor) -> Tensor:
    """By how much the targets' scores are above the mean scores of their neighbours, the mean over sessions (scalar).

    Times the share, it is what text smoothing adds to a cross-entropy: the log of the softmax's sum is the same for
    all labels of a session, so only the labels' scores differ. 0 for a target without neighbours.
    """
    mean_BD = (neighbour_BKD * weight_BK[..., None].to(neighbour_BKD)).sum(1)
    return _gap(session_BD, target_BD, mean_BD, weight_BK)


def above_neighbours_in(session_BD: Tensor, item_VD: Tensor, target_B: Tensor, neighbours: TextNeighbours) -> Tensor:
    """`above_neighbours` where the vectors of all items are at hand."""
    weight_BK = neighbours.weight_VK[target_B].to(item_VD)
    mean_BD = F.embedding_bag(neighbours.item_VK[target_B], item_VD, per_sample_weights=weight_BK, mode="sum")
    return _gap(session_BD, F.embedding(target_B, item_VD), mean_BD, weight_BK)


def _gap(session_BD: Tensor, target_BD: Tensor, mean_BD: Tensor, weight_BK: Tensor) -> Tensor:
    gap_B = (session_BD * (target_BD - mean_BD)).sum(1)
    return (gap_B * weight_BK.any(dim=1)).mean()
