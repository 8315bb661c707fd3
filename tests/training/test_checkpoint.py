"""Checkpoints: written and read without loss, and an optimizer that goes on as if never stopped."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llm4sbr_ray.training.checkpoint import (
    Checkpoint,
    Counters,
    from_bytes,
    optimizer_tensors,
    restore_optimizer,
    to_bytes,
)


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 1))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=1e-3, fused=True)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        torch.manual_seed(step)
        loss: Tensor = model(torch.randn(8, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_training_goes_on_from_bytes_as_if_never_stopped() -> None:
    unbroken = network()
    optimizer = adam(unbroken)
    steps(unbroken, optimizer, 0, 3)
    counters = Counters(2, 1, 0.25, [{"epoch": 1, "loss": 1.5}, {"epoch": 2, "loss": 1.25}])
    best = {name: value.clone() for name, value in unbroken.state_dict().items()}
    data = to_bytes(Checkpoint(counters, unbroken.state_dict(), best, optimizer_tensors(optimizer, unbroken)))
    steps(unbroken, optimizer, 3, 6)

    read = from_bytes(data)
    assert read.counters == counters
    resumed = network()
    resumed.load_state_dict(read.last)
    optimizer = adam(resumed)
    restore_optimizer(optimizer, resumed, read.optimizer)
    steps(resumed, optimizer, 3, 6)
    for name, value in unbroken.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)
        assert torch.equal(read.best[name], best[name])


def test_the_first_counters_survive() -> None:
    empty = Checkpoint(Counters(), {}, {}, {})
    assert from_bytes(to_bytes(empty)) == empty
