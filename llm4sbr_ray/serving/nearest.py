"""The k rows of a table with the largest inner products, exactly: one product with the whole table.

Both of the service's searches over the catalogue are of this form: items by score, and items by how near their text is
to an intent (unit rows).
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from llm4sbr_ray.models.ranking import top_items

IndexKind = Literal["exact", "pq"]


class Search(Protocol):
    def __call__(self, query_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """value_Bk and item_Bk of the k best rows, best first, of equal ones the lower first; k is at most V."""


class Exact:
    """`Search` over a table, V x D float32."""

    def __init__(self, table_VD: Tensor) -> None:
        self._table_VD = table_VD

    def __call__(self, query_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        score_BV = query_BD @ self._table_VD.T
        value_Bn, item_Bn = score_BV.topk(min(k + 1, score_BV.shape[1]), dim=1)
        if bool((value_Bn[:, 1:] < value_Bn[:, :-1]).all()):  # neither ties, which topk leaves open, nor NaN
            return value_Bn[:, :k], item_Bn[:, :k]
        item_Bk = top_items(score_BV, k)
        return score_BV.gather(1, item_Bk), item_Bk


class Extended:
    """`Search` over a searched table of V rows and N more, which are items V..V+N-1."""

    def __init__(self, known: Search, V: int, more_ND: Tensor) -> None:
        self._known, self._V, self._more, self._N = known, V, Exact(more_ND), len(more_ND)

    def __call__(self, query_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        known_Bk, item_Bk = self._known(query_BD, min(k, self._V))
        more_Bn, place_Bn = self._more(query_BD, min(k, self._N))
        value_Bm, item_Bm = torch.cat([known_Bk, more_Bn], 1), torch.cat([item_Bk, place_Bn + self._V], 1)
        order_Bk = value_Bm.argsort(dim=1, descending=True, stable=True)[:, :k]
        return value_Bm.gather(1, order_Bk), item_Bm.gather(1, order_Bk)


def build_search(table_VD: Tensor, kind: IndexKind, clustered: bool = False) -> Search:
    """`clustered`: the rows lie in clusters, so that a quantised search may read the nearest of them alone."""
    if kind == "exact":
        return Exact(table_VD)
    from llm4sbr_ray.serving.quantised import Quantised  # a service of exact searches never loads faiss

    return Quantised(table_VD, clustered)
