"""SASRec against the equations of its paper, one session, one head and one click at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from llm4sbr_ray.config import ModelConfig
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.backbones.sasrec import SASRec
from llm4sbr_ray.models.base import pad_sessions

V, D = 7, 6
SESSIONS = [[1, 2, 3, 2, 1, 4], [5], [0, 0, 6], [2, 3, 2, 3, 2], [6, 5, 4, 3]]


def sasrec(max_length: int = 50, **config: int) -> SASRec:
    torch.manual_seed(3)
    settings = ModelConfig(width=D, dropout=0.0, max_length=max_length, **config)  # type: ignore[arg-type]
    model = SASRec(V, settings).double()
    for parameter in model.parameters():  # biases and norms start at 0 and 1, where mistakes would not show
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / torch.sqrt((centred**2).mean() + 1e-5) * layer.weight + layer.bias


def naive(model: SASRec, session: list[int]) -> tuple[Tensor, Tensor]:
    """(global, local) of one session."""
    positions = model.position_embedding.weight
    clicks = [
        model.item_embedding.weight[item] * math.sqrt(D) + positions[min(len(session) - 1 - i, len(positions) - 1)]
        for i, item in enumerate(session)
    ]
    for block in model.blocks:
        attention, heads = block.attention, block.attention.heads
        K = D // heads
        rows = [attention.project_in.weight @ norm(block.norm_attention, x) + attention.project_in.bias for x in clicks]
        attended = []
        for i in range(len(rows)):
            mixed = []
            for h in range(heads):
                own = slice(h * K, (h + 1) * K)
                query, keys, values = (
                    rows[i][:D][own],
                    [r[D : 2 * D][own] for r in rows],
                    [r[2 * D :][own] for r in rows],
                )
                weights = [torch.exp(query @ keys[j] / math.sqrt(K)) for j in range(i + 1)]
                mixed.append(sum(w * values[j] for j, w in enumerate(weights)) / sum(weights))
            attended.append(attention.project_out.weight @ torch.cat(mixed) + attention.project_out.bias)
        clicks = [x + a for x, a in zip(clicks, attended, strict=True)]
        inner = [(block.inner.weight @ norm(block.norm_forward, x) + block.inner.bias).clamp_min(0) for x in clicks]
        clicks = [x + block.outer.weight @ y + block.outer.bias for x, y in zip(clicks, inner, strict=True)]
    clicks = [norm(model.norm, x) for x in clicks]
    return sum(clicks, torch.zeros(D).double()) / len(clicks), clicks[-1]


@pytest.mark.parametrize(("layers", "heads", "max_length"), [(1, 1, 50), (2, 3, 50), (2, 2, 3)])
def test_equals_the_equations_session_by_session(layers: int, heads: int, max_length: int) -> None:
    model = sasrec(max_length, attention_layers=layers, attention_heads=heads)
    batch = pad_sessions(SESSIONS, V, 50)
    vectors = model(batch.items_BL, batch.length_B)
    for row, session in enumerate(SESSIONS):
        long_term, last = naive(model, session)
        torch.testing.assert_close(vectors.global_BD[row], long_term, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(vectors.local_BD[row], last, rtol=1e-9, atol=1e-11)
    assert vectors.session_BD is vectors.local_BD


def test_heads_must_share_out_the_width() -> None:
    with pytest.raises(UserError, match=r"model\.attention_heads: 4 heads .* model\.width 6"):
        sasrec(attention_heads=4)
