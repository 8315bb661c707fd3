"""Full-softmax cross-entropy over a catalogue that never holds the B x V scores at once.

Scores are made a few sessions at a time, and at once turned into their gradient and its products: a block stays in the
processor's cache, is written over rather than kept, and no second or third matrix of that size is allocated and filled.
Same arithmetic as `F.cross_entropy(session_BD @ item_VD.T, target_B)` (tested), in three matrix products as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_SCORES = 1 << 20  # scores of a block: 4 MB in float32
MIN_ROWS = 16  # fewer make slow matrix products


class _CatalogueCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, session_BD: Tensor, item_VD: Tensor, target_B: Tensor) -> Tensor:
        with_gradient = any(ctx.needs_input_grad)
        V = len(item_VD)
        rows = max(MIN_ROWS, BLOCK_SCORES // V)
        loss = session_BD.new_zeros(())
        grad_session_BD = torch.empty_like(session_BD) if with_gradient else None
        grad_item_VD = torch.zeros_like(item_VD) if with_gradient else None
        buffer = session_BD.new_empty(min(rows, len(session_BD)), V)
        for begin in range(0, len(session_BD), rows):
            session_bD, target_b1 = session_BD[begin : begin + rows], target_B[begin : begin + rows, None]
            block_bV = torch.mm(session_bD, item_VD.T, out=buffer[: len(session_bD)])
            block_bV -= block_bV.amax(1, keepdim=True)
            target_score = block_bV.gather(1, target_b1).sum()
            total_b1 = block_bV.exp_().sum(1, keepdim=True)
            loss += total_b1.log().sum() - target_score
            if grad_session_BD is not None and grad_item_VD is not None:
                block_bV /= total_b1  # the softmax; less the target it is the gradient of the scores
                block_bV.scatter_add_(1, target_b1, block_bV.new_full((len(target_b1), 1), -1))
                torch.mm(block_bV, item_VD, out=grad_session_BD[begin : begin + rows])
                grad_item_VD.addmm_(block_bV.T, session_bD)
        ctx.save_for_backward(grad_session_BD, grad_item_VD)
        return loss / len(session_BD)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_session_BD, grad_item_VD = ctx.saved_tensors
        scale = grad / len(grad_session_BD)
        return grad_session_BD * scale, grad_item_VD * scale, None


def catalogue_cross_entropy(session_BD: Tensor, item_VD: Tensor, target_B: Tensor) -> Tensor:
    """Mean cross-entropy of the targets under softmax(session . item) over all items (scalar).

    Parameters
    ----------
    session_BD
        Session vectors.
    item_VD
        Item vectors.
    target_B
        int64.
    """
    loss: Tensor = _CatalogueCrossEntropy.apply(session_BD, item_VD, target_B)
    return loss
