"""The catalogue as the service needs it: ids to indices, titles, popularity, search by title."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa


class Catalogue:
    """Items 0..V-1 of a bundle.

    Parameters
    ----------
    table
        `item_id` string, `title` string or null, `train_count` int32; row j is item j.
    """

    def __init__(self, table: pa.Table) -> None:
        ids: list[Any] = table["item_id"].to_pylist()
        self.item_ids: list[str] = ids
        self.titles: list[str | None] = table["title"].to_pylist()
        self.train_count_V = table["train_count"].to_numpy()
        self._index = {item_id: index for index, item_id in enumerate(self.item_ids)}
        self.popular_V = np.argsort(-self.train_count_V, kind="stable")  # most clicked first, ties by index

    def with_items(self, items: Sequence[tuple[str, str]]) -> Catalogue:
        """This catalogue and new items (id, title) after it, without a click.

        Raises
        ------
        ValueError
            An id is there already, or twice among the new ones.
        """
        ids = [item_id for item_id, _ in items]
        taken = sorted({item_id for item_id, n in Counter(ids).items() if n > 1 or item_id in self._index})
        if taken:
            raise ValueError(f"new items: ids that the catalogue holds already, or that occur twice: {taken[:5]}")
        columns = {
            "item_id": [*self.item_ids, *ids],
            "title": [*self.titles, *(title for _, title in items)],
            "train_count": np.concatenate([self.train_count_V, np.zeros(len(ids), np.int32)]),
        }
        return Catalogue(pa.table(columns))

    def __len__(self) -> int:
        return len(self.item_ids)

    def split_known(self, ids: list[str | int]) -> tuple[list[int], list[str | int]]:
        """Indices of the known items in their order, and the ids that are unknown."""
        found = [self._index.get(str(item)) for item in ids]
        known = [index for index in found if index is not None]
        return known, [item for item, index in zip(ids, found, strict=True) if index is None]

    def known_values(self, values: Mapping[str, float]) -> list[tuple[int, float]]:
        """Values by item id as values by index, those of unknown ids left out."""
        return [(self._index[item], value) for item, value in values.items() if item in self._index]

    def label(self, index: int) -> str:
        """What a person reads: the title, or the id of an item without one."""
        return self.titles[index] or self.item_ids[index]

    def search(self, query: str, limit: int) -> list[int]:
        """Items whose title or id contains all words of the query, most clicked first."""
        words = query.casefold().split()
        found: list[int] = []
        for index, text in self._search_texts:
            if all(word in text for word in words):
                found.append(index)
                if len(found) == limit:
                    break
        return found

    @cached_property
    def _search_texts(self) -> list[tuple[int, str]]:
        return [(int(j), f"{self.titles[j] or ''} {self.item_ids[j]}".casefold()) for j in self.popular_V]
