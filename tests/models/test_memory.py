"""The mixture of network and counts against its definition in a loop."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llm4sbr_ray.config import MemoryConfig, ModelConfig, Neighbours
from llm4sbr_ray.models.base import SessionBatch, pad_sessions
from llm4sbr_ray.models.build import build_model
from llm4sbr_ray.models.memory import MemoryRecommender

V = 9
TRAIN = [[0, 1, 2], [0, 1, 3], [4, 5], [1, 2, 6]]


def mixture(*parts: str) -> MemoryRecommender:
    torch.manual_seed(3)
    memory = MemoryConfig(parts=parts, lengths=(2,))  # type: ignore[arg-type]
    model = build_model("srgnn+memory", V, ModelConfig(width=4), Neighbours(), memory=memory).eval()
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


def normalised(scores: list[float], left_out: list[int]) -> list[float]:
    kept = [0.0 if item in left_out else score for item, score in enumerate(scores)]
    return [score / sum(kept) if sum(kept) else 0.0 for score in kept]


@torch.no_grad()
def test_mixture_equals_its_definition() -> None:
    model = mixture("rules")
    model.weight_GC.copy_(torch.tensor([[0.3, 0.2, 0.5], [0.1, 0.8, 0.1]]))
    sessions = [[0, 1], [2, 1, 0], [8], [1, 1, 4]]
    batch = pad_sessions(sessions, V, 50)
    scores_BV = model.score(batch)
    network_BV: Tensor = model.network.score(batch)
    for row, session in enumerate(sessions):
        power = [math.exp(score) for score in network_BV[row].double().tolist()]
        network, new, rules = (
            normalised(power, []),
            normalised(power, session),
            normalised(naive_rules(session), session),
        )
        x, y, z = (0.3, 0.2, 0.5) if len(session) <= 2 else (0.1, 0.8, 0.1)
        wanted = [x * a + y * b + z * c for a, b, c in zip(network, new, rules, strict=True)]
        torch.testing.assert_close(scores_BV[row], torch.tensor(wanted), rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_a_new_mixture_is_its_network_and_what_no_session_shows_has_no_mass() -> None:
    model = mixture("rules", "stan", "itemknn", "sknn", "vmis")
    batch = pad_sessions([[7], [0, 1]], V, 50)  # 7 was never clicked
    torch.testing.assert_close(model.score(batch), model.network.score(batch).softmax(1))
    counted = torch.stack(list(model.distributions(batch)))[2:]
    assert not counted[:, 0].any()
    torch.testing.assert_close(counted[:, 1].sum(1), torch.ones(5))
    assert not counted[:, 1, [0, 1]].any()


def test_padding_changes_nothing() -> None:
    model = mixture("rules", "stan")
    model.weight_GC.fill_(0.25)
    alone, beside = pad_sessions([[0, 1]], V, 50), pad_sessions([[0, 1], [3, 4, 5, 6]], V, 50)
    with torch.no_grad():
        torch.testing.assert_close(model.score(alone)[0], model.score(beside)[0])
    assert isinstance(alone, SessionBatch)
