"""Adam for dense gradients and SparseAdam for those made of rows, as one optimizer.

SparseAdam is Adam that leaves alone the rows that a step doesn't touch, their moments included. Weight decay is the L2
penalty of Adam, as in SR-GNN; of an embedding with row-wise gradients it decays the rows of a step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llm4sbr_ray.config import TrainConfig
from llm4sbr_ray.models.row_shards import ShardedEmbedding
from llm4sbr_ray.training.checkpoint import Tensors, optimizer_tensors, restore_optimizer
from llm4sbr_ray.training.workers import sum_over_workers


class AdamOfBoth:
    """Of a model's parameters; an `nn.Embedding` that is `sparse` has row-wise gradients."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self._model, self._config = model, config
        self._tables = [part.weight for part in model.modules() if isinstance(part, nn.Embedding) and part.sparse]
        self._apart = [part.weight for part in model.modules() if isinstance(part, ShardedEmbedding)]
        dense = [value for value in model.parameters() if not any(value is table for table in self._tables)]
        rate = config.learning_rate
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.Adam(dense, lr=rate, weight_decay=config.weight_decay, fused=True)
        ]
        if self._tables:
            self._parts.append(torch.optim.SparseAdam(self._tables, lr=rate))

    def zero_grad(self) -> None:
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    @torch.no_grad()
    def clip(self) -> Tensor:
        """Scale all gradients to a norm of at most `clip_norm`; returns the norm that they had (scalar)."""
        for table in self._tables:
            assert table.grad is not None
            table.grad = table.grad.coalesce()  # rows that occur several times are added up
        alike: list[Tensor] = []
        apart: list[Tensor] = []
        for value in self._model.parameters():
            if value.grad is not None:
                gradient = value.grad._values() if value.grad.is_sparse else value.grad
                (apart if any(value is table for table in self._apart) else alike).append(gradient)
        norm = nn.utils.get_total_norm(alike)
        if apart:  # rows that other workers don't have: the norm is over those of all, the same on every worker
            norm = (norm**2 + sum_over_workers(nn.utils.get_total_norm(apart) ** 2)).sqrt()
        torch._foreach_mul_(alike + apart, (self._config.clip_norm / (norm + 1e-6)).clamp_max(1))
        return norm

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update all parameters. After `clip`."""
        for table in self._tables:
            assert table.grad is not None
            table.grad._values().add_(table[table.grad._indices()[0]], alpha=self._config.weight_decay)
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()

    def tensors(self) -> Tensors:
        """The state, as "<parameter's name>.<key>"."""
        return {name: value for part in self._parts for name, value in optimizer_tensors(part, self._model).items()}

    def restore(self, tensors: Tensors) -> None:
        """The reverse of `tensors`."""
        for part in self._parts:
            restore_optimizer(part, self._model, tensors)
