"""Tables whose rows are spread over the workers of a training: each holds some, and asks the others for the rest.

A worker sends each other one the rows' numbers that it needs, every one once, and gets the rows back; gradients go the
same way in reverse. What travels follows from the batch, not from the catalogue.

Shapes, besides those of `models.base`: W workers, N rows of a table, n those of one worker, M distinct rows asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class RowShards:
    """Which rows of a table of N each worker holds: parts that follow each other and differ by one row at most."""

    rows: int  # N
    rank: int
    workers: int  # W
    group: Any  # the process group, of its own: its messages never wait for those of DistributedDataParallel

    @property
    def bounds(self) -> list[int]:
        """W + 1 row numbers: worker w holds those from bounds[w] up to, not including, bounds[w + 1]."""
        return [self.rows * worker // self.workers for worker in range(self.workers + 1)]

    @property
    def own(self) -> slice:
        """The rows of this worker."""
        return slice(*self.bounds[self.rank : self.rank + 2])

    def fetch(self, own_nD: Tensor, index: Tensor, padding: int | None = None, sparse: bool = False) -> Any:
        """Rows of the whole table, wherever they are. All workers call it together.

        Parameters
        ----------
        own_nD
            This worker's rows.
        index
            int64, any shape: row numbers of the whole table.
        padding
            The row that gets no gradient.
        sparse
            Whether the gradient of `own_nD` is made of the rows asked for.

        Returns
        -------
        row_MD, place
            The distinct rows, and `index` as positions in them. Gradients that reach `own_nD` are the mean over
            workers, as those that DistributedDataParallel averages.
        """
        index_M, place = index.unique(return_inverse=True)
        bounds_W1 = torch.tensor(self.bounds, device=index.device)
        asked = torch.searchsorted(index_M, bounds_W1).diff().tolist()
        wanted = self.lengths(asked, index.device)
        number_K = exchange(index_M, asked, wanted, self.group) - self.own.start
        own_padding = None if padding is None or not self._holds(padding) else padding - self.own.start
        row_KD = F.embedding(number_K, own_nD, own_padding, sparse=sparse)
        return _Exchange.apply(row_KD, wanted, asked, self.group), place

    def lengths(self, mine: list[int], device: torch.device) -> list[int]:
        """What each worker tells this one: `mine` is what this one tells each."""
        told_W = torch.tensor(mine, device=device)
        ones = [1] * self.workers
        return list(exchange(told_W, ones, ones, self.group).tolist())

    def gather(self, value: Tensor, lengths: list[int]) -> Tensor:
        """`value` of all workers one after the other, that of worker w with `lengths[w]` rows; no gradient."""
        copies = value.repeat(self.workers, *[1] * (value.ndim - 1))
        return exchange(copies, [len(value)] * self.workers, lengths, self.group)

    def sum_own(self, value: Tensor, lengths: list[int]) -> Tensor:
        """The reverse of `gather`: this worker's rows of a value, summed over what all workers have of it."""
        mine = lengths[self.rank]
        parts = exchange(value, lengths, [mine] * self.workers, self.group)
        return parts.view(self.workers, mine, *value.shape[1:]).sum(0)

    def reduce(self, value: Tensor, how: Any = dist.ReduceOp.SUM) -> Tensor:
        """Over all workers, in place."""
        dist.all_reduce(value, how, group=self.group)
        return value

    def _holds(self, row: int) -> bool:
        return row in range(*self.bounds[self.rank : self.rank + 2])


class ShardedEmbedding(nn.Embedding):
    """An `nn.Embedding` of which this worker holds some rows: `weight` is them alone.

    Parameters
    ----------
    table
        The whole embedding, the same on every worker; its rows are copied.
    shards
        Of as many rows as it has.
    """

    def __init__(self, table: nn.Embedding, shards: RowShards) -> None:
        own_nD = table.weight.detach()[shards.own].clone()
        super().__init__(len(own_nD), own_nD.shape[1], sparse=table.sparse, _weight=own_nD)
        self.shards, self.whole_padding = shards, table.padding_idx

    def forward(self, index: Tensor) -> Tensor:
        row_MD, place = self.shards.fetch(self.weight, index, self.whole_padding, self.sparse)
        return F.embedding(place, row_MD)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return exchange(value, sent, received, group)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return exchange(grad.contiguous(), ctx.received, ctx.sent, ctx.group) / len(ctx.sent), None, None, None


def exchange(value: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
    """Rows to and from every worker: `sent[w]` of `value`, in order, go to worker w, and `received[w]` come from it."""
    assert [sum(sent), len(sent)] == [len(value), len(received)], "as many rows as are told"
    found = value.new_empty(sum(received), *value.shape[1:])
    dist.all_to_all_single(found, value.contiguous(), received, sent, group=group)
    return found


def blocks(rows: int, columns: int, at_once: int) -> list[tuple[int, int]]:
    """(begin, end) of parts of `rows` rows, so that each has at most `at_once` values, or one row."""
    step = max(1, at_once // max(1, columns))
    return list(pairwise([*range(0, rows, step), rows]))
