"""The k rows of a table with the largest inner products, exactly: one product with the whole table.

Both of the service's searches over the catalogue are of this form: items by score, and items by how near their text is
to an intent (unit rows).
"""

from __future__ import annotations

from typing import Literal, Protocol

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


def build_search(table_VD: Tensor, kind: IndexKind) -> Search:
    if kind == "exact":
        return Exact(table_VD)
    from llm4sbr_ray.serving.quantised import Quantised  # a service of exact searches never loads faiss

    return Quantised(table_VD)
