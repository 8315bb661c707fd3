"""Scores of a batch of sessions: products with the item vectors, or these and what a memory of train sessions adds."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm4sbr_ray.models.base import SessionBatch
from llm4sbr_ray.models.memory import MemoryRecommender
from llm4sbr_ray.models.ranking import top_items
from llm4sbr_ray.serving.nearest import Search

Floats = NDArray[np.float32]


class Scores(Protocol):
    def best(self, k: int) -> tuple[Tensor, Tensor]:
        """value_Bk and item_Bk, best first, of equal ones the lower item first; k is at most V."""

    def of(self, row: int, item_k: NDArray[np.int64]) -> Floats:
        """Scores of some items for one session."""

    def network_weight(self, row: int) -> float:
        """What the products of a session are multiplied with."""

    def memory(self, row: int, item_k: NDArray[np.int64]) -> Floats | None:
        """What the memory adds to these scores; None: there is none."""


class Products:
    """Session vectors by item vectors."""

    def __init__(self, search: Search, item_VD: Tensor, session_BD: Tensor) -> None:
        self._search, self._item_VD, self._session_BD = search, item_VD, session_BD

    def best(self, k: int) -> tuple[Tensor, Tensor]:
        return self._search(self._session_BD, k)

    def of(self, row: int, item_k: NDArray[np.int64]) -> Floats:
        products_k: Floats = (self._item_VD[torch.from_numpy(item_k)] @ self._session_BD[row]).numpy()
        return products_k

    def network_weight(self, row: int) -> float:
        return 1.0

    def memory(self, row: int, item_k: NDArray[np.int64]) -> Floats | None:
        return None


class Remembered:
    """Scores of a `MemoryRecommender`, from its network's scores of the whole catalogue."""

    def __init__(self, memory: MemoryRecommender, network_BV: Tensor, batch: SessionBatch) -> None:
        self._network_weight_B = memory.weights_of(batch.length_B)[:, 0]
        weighed_BV, self._memory_BV = memory.split(network_BV, batch)
        self._all_BV = weighed_BV + self._memory_BV

    def best(self, k: int) -> tuple[Tensor, Tensor]:
        item_Bk = top_items(self._all_BV, k)
        return self._all_BV.gather(1, item_Bk), item_Bk

    def of(self, row: int, item_k: NDArray[np.int64]) -> Floats:
        return _taken(self._all_BV, row, item_k)

    def network_weight(self, row: int) -> float:
        return float(self._network_weight_B[row])

    def memory(self, row: int, item_k: NDArray[np.int64]) -> Floats | None:
        return _taken(self._memory_BV, row, item_k)


def _taken(table_BV: Tensor, row: int, item_k: NDArray[np.int64]) -> Floats:
    taken_k: Floats = table_BV[row, torch.from_numpy(item_k)].numpy()
    return taken_k
