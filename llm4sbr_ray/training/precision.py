"""Mixed precision: the network's matrix products in bfloat16, everything that is compared or added up in float32.

Weights, gradients, optimizer, scores over the catalogue and losses stay in float32, and bfloat16 has float32's range of
exponents: no loss scaling is needed (Kalamkar et al., "A Study of BFLOAT16 for Deep Learning Training", 2019).
Validation, and whoever loads the weights, computes in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.models.plain import PlainRecommender


def set_precision(model: LLM4SBR | PlainRecommender, precision: Literal["float32", "bfloat16"]) -> None:
    """Let the dense parts of a model train in this precision. They give float32 vectors to the losses.

    Parameters
    ----------
    model
        Changed in place, where the precision is not float32.
    precision
        Of the products in training mode.
    """
    if precision == "float32":
        return
    parts: list[nn.Module] = [model.backbone]
    if isinstance(model, LLM4SBR):
        parts += [model.text_projection, model.predictor, model.fusion]
    for part in parts:
        part.forward = _in_bfloat16(part)  # type: ignore[method-assign]  # a module's own, beside its class's


def _in_bfloat16(part: nn.Module) -> Callable[..., Any]:
    forward = part.forward

    def autocast_forward(*inputs: Any) -> Any:
        device = next(part.parameters()).device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=part.training):
            return _float32(forward(*inputs))

    return autocast_forward


def _float32(value: Any) -> Any:
    """A tensor, or a dataclass of tensors."""
    if isinstance(value, Tensor):
        return value.float()
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: _float32(getattr(value, each.name)) for each in fields(value)})
    return value
