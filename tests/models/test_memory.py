"""Network and memory weighed together, against the definition in a loop in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from llm4sbr_ray.config import MemoryConfig, ModelConfig, Neighbours
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.base import pad_sessions
from llm4sbr_ray.models.build import build_model
from llm4sbr_ray.models.memory import EPSILON, MemoryRecommender

V = 9
TRAIN = [[4, 5, 7], [0, 1, 2], [0, 1, 3], [4, 5], [1, 2, 6]] * 2  # the last tenth is one session


def texts(n: int = V) -> Tensor:
    rows = torch.randn(n, 5, generator=torch.Generator().manual_seed(4))
    rows[3] = 0  # without text
    return torch.nn.functional.normalize(rows, dim=1)


def with_memory(*parts: str, name: str = "srgnn+text+memory") -> MemoryRecommender:
    torch.manual_seed(3)
    memory = MemoryConfig(parts=parts)  # type: ignore[arg-type]
    model = build_model(name, V, ModelConfig(width=4), Neighbours(), ["global"], texts(), memory).eval()
    assert isinstance(model, MemoryRecommender)
    offsets = torch.tensor([0, *(len(session) for session in TRAIN)]).cumsum(0)
    model.fit_counts(torch.tensor([item for session in TRAIN for item in session]), offsets)
    return model


def naive_rules(session: list[int], reach: int = 3) -> list[float]:
    scores = [0.0] * V
    for other in TRAIN:
        for early, item in enumerate(other):
            for late in range(early + 1, min(len(other), early + reach + 1)):
                if item == session[-1]:
                    scores[other[late]] += 1 / (late - early)
    return scores


def naive_counted(scores: list[float], session: list[int]) -> list[float]:
    kept = [0.0 if item in session else score for item, score in enumerate(scores)]
    return [math.log(1 + score / sum(kept) / EPSILON) if sum(kept) else 0.0 for score in kept]


def naive_clicks(sessions: Sequence[list[int]]) -> list[float]:
    return [math.log(1 + sum(session.count(item) for session in sessions)) for item in range(V)]


def naive_cosines(session: list[int], text_VE: Tensor) -> list[float]:
    rows = text_VE.double().tolist()
    total = [sum(rows[item][e] for item in session) for e in range(len(rows[0]))]
    norm = math.sqrt(sum(x * x for x in total))
    return [sum(a * b for a, b in zip(row, total, strict=True)) / norm if norm else 0.0 for row in rows]


@torch.no_grad()
def test_score_equals_its_definition() -> None:
    model = with_memory("rules")
    assert model.components == ("network", "held", "rules", "popular", "popular lately", "texts")
    one, longest = [0.3, -2.0, 0.7, -0.2, 0.4, 1.5], [0.5, -1.0, 0.1, 0.2, 0.0, 2.5]
    model.weight_2C.copy_(torch.tensor([one, longest]))
    sessions = [[0, 1], [2, 1, 0], [8], [1, 1, 4], [3], [6, 7] * 25]
    batch = pad_sessions(sessions, V, 50)
    scores_BV, network_BV = model.score(batch), model.network.score(batch).double()
    for row, session in enumerate(sessions):
        parts = [
            network_BV[row].tolist(),
            [float(item in session) for item in range(V)],
            naive_counted(naive_rules(session), session),
            naive_clicks(TRAIN),
            naive_clicks(TRAIN[-1:]),
            naive_cosines(session, texts()),
        ]
        along = math.log(len(session)) / math.log(50)
        weights = [a + (b - a) * along for a, b in zip(one, longest, strict=True)]
        wanted = [sum(w * part[item] for w, part in zip(weights, parts, strict=True)) for item in range(V)]
        torch.testing.assert_close(scores_BV[row], torch.tensor(wanted), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_new_one_scores_as_its_network_and_what_no_session_shows_counts_nothing() -> None:
    model = with_memory("rules", "stan", "itemknn", "sknn", "vmis", name="srgnn+memory")
    assert "texts" not in model.components  # the network reads none
    batch = pad_sessions([[8], [0, 1]], V, 50)  # 8 was never clicked
    torch.testing.assert_close(model.score(batch), model.network.score(batch))
    counted_CBV = torch.stack(list(model.features(batch))[2:7])
    assert not counted_CBV[:, 0].any()
    assert not counted_CBV[:, 1, [0, 1]].any()
    torch.testing.assert_close(((counted_CBV[:, 1].exp() - 1) * EPSILON).sum(1), torch.ones(5))


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    model = with_memory("rules", "stan")
    model.weight_2C.fill_(0.25)
    alone, beside = pad_sessions([[0, 1]], V, 50), pad_sessions([[0, 1], [3, 4, 5, 6]], V, 50)
    torch.testing.assert_close(model.score(alone)[0], model.score(beside)[0])


@torch.no_grad()
def test_more_items_have_texts_and_no_clicks() -> None:
    model = with_memory("rules", "stan")
    model.weight_2C.fill_(0.5)
    batch, text_NE = pad_sessions([[0, 1], [5]], V, 50), texts(4)[[0, 2]]
    more = model.with_items(text_NE)
    network_BV = model.network.score(batch)
    wider_BV = torch.cat([network_BV, torch.tensor([[1.0, 2.0], [3.0, 4.0]])], dim=1)
    _, memory_BV = model.split(network_BV, batch)
    network_wider_BV, memory_wider_BV = more.split(wider_BV, batch)
    torch.testing.assert_close(network_wider_BV, wider_BV * 0.5)
    torch.testing.assert_close(memory_wider_BV[:, :V], memory_BV)
    wanted = [
        [0.5 * naive_cosines(session, torch.cat([texts(), text_NE]))[j] for j in (V, V + 1)]
        for session in ([0, 1], [5])
    ]
    torch.testing.assert_close(memory_wider_BV[:, V:], torch.tensor(wanted))
    assert model.split(network_BV, batch)[1].shape == (2, V)  # itself as it was


@pytest.mark.parametrize("name", ["srgnn+llm4sbr", "srgnn+text+memory", "srgnn+llm4sbr+memory"])
def test_a_model_that_holds_texts_asks_for_them(name: str) -> None:
    with pytest.raises(UserError, match="needs the items' text embeddings"):
        build_model(name, V, ModelConfig(width=4), Neighbours(), ["global"])
