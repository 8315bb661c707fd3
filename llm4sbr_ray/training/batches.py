"""Sample tables to compact tensors, and those to padded batches: no Python loop over rows anywhere.

Shapes, besides those of `models.base`: N samples, C clicks of all their prefixes, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from llm4sbr_ray.models.base import Intents, SessionBatch

SAMPLE_COLUMNS = ["sample_key", "items", "target"]
INTENT_COLUMNS = ["intent_items", "intent_weights", "grounded"]


@dataclass(frozen=True)
class Samples:
    """The samples of a table. Prefixes are held whole and cut to `max_length` when a batch is made."""

    n_items: int  # V
    max_length: int  # the last clicks of a prefix that a batch holds
    items_C: Tensor  # int32
    offset_N1: Tensor  # int64: the prefix of sample i is items_C[offset_N1[i] : offset_N1[i + 1]]
    target_N: Tensor  # int64
    keys_N: pa.ChunkedArray[Any]  # sample_key
    intents: Intents | None = None  # of all N samples, items as int32

    def __len__(self) -> int:
        return len(self.target_N)

    def batch(self, rows_B: Tensor, clicks_B: Tensor | None = None) -> tuple[SessionBatch, Tensor]:
        """The samples of these rows (int64) as a batch padded with V, and their target_B.

        With `clicks_B`, 1 to all clicks of each prefix, it is read up to there and the click after it is the target. An
        answer of the LLM knows the clicks that are left out, so a shortened sample has none.
        """
        begin_B, end_B = self.offset_N1[rows_B], self.offset_N1[rows_B + 1]
        target_B, whole_B = self.target_N[rows_B], None
        if clicks_B is not None:
            next_B = begin_B + clicks_B
            whole_B = next_B == end_B
            next_click_B = self.items_C[next_B.clamp_max(len(self.items_C) - 1)].long()
            target_B, end_B = torch.where(whole_B, target_B, next_click_B), next_B
        length_B = (end_B - begin_B).clamp_max(self.max_length)
        step_L = torch.arange(int(length_B.max()), device=rows_B.device)
        click_BL = (end_B - length_B)[:, None] + step_L
        items_BL = self.items_C[click_BL.clamp_max(len(self.items_C) - 1)].long()
        items_BL = items_BL.masked_fill(step_L >= length_B[:, None], self.n_items)
        intents = None
        if self.intents is not None:
            grounded_BP = self.intents.grounded_BP[rows_B]
            intents = Intents(
                self.intents.item_BPR[rows_B].long(),
                self.intents.weight_BPR[rows_B],
                grounded_BP if whole_B is None else grounded_BP & whole_B[:, None],
            )
        return SessionBatch(items_BL, length_B, intents), target_B

    def seen(self, rows_B: Tensor) -> tuple[Tensor, Tensor]:
        """(row in the batch, item) of every click of these rows' whole prefixes: `seen` of models.ranking."""
        length_B = self.offset_N1[rows_B + 1] - self.offset_N1[rows_B]
        row = torch.repeat_interleave(length_B)
        before_B = length_B.cumsum(0) - length_B
        click = torch.arange(len(row), device=row.device) + (self.offset_N1[rows_B] - before_B)[row]
        return row, self.items_C[click].long()

    def keys(self, rows: Sequence[int]) -> list[str]:
        """Sample keys of a few rows."""
        return [str(self.keys_N[row]) for row in rows]

    def to(self, device: torch.device) -> Samples:
        """The same samples on another device, so that batches are made there."""
        intents = self.intents
        if intents is not None:
            intents = Intents(
                intents.item_BPR.to(device), intents.weight_BPR.to(device), intents.grounded_BP.to(device)
            )
        return replace(
            self,
            items_C=self.items_C.to(device),
            offset_N1=self.offset_N1.to(device),
            target_N=self.target_N.to(device),
            intents=intents,
        )


def samples_from_table(table: pa.Table, n_items: int, max_length: int, perspectives: int = 0) -> Samples:
    """Samples of an Arrow table.

    Parameters
    ----------
    table
        Columns `SAMPLE_COLUMNS`; with `perspectives` also `INTENT_COLUMNS`. Others are ignored.
    n_items
        V.
    max_length
        The last clicks of a prefix that a batch shall hold.
    perspectives
        P, the number of perspectives in the intent columns; 0 leaves intents out.
    """
    items, length_N = _flat(table["items"])
    intents = None
    if perspectives:
        shape = (len(table), perspectives, -1) if len(table) else (0, perspectives, 0)
        intents = Intents(
            torch.from_numpy(_flat(table["intent_items"])[0].astype(np.int32)).reshape(shape),
            torch.from_numpy(_flat(table["intent_weights"])[0].astype(np.float32)).reshape(shape),
            torch.from_numpy(_flat(table["grounded"])[0].astype(np.bool_)).reshape(shape[:2]),
        )
    return Samples(
        n_items,
        max_length,
        torch.from_numpy(items.astype(np.int32)),
        torch.from_numpy(np.concatenate([[0], length_N.cumsum(dtype=np.int64)])),
        torch.from_numpy(table["target"].to_numpy().astype(np.int64)),
        table["sample_key"],
        intents,
    )


def join_samples(parts: Sequence[Samples]) -> Samples:
    """Samples of several tables of one split, in this order; at least one part."""
    first = parts[0]
    starts = np.cumsum([0, *(len(part.items_C) for part in parts)]).tolist()
    intents = None
    if first.intents is not None:
        all_intents = [part.intents for part in parts if part.intents is not None and len(part)]
        intents = Intents(
            torch.cat([i.item_BPR for i in all_intents] or [first.intents.item_BPR]),
            torch.cat([i.weight_BPR for i in all_intents] or [first.intents.weight_BPR]),
            torch.cat([i.grounded_BP for i in all_intents] or [first.intents.grounded_BP]),
        )
    return replace(
        first,
        items_C=torch.cat([part.items_C for part in parts]),
        offset_N1=torch.cat(
            [part.offset_N1[:-1] + start for part, start in zip(parts, starts, strict=False)]
            + [torch.tensor(starts[-1:])]
        ),
        target_N=torch.cat([part.target_N for part in parts]),
        keys_N=pa.chunked_array([chunk for part in parts for chunk in part.keys_N.chunks], type=pa.string()),
        intents=intents,
    )


def _flat(column: pa.ChunkedArray[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Values of a list column, all rows one after the other, and the length of each row."""
    values = pc.list_flatten(column).to_numpy()
    return values, pc.list_value_length(column).to_numpy().astype(np.int64)
