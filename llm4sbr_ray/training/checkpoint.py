"""The state of a training after an epoch, as one safetensors file: tensors, and counters in its header.

One file, so that a kill leaves a whole checkpoint or none. Never pickle: a checkpoint from elsewhere can hold
wrong numbers, but it can't run code.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

CHECKPOINT_FILE = "checkpoint.safetensors"

Tensors = dict[str, Tensor]
Record = dict[str, Any]  # one epoch: {"epoch", "loss", loss parts, validation metrics, "seconds", ...}


@dataclass
class Counters:
    """Where a training stands. The random numbers of an epoch follow from seed and epoch alone."""

    epoch: int = 0  # epochs done
    best_epoch: int = 0  # 0: none yet
    best_score: float = float("-inf")
    history: list[Record] = field(default_factory=list)

    def stale(self) -> int:
        """Epochs since the best one."""
        return self.epoch - self.best_epoch


@dataclass
class Checkpoint:
    counters: Counters
    last: Tensors  # the model after the last epoch
    best: Tensors  # the model after the best epoch
    optimizer: Tensors  # "<parameter's name>.<key>"


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> Tensors:
    """The state of an optimizer over some of `model.parameters()`; its whole numbers as int64 tensors."""
    return {
        f"{name}.{key}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Tensors) -> None:
    """The reverse of `optimizer_tensors`; what belongs to other parameters is left alone."""
    numbers = {parameter: i for i, parameter in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    number = {name: numbers[parameter] for name, parameter in model.named_parameters() if parameter in numbers}
    state: dict[int, dict[str, Tensor | int]] = {}
    for key, value in tensors.items():
        parameter, _, slot = key.rpartition(".")
        if parameter in number:
            state.setdefault(number[parameter], {})[slot] = value if value.is_floating_point() else int(value)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def to_bytes(checkpoint: Checkpoint) -> bytes:
    """The content of `CHECKPOINT_FILE`."""
    groups = {"last": checkpoint.last, "best": checkpoint.best, "optimizer": checkpoint.optimizer}
    tensors = {
        f"{group}/{name}": value.detach().cpu().contiguous()
        for group, part in groups.items()
        for name, value in part.items()
    }
    return bytes(save(tensors, metadata={"counters": json.dumps(asdict(checkpoint.counters))}))


def from_bytes(data: bytes) -> Checkpoint:
    """The reverse of `to_bytes`."""
    groups: dict[str, Tensors] = {"last": {}, "best": {}, "optimizer": {}}
    for key, value in load(data).items():
        group, _, name = key.partition("/")
        groups[group][name] = value
    # safetensors reads metadata from paths alone. The format: the header's length in 8 bytes, then JSON.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return Checkpoint(Counters(**json.loads(header["__metadata__"]["counters"])), **groups)
