"""V-SkNN against its definition in loops."""

from __future__ import annotations

import math
import random
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm4sbr_ray.config import Neighbours
from llm4sbr_ray.models.base import pad_sessions
from llm4sbr_ray.models.neighbours import SessionKNN

V = 9
Sessions = list[list[int]]


def fitted(train: Sessions, config: Neighbours) -> SessionKNN:
    model = SessionKNN(V, config)
    model.fit(
        torch.tensor([item for session in train for item in session], dtype=torch.int64),
        torch.tensor([0, *accumulate(len(session) for session in train)]),
    )
    return model


def naive(train: Sessions, session: list[int], config: Neighbours) -> list[float]:
    weight, step = {}, {}
    for position, item in enumerate(session):
        step[item] = len(session) - 1 - position
        weight[item] = math.exp(-step[item] / config.decay) if config.decay else 1.0
    candidates = [t for t, other in enumerate(train) if set(other) & set(session)]
    candidates = sorted(candidates, reverse=True)[: config.sample_size]
    similar = []
    for t in candidates:
        shared = set(train[t]) & set(session)
        similarity = sum(weight[j] for j in shared) / math.sqrt(len(set(session)) * len(set(train[t])))
        similar.append((similarity, t, min(step[j] for j in shared)))
    # The model's weights are float32: similarities that differ by rounding alone are equal.
    similar.sort(key=lambda found: (round(found[0], 5), found[1]), reverse=True)
    scores = [0.0] * V
    for similarity, t, latest in similar[: config.k]:
        for item in set(train[t]):
            scores[item] += similarity * (max(0.0, 1 - 0.1 * latest) if config.decay else 1.0)
    return scores


@settings(max_examples=120, deadline=None)
@given(
    train=st.lists(st.lists(st.integers(0, V - 1), min_size=2, max_size=6), min_size=1, max_size=14),
    sessions=st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=14), min_size=1, max_size=4),
    k=st.integers(1, 5),
    sample_size=st.integers(1, 8),
    decay=st.sampled_from([0.0, 1.5, 3.0]),
)
def test_equals_the_definition(train: Sessions, sessions: Sessions, k: int, sample_size: int, decay: float) -> None:
    config = Neighbours(k=k, sample_size=sample_size, decay=decay)
    scores_BV = fitted(train, config).score(pad_sessions(sessions, V, 50))
    for row, session in enumerate(sessions):
        assert scores_BV[row].tolist() == pytest.approx(naive(train, session, config), abs=2e-5)


def test_a_known_case() -> None:
    model = fitted([[0, 1, 2], [3, 4], [1, 5]], Neighbours(decay=0))
    scores = model.score(pad_sessions([[1]], V, 50))[0]
    assert scores[5] == pytest.approx(1 / math.sqrt(2), abs=1e-5)
    assert scores[0] == scores[2] == pytest.approx(1 / math.sqrt(3), abs=1e-5)
    assert float(scores[3]) == pytest.approx(0, abs=1e-6)


def test_later_clicks_weigh_more() -> None:
    model = fitted([[0, 1], [2, 3]], Neighbours(decay=3))
    scores = model.score(pad_sessions([[0, 2], [2, 0]], V, 50))
    assert scores[0, 3] > scores[0, 1]
    assert scores[1, 1] > scores[1, 3]


def test_popularity_breaks_ties() -> None:
    model = fitted([[0, 1], [0, 2], [2, 3], [2, 4]], Neighbours())
    unknown = model.score(pad_sessions([[8]], V, 50))[0]  # shares no item with any session
    assert unknown.argmax() == 2
    assert unknown[0] > unknown[1] == unknown[4] > unknown[8]


def test_scores_are_the_same_in_any_batch_and_on_every_call() -> None:
    rng = random.Random(0)
    train = [[rng.randrange(V) for _ in range(rng.randint(2, 6))] for _ in range(60)]
    model = fitted(train, Neighbours(k=7, sample_size=20))
    sessions = [[rng.randrange(V) for _ in range(rng.randint(1, 9))] for _ in range(20)]
    together = model.score(pad_sessions(sessions, V, 50))
    assert torch.equal(together, model.score(pad_sessions(sessions, V, 50)))
    for row, session in enumerate(sessions):
        assert torch.equal(model.score(pad_sessions([session], V, 50))[0], together[row])


def test_state_loads_into_a_model_that_was_never_fitted() -> None:
    trained = fitted([[0, 1, 2], [3, 4], [1, 5]], Neighbours())
    fresh = SessionKNN(V, Neighbours())
    fresh.load_state_dict(trained.state_dict())
    batch = pad_sessions([[1], [3, 4]], V, 50)
    assert torch.equal(fresh.score(batch), trained.score(batch))


def test_an_unfitted_model_scores_all_items_equal() -> None:
    assert not SessionKNN(V, Neighbours()).score(pad_sessions([[1, 2]], V, 50)).any()
