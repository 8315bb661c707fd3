"""Groups of different lengths as flat tensors: what the models that count are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from llm4sbr_ray.models.base import SessionBatch


def distinct_clicks(batch: SessionBatch, n_items: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row, item and steps before the last click (of its latest one) of distinct items; their number a row."""
    B, L = batch.items_BL.shape
    step_BL = batch.length_B[:, None] - 1 - torch.arange(L, device=batch.length_B.device)
    row, position = torch.nonzero(step_BL >= 0, as_tuple=True)
    key_Q, click = torch.unique(row * n_items + batch.items_BL[row, position], return_inverse=True)
    step_Q = torch.full_like(key_Q, L).scatter_reduce_(0, click, step_BL[row, position], "amin")
    row_Q, item_Q = split_key(key_Q, n_items)
    return row_Q, item_Q, step_Q, torch.bincount(row_Q, minlength=B)


def split_key(key: Tensor, base: int) -> tuple[Tensor, Tensor]:
    return key // base, key % base


def group_offsets(group: Tensor, n_groups: int) -> Tensor:
    """Where each group begins in a tensor sorted by group, n_groups + 1."""
    return torch.nn.functional.pad(torch.bincount(group, minlength=n_groups).cumsum(0), (1, 0))


def rank_in_group(group: Tensor) -> Tensor:
    """0, 1, 2, ... within each run of equal values."""
    _, size = torch.unique_consecutive(group, return_counts=True)
    begin = size.cumsum(0) - size
    return torch.arange(len(group), device=group.device) - torch.repeat_interleave(begin, size)


def expand(begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """All (entry, position) with begin[entry] <= position < end[entry]."""
    size = end - begin
    entry = torch.repeat_interleave(torch.arange(len(size), device=size.device), size)
    first = size.cumsum(0) - size
    return entry, torch.arange(len(entry), device=size.device) - first[entry] + begin[entry]
