from __future__ import annotations

import torch

from llm4sbr_ray.models.base import pad_sessions
from llm4sbr_ray.models.popularity import Popularity


def test_scores_are_click_counts_whatever_the_session() -> None:
    model = Popularity(5)
    model.fit(torch.tensor([1, 1, 3, 0, 1]), torch.tensor([0, 2, 5]))
    scores_BV = model.score(pad_sessions([[1], [2, 4]], 5, 50))
    assert scores_BV.tolist() == [[1, 3, 0, 1, 0]] * 2
    assert scores_BV.dtype == torch.float32


def test_state_loads() -> None:
    model, other = Popularity(3), Popularity(3)
    model.fit(torch.tensor([2, 2, 0]), torch.tensor([0, 3]))
    other.load_state_dict(model.state_dict())
    assert other.count_V.tolist() == [1, 0, 2]
