from __future__ import annotations

import re

import pytest
import torch

from llm4sbr_ray.config import ModelConfig, Neighbours
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.base import pad_sessions
from llm4sbr_ray.models.build import build_model, is_count_model, is_llm4sbr, known_models
from llm4sbr_ray.models.llm4sbr import LLM4SBR


@pytest.mark.parametrize("name", known_models())
def test_every_known_model_scores_the_whole_catalogue(name: str) -> None:
    model = build_model(name, 12, ModelConfig(width=4), Neighbours(), ("local",), torch.randn(12, 6)).eval()
    with torch.no_grad():
        assert model.score(pad_sessions([[1, 2], [3]], 12, 50)).shape == (2, 12)
    assert isinstance(model, LLM4SBR) == is_llm4sbr(name)
    assert hasattr(model, "fit") == is_count_model(name)
    assert hasattr(model, "loss") != is_count_model(name)


def test_the_contracts_names_are_known() -> None:
    assert {"popularity", "sknn", "srgnn", "srgnn+llm4sbr"} <= set(known_models())


@pytest.mark.parametrize("name", ["srgn", "srgnn+llm", "+llm4sbr", "popularity+llm4sbr", ""])
def test_unknown_name(name: str) -> None:
    with pytest.raises(UserError, match=f"no model .*known are {re.escape(', '.join(known_models()))}"):
        build_model(name, 12, ModelConfig(), Neighbours())


def test_llm4sbr_needs_texts() -> None:
    with pytest.raises(UserError, match="text embeddings"):
        build_model("srgnn+llm4sbr", 12, ModelConfig(), Neighbours(), ("local",))


def test_the_same_seed_gives_the_same_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(4)
        states.append(build_model("srgnn+llm4sbr", 9, ModelConfig(), Neighbours(), ("local",), torch.ones(9, 3)))
    first, second = (model.state_dict() for model in states)
    assert all(torch.equal(first[name], second[name]) for name in first)
