"""Item-kNN and sequential rules against their definitions in loops."""

from __future__ import annotations

import math
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm4sbr_ray.config import ItemKNN, Rules
from llm4sbr_ray.models.base import CountModel, pad_sessions
from llm4sbr_ray.models.item_links import ItemNeighbours, SequentialRules

V = 8
Sessions = list[list[int]]
TRAIN = st.lists(st.lists(st.integers(0, V - 1), min_size=2, max_size=7), min_size=1, max_size=12)
ASKED = st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=9), min_size=1, max_size=4)


def fit(model: CountModel, train: Sessions) -> None:
    model.fit(
        torch.tensor([item for session in train for item in session], dtype=torch.int64),
        torch.tensor([0, *accumulate(len(session) for session in train)]),
    )


def naive_rules(train: Sessions, session: list[int], reach: int) -> list[float]:
    scores = [0.0] * V
    for other in train:
        for early in range(len(other)):
            for late in range(early + 1, len(other)):
                if other[early] == session[-1] and late - early <= reach:
                    scores[other[late]] += 1 / (late - early)
    return scores


def naive_item_knn(train: Sessions, session: list[int], reach: int, decay: float) -> list[float]:
    def beside(a: int, b: int, other: list[int]) -> bool:
        places = [(i, j) for i, x in enumerate(other) for j, y in enumerate(other) if x == a and y == b]
        return any(abs(i - j) <= reach for i, j in places)

    steps = {item: len(session) - 1 - position for position, item in enumerate(session)}
    scores = [0.0] * V
    for j in range(V):
        for i, step in steps.items():
            both = sum(beside(i, j, other) for other in train)
            if i != j and both:
                size = sum(i in other for other in train) * sum(j in other for other in train)
                scores[j] += math.exp(-step / decay) * both / math.sqrt(size)
    return scores


@settings(max_examples=100, deadline=None)
@given(train=TRAIN, sessions=ASKED, reach=st.integers(1, 7))
def test_rules_equal_their_definition(train: Sessions, sessions: Sessions, reach: int) -> None:
    model = SequentialRules(V, Rules(reach=reach))
    fit(model, train)
    scores_BV = model.score(pad_sessions(sessions, V, 50))
    for row, session in enumerate(sessions):
        assert scores_BV[row].tolist() == pytest.approx(naive_rules(train, session, reach), abs=1e-5)


@settings(max_examples=100, deadline=None)
@given(train=TRAIN, sessions=ASKED, reach=st.integers(1, 7), decay=st.sampled_from([0.5, 3.0, 50.0]))
def test_item_knn_equals_its_definition(train: Sessions, sessions: Sessions, reach: int, decay: float) -> None:
    model = ItemNeighbours(V, ItemKNN(reach=reach, decay=decay))
    fit(model, train)
    scores_BV = model.score(pad_sessions(sessions, V, 50))
    for row, session in enumerate(sessions):
        assert scores_BV[row].tolist() == pytest.approx(naive_item_knn(train, session, reach, decay), abs=1e-5)


@pytest.mark.parametrize("make", [lambda: SequentialRules(V, Rules()), lambda: ItemNeighbours(V, ItemKNN())])
def test_weights_come_back_whatever_their_number(make: type[CountModel]) -> None:
    model, again = make(), make()
    fit(model, [[0, 1, 2, 1], [3, 1, 4]])
    again.load_state_dict(model.state_dict())
    batch = pad_sessions([[1], [3, 1], [7]], V, 50)
    assert torch.equal(model.score(batch), again.score(batch))


def test_an_unknown_last_item_leaves_popularity() -> None:
    model = SequentialRules(V, Rules())
    fit(model, [[0, 1], [2, 1]])
    assert int(model.score(pad_sessions([[5]], V, 50))[0].argmax()) == 1
