"""STAN and VMIS-kNN against their definitions in loops."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import accumulate

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm4sbr_ray.config import Stan, Vmis
from llm4sbr_ray.models.base import CountModel, pad_sessions
from llm4sbr_ray.models.stan import STAN
from llm4sbr_ray.models.vmis import VMISKNN

V = 9
Sessions = list[list[int]]
TRAIN = st.lists(st.lists(st.integers(0, V - 2), min_size=2, max_size=6), min_size=1, max_size=14)
SESSIONS = st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=13), min_size=1, max_size=4)


def fitted(model: CountModel, train: Sessions) -> CountModel:
    model.fit(
        torch.tensor([item for session in train for item in session], dtype=torch.int64),
        torch.tensor([0, *accumulate(len(session) for session in train)]),
    )
    return model


def factor(distance: float, decay: float) -> float:
    return math.exp(-distance / decay) if decay else 1.0


def last_steps(session: list[int]) -> dict[int, int]:
    return {item: len(session) - 1 - position for position, item in enumerate(session)}


def nearest(similar: dict[int, float], k: int) -> list[int]:
    """The k most similar; of those equal in float32 the later."""
    return sorted(similar, key=lambda t: (np.float32(similar[t]), t), reverse=True)[:k]


def naive_stan(train: Sessions, session: list[int], config: Stan) -> list[float]:
    step = last_steps(session)
    recent = [t for t in range(len(train)) if set(train[t]) & set(session)][-config.sample_size :]
    similar = {}
    for t in recent:
        shared = sum(factor(step[j], config.click_decay) for j in set(train[t]) & set(session))
        cosine = shared / math.sqrt(len(set(session)) * len(set(train[t])))
        similar[t] = cosine * factor((len(train) - 1 - t) / len(train), config.recency_decay)
    scores = [0.0] * V
    for t in nearest(similar, config.k):
        place = {item: position for position, item in enumerate(train[t])}
        anchor = next(item for item in reversed(session) if item in place)
        for item, position in place.items():
            scores[item] += similar[t] * factor(abs(position - place[anchor]), config.item_decay)
    return scores


def naive_vmis(train: Sessions, session: list[int], config: Vmis) -> list[float]:
    step = last_steps(session)
    similar: dict[int, float] = {}
    for t in [t for t in range(len(train)) if set(train[t]) & set(session)][-config.m :]:
        for item in set(train[t]) & set(session):
            linear = (len(session) - step[item]) / len(session)
            weight = factor(step[item], config.decay) if config.decay else linear
            similar[t] = similar.get(t, 0.0) + weight
    scores = [0.0] * V
    for t in nearest(similar, config.k):
        latest = min(step[item] for item in set(train[t]) & set(session))
        for item in set(train[t]):
            holding = sum(item in other for other in train)
            idf = math.log(len(train) / holding) ** config.idf
            scores[item] += similar[t] * max(0.0, 1 - 0.1 * (latest + 1)) * idf
    return scores


@settings(max_examples=100, deadline=None)
@given(
    train=TRAIN,
    sessions=SESSIONS,
    k=st.integers(1, 5),
    sample_size=st.integers(1, 8),
    decays=st.tuples(*[st.sampled_from([0.0, 0.7, 3.0])] * 3),
)
def test_stan_equals_its_definition(
    train: Sessions, sessions: Sessions, k: int, sample_size: int, decays: tuple[float, float, float]
) -> None:
    click, recency, item = decays
    config = Stan(k=k, sample_size=sample_size, click_decay=click, recency_decay=recency, item_decay=item)
    scores_BV = fitted(STAN(V, config), train).score(pad_sessions(sessions, V, 50))
    for row, session in enumerate(sessions):
        assert scores_BV[row].tolist() == pytest.approx(naive_stan(train, session, config), abs=2e-5)


@settings(max_examples=100, deadline=None)
@given(
    train=TRAIN,
    sessions=SESSIONS,
    k=st.integers(1, 5),
    m=st.integers(1, 8),
    decay=st.sampled_from([0.0, 1.5]),
    idf=st.sampled_from([0.0, 1.0, 2.0]),
)
def test_vmis_equals_its_definition(
    train: Sessions, sessions: Sessions, k: int, m: int, decay: float, idf: float
) -> None:
    config = Vmis(k=k, m=m, decay=decay, idf=idf)
    scores_BV = fitted(VMISKNN(V, config), train).score(pad_sessions(sessions, V, 50))
    for row, session in enumerate(sessions):
        assert scores_BV[row].tolist() == pytest.approx(naive_vmis(train, session, config), rel=1e-5, abs=2e-5)


@pytest.mark.parametrize("make", [lambda: STAN(V, Stan(k=7)), lambda: VMISKNN(V, Vmis(k=7))])
def test_scores_are_the_same_in_any_batch_and_after_loading(make: Callable[[], CountModel]) -> None:
    rng = random.Random(0)
    train = [[rng.randrange(V) for _ in range(rng.randint(2, 6))] for _ in range(60)]
    model, fresh = fitted(make(), train), make()
    fresh.load_state_dict(model.state_dict())
    sessions = [[rng.randrange(V) for _ in range(rng.randint(1, 9))] for _ in range(20)]
    together = model.score(pad_sessions(sessions, V, 50))
    assert torch.equal(together, fresh.score(pad_sessions(sessions, V, 50)))
    for row, session in enumerate(sessions):
        assert torch.equal(model.score(pad_sessions([session], V, 50))[0], together[row])
    assert not make().score(pad_sessions([[1, 2]], V, 50)).any()  # unfitted
