"""Full softmax and ranks over a catalogue whose item vectors are spread over the workers (`models.row_shards`).

Every worker scores the sessions of all workers against its own items; the workers then add up what a softmax or a rank
needs of the others: a few numbers a session. No worker ever holds the whole table or its gradient.

Shapes, besides those of `models.base`: b this worker's sessions, B those of all workers, n its items.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm4sbr_ray.models.row_shards import RowShards, ShardedEmbedding, blocks

BLOCK_SCORES = 1 << 20  # scores that are made at once, as in models.cross_entropy


class _ShardedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, session_bD: Tensor, row_nD: Tensor, target_b: Tensor, shards: RowShards, smoothing: float
    ) -> Tensor:
        item_nD = _items(row_nD, shards)
        lengths = shards.lengths([len(target_b)] * shards.workers, target_b.device)
        session_BD, target_B = shards.gather(session_bD, lengths), shards.gather(target_b, lengths)
        top_B, total_B = session_BD.new_empty(2, len(session_BD))
        for begin, end in blocks(len(session_BD), len(item_nD), BLOCK_SCORES):
            score_Bn = session_BD[begin:end] @ item_nD.T
            top_B[begin:end] = score_Bn.amax(1)
            total_B[begin:end] = score_Bn.sub_(top_B[begin:end, None]).exp_().sum(1)
        highest_B = shards.reduce(top_B.clone(), dist.ReduceOp.MAX)
        log_total_B = highest_B + shards.reduce(total_B * (top_B - highest_B).exp()).log()
        own_B, place_B = _own_targets(target_B, item_nD, shards)
        wanted_B = shards.reduce((session_BD * item_nD[place_B]).sum(1) * own_B)
        loss_B = log_total_B - (1 - smoothing) * wanted_B
        if smoothing:  # the mean score over all items is the score of the mean item
            mean_D = shards.reduce(item_nD.sum(0)) / (shards.rows - 1)
            loss_B -= smoothing * (session_BD @ mean_D)
        ctx.save_for_backward(session_BD, row_nD, target_B, log_total_B)
        ctx.lengths, ctx.shards, ctx.smoothing = lengths, shards, smoothing
        before = sum(lengths[: shards.rank])
        return loss_B[before : before + len(target_b)].mean()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        session_BD, row_nD, target_B, log_total_B = ctx.saved_tensors
        lengths, shards = ctx.lengths, ctx.shards
        item_nD = _items(row_nD, shards)
        # A session's share of the losses: workers may weigh theirs differently.
        share_W = shards.gather(grad.reshape(1) / lengths[shards.rank], [1] * shards.workers)
        share_B1 = share_W.repeat_interleave(torch.tensor(lengths, device=grad.device))[:, None]
        own_B, place_B = _own_targets(target_B, item_nD, shards)
        grad_session_BD, grad_row_nD = torch.empty_like(session_BD), torch.zeros_like(row_nD)
        for begin, end in blocks(len(session_BD), len(item_nD), BLOCK_SCORES):
            part = slice(begin, end)
            grad_Bn = (session_BD[part] @ item_nD.T).sub_(log_total_B[part, None]).exp_()  # the softmax
            if ctx.smoothing:
                grad_Bn -= ctx.smoothing / (shards.rows - 1)
            grad_Bn.scatter_add_(1, place_B[part, None], (ctx.smoothing - 1) * own_B[part, None])
            grad_Bn *= share_B1[part]
            torch.mm(grad_Bn, item_nD, out=grad_session_BD[part])
            grad_row_nD[: len(item_nD)].addmm_(grad_Bn.T, session_BD[part])
        # The mean over workers, as of all gradients; a worker's sessions have one loss, its own.
        return shards.sum_own(grad_session_BD, lengths), grad_row_nD / shards.workers, None, None, None


def sharded_cross_entropy(
    session_bD: Tensor, table: ShardedEmbedding, target_b: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy of this worker's targets under softmax over all items of all workers (scalar).

    Parameters
    ----------
    session_bD
        This worker's session vectors; all workers call it together, each with at least one.
    table
        V + 1 rows over all workers, the last one the padding.
    target_b
        int64.
    smoothing
        Label smoothing: share of a target's probability that is spread over all items evenly.
    """
    loss: Tensor = _ShardedCrossEntropy.apply(session_bD, table.weight, target_b, table.shards, smoothing)
    return loss


def sharded_ranks(session_bD: Tensor, table: ShardedEmbedding, target_b: Tensor) -> Tensor:
    """`models.ranking.target_ranks` of this worker's sessions (rank_b) among the items of all workers."""
    shards = table.shards
    item_nD = _items(table.weight, shards)
    lengths = shards.lengths([len(target_b)] * shards.workers, target_b.device)
    session_BD, target_B = shards.gather(session_bD, lengths), shards.gather(target_b, lengths)
    own_B, place_B = _own_targets(target_B, item_nD, shards)
    # The target's score has to come from the product that it is compared with: another one may round differently.
    score_Bn = session_BD @ item_nD.T
    wanted_B = torch.where(own_B > 0, score_Bn.gather(1, place_B[:, None])[:, 0], 0)
    lower_B = (score_Bn < shards.reduce(wanted_B)[:, None]).view(torch.uint8).sum(1, dtype=torch.int64)
    before = sum(lengths[: shards.rank])
    return (shards.rows - 1 - shards.reduce(lower_B))[before : before + len(target_b)]


def _items(row_nD: Tensor, shards: RowShards) -> Tensor:
    """This worker's rows without the padding, which is the table's last."""
    return row_nD[: min(shards.own.stop, shards.rows - 1) - shards.own.start]


def _own_targets(target_B: Tensor, item_nD: Tensor, shards: RowShards) -> tuple[Tensor, Tensor]:
    """Whether each target is among this worker's items (1 or 0), and its place there (0 where it is not)."""
    place_B = target_B - shards.own.start
    own_B = (place_B >= 0) & (place_B < len(item_nD))
    return own_B.to(item_nD.dtype), torch.where(own_B, place_B, 0)
