"""GRU4Rec against the equations of its unit, one session and one click at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llm4sbr_ray.config import ModelConfig
from llm4sbr_ray.models.backbones.gru4rec import GRU4Rec
from llm4sbr_ray.models.base import pad_sessions

V, D = 7, 6
SESSIONS = [[5], [1, 2, 3, 2, 1, 4], [0, 0, 6], [2, 3, 2, 3, 2], [6, 5, 4, 3]]  # not in the order of their lengths


def naive(model: GRU4Rec, session: list[int]) -> tuple[Tensor, Tensor]:
    """(global, local) of one session."""
    inputs = [model.item_embedding.weight[item] for item in session]
    for layer in range(model.gru.num_layers):
        weight_in, weight_state, bias_in, bias_state = model.gru.all_weights[layer]
        state, states = torch.zeros(D, dtype=torch.float64), []
        for x in inputs:
            r_in, z_in, n_in = (weight_in @ x + bias_in).chunk(3)
            r_state, z_state, n_state = (weight_state @ state + bias_state).chunk(3)
            reset, update = 1 / (1 + torch.exp(-r_in - r_state)), 1 / (1 + torch.exp(-z_in - z_state))
            state = (1 - update) * torch.tanh(n_in + reset * n_state) + update * state
            states.append(state)
        inputs = states
    mean = sum(inputs, torch.zeros(D, dtype=torch.float64)) / len(inputs)
    return mean, model.output.weight @ inputs[-1] + model.output.bias


@pytest.mark.parametrize("layers", [1, 2])
def test_equals_the_equations_session_by_session(layers: int) -> None:
    torch.manual_seed(3)
    model = GRU4Rec(V, ModelConfig(width=D, dropout=0.0, gru_layers=layers)).double()
    batch = pad_sessions(SESSIONS, V, 50)
    vectors = model(batch.items_BL, batch.length_B)
    for row, session in enumerate(SESSIONS):
        long_term, last = naive(model, session)
        torch.testing.assert_close(vectors.global_BD[row], long_term, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(vectors.local_BD[row], last, rtol=1e-9, atol=1e-11)
    assert vectors.session_BD is vectors.local_BD
