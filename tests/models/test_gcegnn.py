"""GCE-GNN and its graphs against the paper's equations, written with loops over sessions, nodes and edges."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate, pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from llm4sbr_ray.config import ModelConfig
from llm4sbr_ray.models.backbones.gcegnn import GCEGNN, SLOPE, global_graph
from llm4sbr_ray.models.base import pad_sessions

V, D, K, REACH = 8, 6, 3, 2
SESSIONS = [[1, 2, 3, 2, 1, 4], [5], [0, 0, 6], [2, 3, 2, 3, 2], [6, 5, 4, 3], [7]]
TRAIN = [[1, 2, 3, 1], [2, 3, 3, 5], [6, 4, 0, 2], [5, 2], [0], [3, 2, 6, 1, 5, 4]]  # nothing next to item 7
CONFIG = ModelConfig(width=D, dropout=0.0, global_neighbours=K, global_reach=REACH)


def flat(sessions: list[list[int]]) -> tuple[Tensor, Tensor]:
    offsets = [0, *accumulate(len(session) for session in sessions)]
    return torch.tensor([item for session in sessions for item in session], dtype=torch.int64), torch.tensor(offsets)


def naive_graph(sessions: list[list[int]], k: int, reach: int) -> list[list[tuple[int, int]]]:
    """(neighbour, count) of each item, best first."""
    counts: list[Counter[int]] = [Counter() for _ in range(V)]
    for session in sessions:
        for i, item in enumerate(session):
            for j, other in enumerate(session):
                if 0 < abs(i - j) <= reach and item != other:
                    counts[item][other] += 1
    return [sorted(each.items(), key=lambda pair: (-pair[1], pair[0]))[:k] for each in counts]


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, SLOPE * x)


def softmax(logits: list[Tensor]) -> list[Tensor]:
    exps = [torch.exp(logit) for logit in logits]
    return [each / sum(exps[1:], exps[0]) for each in exps]


def naive(model: GCEGNN, session: list[int]) -> tuple[Tensor, Tensor]:
    """(S, vector of the last click)."""
    h = model.item_embedding.weight
    mean = sum((h[item] for item in session), torch.zeros(D, dtype=torch.float64)) / len(session)
    graph = naive_graph(TRAIN, K, REACH)
    steps = set(pairwise(session))
    vectors = {}
    for item in set(session):
        logits, sources = [], []
        for other in set(session):
            came_before, came_after = (other, item) in steps, (item, other) in steps
            if other == item:
                kind = 0
            elif came_before and came_after:
                kind = 3
            elif came_before:
                kind = 1
            elif came_after:
                kind = 2
            else:
                continue
            logits.append(leaky(model.edge_type.weight[kind] @ (h[item] * h[other])))
            sources.append(h[other])
        local = sum((a * source for a, source in zip(softmax(logits), sources, strict=True)), torch.zeros_like(mean))
        mixed, logits = torch.zeros_like(mean), []
        for other, count in graph[item]:
            weight = torch.log(torch.tensor(1.0 + count, dtype=torch.float64))
            inner = model.neighbour_in.weight @ (mean * h[other]) + model.neighbour_count.weight[:, 0] * weight
            logits.append(model.neighbour_attend.weight[0] @ leaky(inner))
        if logits:
            for pi, (other, _) in zip(softmax(logits), graph[item], strict=True):
                mixed = mixed + pi * h[other]
        vectors[item] = local + (model.aggregate.weight @ torch.cat([h[item], mixed])).clamp_min(0)
    read, out = model.readout, torch.zeros_like(mean)
    average = sum((vectors[item] for item in session), torch.zeros_like(mean)) / len(session)
    for i, item in enumerate(session):
        mixed = read.mix_click.weight @ vectors[item] + read.mix_click.bias
        z = torch.tanh(mixed + read.mix_position.weight @ read.position.weight[len(session) - 1 - i])
        inner = read.attend_click.weight @ z + read.attend_click.bias + read.attend_mean.weight @ average
        out = out + (read.attend.weight[0] @ (1 / (1 + torch.exp(-inner)))) * vectors[item]
    return out, vectors[session[-1]]


def gcegnn() -> GCEGNN:
    torch.manual_seed(3)
    model = GCEGNN(V, CONFIG)
    model.fit_graph(*flat(TRAIN))
    return model


def test_vectors_and_gradients_equal_the_equations() -> None:
    model = gcegnn().double()
    with torch.no_grad():
        model.item_embedding.weight *= 3  # so that the softmaxes are far from even
    batch = pad_sessions(SESSIONS, V, 50)
    vectors = model(batch.items_BL, batch.length_B)
    assert vectors.session_BD is vectors.global_BD
    got = [vectors.session_BD, vectors.local_BD]
    wanted = [torch.stack(rows) for rows in zip(*(naive(model, session) for session in SESSIONS), strict=True)]
    weights = torch.randn(2, len(SESSIONS), D, dtype=torch.float64)
    gradients = []
    for both in (got, wanted):
        model.zero_grad()
        (torch.stack(both) * weights).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert gradients[0].keys() == {name for name, _ in model.named_parameters()}
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-8, atol=1e-10, msg=name)


@settings(max_examples=100, deadline=None)
@given(
    sessions=st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=8), min_size=1, max_size=8),
    k=st.integers(1, 4),
    reach=st.integers(1, 9),
)
def test_global_graph_equals_counting(sessions: list[list[int]], k: int, reach: int) -> None:
    item_VK, count_VK = global_graph(*flat(sessions), V, reach, k)
    for item, wanted in enumerate(naive_graph(sessions, k, reach)):
        padded = [*wanted, *[(V, 0)] * (k - len(wanted))]
        assert list(zip(item_VK[item].tolist(), count_VK[item].tolist(), strict=True)) == padded


def test_the_graph_is_kept_in_the_state_dict() -> None:
    model, other = gcegnn().eval(), GCEGNN(V, CONFIG).eval()
    batch = pad_sessions(SESSIONS, V, 50)
    other.load_state_dict(load(save(model.state_dict())))
    torch.testing.assert_close(
        other(batch.items_BL, batch.length_B).session_BD, model(batch.items_BL, batch.length_B).session_BD
    )
    assert other.count_VK.any()


def test_neighbours_in_other_sessions_matter() -> None:
    model = gcegnn().eval()
    batch = pad_sessions(SESSIONS, V, 50)
    before_BD = model(batch.items_BL, batch.length_B).session_BD
    model.fit_graph(*flat([[1, 6, 1, 6]]))
    after_BD = model(batch.items_BL, batch.length_B).session_BD
    assert not torch.allclose(before_BD[0], after_BD[0])
    torch.testing.assert_close(before_BD[5], after_BD[5])  # item 7 has no neighbour either way
