"""What the loop asks of its fellow workers, through torch.distributed; alone, the answers are its own."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

TEXT_BYTES = 1024  # a gathered text is cut to this


def rank() -> int:
    return int(dist.get_rank()) if dist.is_initialized() else 0


def world_size() -> int:
    return int(dist.get_world_size()) if dist.is_initialized() else 1


def sum_over_workers(value: Tensor) -> Tensor:
    """The same sum on every worker."""
    if dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
    return value


def can_reduce_rows() -> bool:
    """Whether workers can add up gradients that are made of rows: NCCL adds dense ones alone."""
    return not dist.is_initialized() or dist.get_backend() != "nccl"


def own_share(rows_N: Tensor) -> Tensor:
    """This worker's part of rows that all workers have in common: parts follow each other, and differ by one row."""
    n, workers = len(rows_N), world_size()
    return rows_N[n * rank() // workers : n * (rank() + 1) // workers]


def gather_text(text: str, device: torch.device) -> list[str]:
    """The text of each worker, by rank: sent as bytes, since gathering objects would pickle them."""
    if not dist.is_initialized():
        return [text]
    own = torch.tensor(list(text.encode()[:TEXT_BYTES].ljust(TEXT_BYTES)), dtype=torch.uint8, device=device)
    everyone = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(everyone, own)
    return [bytes(one.tolist()).decode(errors="replace").rstrip() for one in everyone]
