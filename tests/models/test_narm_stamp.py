"""NARM and STAMP against their papers' equations, written with loops over sessions and clicks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llm4sbr_ray.config import ModelConfig
from llm4sbr_ray.models.backbones.narm import NARM
from llm4sbr_ray.models.backbones.stamp import STAMP
from llm4sbr_ray.models.base import pad_sessions

V = 7
SESSIONS = [[1, 2, 3, 2, 1, 4], [5], [0, 0, 6], [2, 3, 2, 3, 2], [6, 5, 4, 3]]
CONFIG = ModelConfig(width=6, dropout=0.0)


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def naive_narm(model: NARM, session: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    gru = dict(model.gru.named_parameters())
    state, states = torch.zeros(6, dtype=torch.float64), []
    for item in session:
        x = model.item_embedding.weight[item]
        wr, wz, wn = (gru["weight_ih_l0"] @ x + gru["bias_ih_l0"]).chunk(3)
        ur, uz, un = (gru["weight_hh_l0"] @ state + gru["bias_hh_l0"]).chunk(3)
        keep, candidate = sigmoid(wz + uz), torch.tanh(wn + sigmoid(wr + ur) * un)
        state = keep * state + (1 - keep) * candidate
        states.append(state)
    purpose = torch.zeros_like(state)
    for each in states:
        alpha = model.attend.weight[0] @ sigmoid(model.attend_last.weight @ state + model.attend_click.weight @ each)
        purpose = purpose + alpha * each
    return state, purpose, model.decode.weight @ torch.cat([state, purpose])


def naive_stamp(model: STAMP, session: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    x = [model.item_embedding.weight[item] for item in session]
    mean = sum(x[1:], x[0]) / len(x)
    memory = torch.zeros_like(mean)
    for each in x:
        inner = model.attend_click.weight @ each + model.attend_last.weight @ x[-1] + model.attend_mean.weight @ mean
        memory = memory + (model.attend.weight[0] @ sigmoid(inner + model.attend_click.bias)) * each
    h_s = torch.tanh(model.memory.weight @ memory + model.memory.bias)
    h_t = torch.tanh(model.last.weight @ x[-1] + model.last.bias)
    return h_s, h_t, h_s * h_t


@pytest.mark.parametrize(("backbone", "naive"), [(NARM, naive_narm), (STAMP, naive_stamp)])
def test_vectors_and_gradients_equal_the_equations(backbone, naive) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(3)
    model = backbone(V, CONFIG).double()
    batch = pad_sessions(SESSIONS, V, 50)
    vectors = model(batch.items_BL, batch.length_B)
    got = [vectors.global_BD, vectors.local_BD, vectors.session_BD]
    wanted = [torch.stack(rows) for rows in zip(*(naive(model, session) for session in SESSIONS), strict=True)]
    weights = torch.randn(3, len(SESSIONS), 6, dtype=torch.float64)
    gradients = []
    for three in (got, wanted):
        model.zero_grad()
        (torch.stack(three) * weights).sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-8, atol=1e-10, msg=name)


def test_stamp_scores_are_the_trilinear_product() -> None:
    torch.manual_seed(3)
    model = STAMP(V, CONFIG)
    batch = pad_sessions(SESSIONS, V, 50)
    vectors = model(batch.items_BL, batch.length_B)
    scores_BV = vectors.session_BD @ model.item_vectors().T
    expected_BV = torch.einsum("bd,bd,vd->bv", vectors.global_BD, vectors.local_BD, model.item_embedding.weight[:V])
    torch.testing.assert_close(scores_BV, expected_BV)


def test_stamp_knows_the_last_click_and_no_other_order() -> None:
    torch.manual_seed(3)
    model = STAMP(V, CONFIG)
    batch = pad_sessions([[1, 2, 3], [2, 1, 3], [3, 2, 1]], V, 50)
    session_BD = model(batch.items_BL, batch.length_B).session_BD
    torch.testing.assert_close(session_BD[0], session_BD[1])
    assert (session_BD[0] - session_BD[2]).abs().max() > 1e-4
