"""Scores of a batch of sessions: products with the item vectors, or these mixed with a memory of train sessions."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm4sbr_ray.models.base import SessionBatch
from llm4sbr_ray.models.memory import MemoryRecommender
from llm4sbr_ray.models.ranking import top_items
from llm4sbr_ray.serving.nearest import Search

Floats = NDArray[np.float32]


class Split(NamedTuple):
    """A score as the sum of what network and memory say of an item."""

    network_k: Floats
    memory_k: Floats


class Scores(Protocol):
    def best(self, k: int) -> tuple[Tensor, Tensor]:
        """value_Bk and item_Bk, best first, of equal ones the lower item first; k is at most V."""

    def of(self, row: int, item_k: NDArray[np.int64]) -> Floats:
        """Scores of some items for one session."""

    def split(self, row: int, item_k: NDArray[np.int64]) -> Split | None:
        """Where a memory is mixed in: the two parts of these scores."""


class Products:
    """Session vectors by item vectors."""

    def __init__(self, search: Search, item_VD: Tensor, session_BD: Tensor) -> None:
        self._search, self._item_VD, self._session_BD = search, item_VD, session_BD

    def best(self, k: int) -> tuple[Tensor, Tensor]:
        return self._search(self._session_BD, k)

    def of(self, row: int, item_k: NDArray[np.int64]) -> Floats:
        products_k: Floats = (self._item_VD[torch.from_numpy(item_k)] @ self._session_BD[row]).numpy()
        return products_k

    def split(self, row: int, item_k: NDArray[np.int64]) -> Split | None:
        return None


class Mixture:
    """Probabilities of a `MemoryRecommender`, from the network's scores of the whole catalogue."""

    def __init__(self, memory: MemoryRecommender, network_BV: Tensor, batch: SessionBatch) -> None:
        network, new_items, *counted = memory.parts_of(network_BV, batch)
        weights = memory.weights_of(batch).T[..., None]
        self._network_BV = weights[0] * network + weights[1] * new_items
        self._memory_BV = torch.zeros_like(network)
        for weight, part_BV in zip(weights[2:], counted, strict=True):
            self._memory_BV += weight * part_BV
        self._all_BV = self._network_BV + self._memory_BV

    def best(self, k: int) -> tuple[Tensor, Tensor]:
        item_Bk = top_items(self._all_BV, k)
        return self._all_BV.gather(1, item_Bk), item_Bk

    def of(self, row: int, item_k: NDArray[np.int64]) -> Floats:
        return _taken(self._all_BV, row, item_k)

    def split(self, row: int, item_k: NDArray[np.int64]) -> Split | None:
        return Split(_taken(self._network_BV, row, item_k), _taken(self._memory_BV, row, item_k))


def _taken(table_BV: Tensor, row: int, item_k: NDArray[np.int64]) -> Floats:
    taken_k: Floats = table_BV[row, torch.from_numpy(item_k)].numpy()
    return taken_k
