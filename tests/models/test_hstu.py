"""HSTU against the equations of its paper, one session, one head and one click at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from llm4sbr_ray.config import ModelConfig
from llm4sbr_ray.models.backbones.hstu import HSTU
from llm4sbr_ray.models.base import pad_sessions

V, D = 7, 6
SESSIONS = [[1, 2, 3, 2, 1, 4], [5], [0, 0, 6], [2, 3, 2, 3, 2], [6, 5, 4, 3]]


def hstu(layers: int, heads: int, max_length: int) -> HSTU:
    torch.manual_seed(3)
    settings = ModelConfig(width=D, dropout=0.0, max_length=max_length, attention_layers=layers, attention_heads=heads)
    model = HSTU(V, settings).double()
    for parameter in model.parameters():  # biases and norms start at 0 and 1, where mistakes would not show
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / torch.sqrt((centred**2).mean() + 1e-5) * layer.weight + layer.bias


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def naive(model: HSTU, session: list[int], max_length: int) -> tuple[Tensor, Tensor]:
    """(global, local) of one session."""
    clicks = [model.item_embedding.weight[item] * math.sqrt(D) for item in session]
    for unit in model.units:
        K = D // unit.heads
        parts = [
            silu(unit.project_in.weight @ norm(unit.norm_in, x) + unit.project_in.bias).split(D) for x in clicks
        ]  # gates, values, queries, keys
        updated = []
        for i, x in enumerate(clicks):
            mixed = []
            for h in range(unit.heads):
                own, total = slice(h * K, (h + 1) * K), torch.zeros(K, dtype=torch.float64)
                for j in range(i + 1):
                    bias = unit.distance_bias.weight[min(i - j, max_length - 1), h]
                    total = total + silu(parts[i][2][own] @ parts[j][3][own] + bias) / max_length * parts[j][1][own]
                mixed.append(total)
            gated = norm(unit.norm_out, torch.cat(mixed)) * parts[i][0]
            updated.append(x + unit.project_out.weight @ gated + unit.project_out.bias)
        clicks = updated
    clicks = [norm(model.norm, x) for x in clicks]
    return sum(clicks, torch.zeros(D).double()) / len(clicks), clicks[-1]


@pytest.mark.parametrize(("layers", "heads", "max_length"), [(1, 1, 50), (2, 3, 50), (2, 2, 3)])
def test_equals_the_equations_session_by_session(layers: int, heads: int, max_length: int) -> None:
    model = hstu(layers, heads, max_length)
    batch = pad_sessions(SESSIONS, V, 50)
    vectors = model(batch.items_BL, batch.length_B)
    for row, session in enumerate(SESSIONS):
        long_term, last = naive(model, session, max_length)
        torch.testing.assert_close(vectors.global_BD[row], long_term, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(vectors.local_BD[row], last, rtol=1e-9, atol=1e-11)
    assert vectors.session_BD is vectors.local_BD
