"""SR-GNN against the paper's equations written with loops, and its graphs against sets of nodes and edges."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm4sbr_ray.config import ModelConfig
from llm4sbr_ray.models.backbones.srgnn import SRGNN, build_graphs
from llm4sbr_ray.models.base import pad_sessions

V = 7
SESSIONS = [[1, 2, 3, 2, 1, 4], [5], [0, 0, 6], [2, 3, 2, 3, 2], [6, 5, 4, 3]]


def srgnn(steps: int = 1, dropout: float = 0.0) -> SRGNN:
    torch.manual_seed(3)
    return SRGNN(V, ModelConfig(width=6, gnn_steps=steps, dropout=dropout))


def naive(model: SRGNN, session: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """(global, local, session vector) of one session: dense matrices, one node and one click at a time."""
    nodes = sorted(set(session))
    edges = {(nodes.index(u), nodes.index(v)) for u, v in pairwise(session)}
    states = [model.item_embedding.weight[item] for item in nodes]
    for _ in range(model.steps):
        updated = []
        for i, state in enumerate(states):
            before, after = [u for u, v in edges if v == i], [v for u, v in edges if u == i]
            a_in = sum((model.edge_in(states[u]) / len(before) for u in before), torch.zeros_like(state))
            a_out = sum((model.edge_out(states[v]) / len(after) for v in after), torch.zeros_like(state))
            a = torch.cat([a_in + model.bias_in, a_out + model.bias_out])
            wr, wz, wn = (model.cell.weight_ih @ a + model.cell.bias_ih).chunk(3)
            ur, uz, un = (model.cell.weight_hh @ state + model.cell.bias_hh).chunk(3)
            reset, update = 1 / (1 + torch.exp(-wr - ur)), 1 / (1 + torch.exp(-wz - uz))
            candidate = torch.tanh(wn + reset * un)
            updated.append((1 - update) * candidate + update * state)
        states = updated
    last = states[nodes.index(session[-1])]
    long_term = torch.zeros_like(last)
    for item in session:
        click = states[nodes.index(item)]
        inner = model.attend_last.weight @ last + model.attend_last.bias + model.attend_click.weight @ click
        long_term = long_term + (model.attend.weight[0] @ (1 / (1 + torch.exp(-inner)))) * click
    return long_term, last, model.mix.weight @ torch.cat([last, long_term])


@pytest.mark.parametrize("steps", [1, 3])
def test_equals_the_equations_session_by_session(steps: int) -> None:
    model = srgnn(steps).double()
    batch = pad_sessions(SESSIONS, V, 50)
    vectors = model(batch.items_BL, batch.length_B)
    for row, session in enumerate(SESSIONS):
        expected = naive(model, session)
        for got, want in zip((vectors.global_BD, vectors.local_BD, vectors.session_BD), expected, strict=True):
            torch.testing.assert_close(got[row], want, rtol=1e-10, atol=1e-12)


def test_a_session_has_the_same_vectors_alone_and_in_any_batch() -> None:
    model = srgnn().eval()
    whole = pad_sessions([*SESSIONS, list(range(V)) * 3], V, 50)
    together = model(whole.items_BL, whole.length_B)
    for row, session in enumerate(SESSIONS):
        alone = pad_sessions([session], V, 50)
        vectors = model(alone.items_BL, alone.length_B)
        torch.testing.assert_close(vectors.session_BD[0], together.session_BD[row])
        torch.testing.assert_close(vectors.global_BD[0], together.global_BD[row])
        torch.testing.assert_close(vectors.local_BD[0], together.local_BD[row])


def test_order_of_clicks_matters() -> None:
    model = srgnn().eval()
    batch = pad_sessions([[1, 2, 3], [3, 2, 1], [2, 1, 3]], V, 50)
    session_BD = model(batch.items_BL, batch.length_B).session_BD
    assert (session_BD[0] - session_BD[1]).abs().max() > 1e-4
    assert (session_BD[0] - session_BD[2]).abs().max() > 1e-4


def test_padding_has_no_vector_and_gets_no_gradient() -> None:
    model = srgnn()
    batch = pad_sessions(SESSIONS, V, 50)
    model(batch.items_BL, batch.length_B).session_BD.sum().backward()
    gradient = model.item_embedding.weight.grad
    assert gradient is not None
    assert not model.item_embedding.weight[V].any()
    assert not gradient[V].any()
    assert gradient[:V].any(dim=1).all()  # every item occurs in SESSIONS
    assert model.item_vectors().shape == (V, 6)


def test_every_weight_has_the_right_gradient() -> None:
    model = srgnn(steps=2).double()
    batch = pad_sessions(SESSIONS, V, 50)
    parameters = dict(model.named_parameters())
    weights = torch.randn(len(SESSIONS), 6, dtype=torch.float64)
    (model(batch.items_BL, batch.length_B).session_BD * weights).sum().backward()
    got = {name: parameter.grad.clone() for name, parameter in parameters.items() if parameter.grad is not None}
    model.zero_grad()
    sum(naive(model, session)[2] @ weights[row] for row, session in enumerate(SESSIONS)).backward()
    assert got.keys() == parameters.keys()
    for name, parameter in parameters.items():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-8, atol=1e-10)


def test_dropout_acts_in_training_alone() -> None:
    model = srgnn(dropout=0.5)
    batch = pad_sessions(SESSIONS, V, 50)
    first, second = (model(batch.items_BL, batch.length_B).session_BD for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    first, second = (model(batch.items_BL, batch.length_B).session_BD for _ in range(2))
    assert torch.equal(first, second)


@settings(max_examples=150, deadline=None)
@given(
    sessions=st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=9), min_size=1, max_size=6),
    padding=st.integers(0, 3),
)
def test_graphs_hold_exactly_the_clicks(sessions: list[list[int]], padding: int) -> None:
    batch = pad_sessions(sessions, V, 50)
    items_BL = torch.nn.functional.pad(batch.items_BL, (0, padding), value=V)
    graphs = build_graphs(items_BL, batch.length_B, V)
    assert len(graphs.item_M) == sum(len(set(session)) for session in sessions)
    bounds_of = {
        name: [*side.offset_M.tolist(), len(side.node_X)]
        for name, side in (("incoming", graphs.incoming), ("outgoing", graphs.outgoing))
    }
    seen_nodes: set[int] = set()
    for row, session in enumerate(sessions):
        begin = int(graphs.offset_B[row])
        nodes = graphs.node_N[begin : begin + len(session)].tolist()
        assert graphs.item_M[nodes].tolist() == session  # each click finds its item
        assert len(set(nodes)) == len(set(session))
        assert not seen_nodes & set(nodes)  # sessions share no node
        seen_nodes |= set(nodes)
        assert set(graphs.session_N[begin : begin + len(session)].tolist()) == {row}
        assert int(graphs.item_M[graphs.last_B[row]]) == session[-1]
        for node in set(nodes):
            steps = list(pairwise(nodes))
            for side, wanted in (
                ("incoming", {u for u, v in steps if v == node}),
                ("outgoing", {v for u, v in steps if u == node}),
            ):
                bounds = bounds_of[side]
                found = getattr(graphs, side).node_X[bounds[node] : bounds[node + 1]].tolist()
                assert sorted(found) == sorted(wanted)
