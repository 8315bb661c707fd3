"""Names to models: "popularity", "sknn", "<backbone>" and "<backbone>+llm4sbr"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from llm4sbr_ray.config import ModelConfig, Neighbours
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.backbones import BACKBONES
from llm4sbr_ray.models.base import CountModel, Recommender
from llm4sbr_ray.models.item_links import ItemNeighbours, SequentialRules
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.models.neighbours import SessionKNN
from llm4sbr_ray.models.plain import PlainRecommender
from llm4sbr_ray.models.popularity import Popularity
from llm4sbr_ray.models.stan import STAN
from llm4sbr_ray.models.vmis import VMISKNN

LLM4SBR_SUFFIX = "+llm4sbr"

COUNT_MODELS: dict[str, Callable[[int, Neighbours], CountModel]] = {
    "popularity": lambda n_items, neighbours: Popularity(n_items),
    "itemknn": lambda n_items, neighbours: ItemNeighbours(n_items, neighbours.itemknn),
    "rules": lambda n_items, neighbours: SequentialRules(n_items, neighbours.rules),
    "sknn": SessionKNN,
    "stan": lambda n_items, neighbours: STAN(n_items, neighbours.stan),
    "vmis": lambda n_items, neighbours: VMISKNN(n_items, neighbours.vmis),
}
COUNT_SETTINGS: dict[str, set[str]] = {  # the part of the section `neighbours` that each of them reads
    "popularity": set(),
    "itemknn": {"itemknn"},
    "rules": {"rules"},
    "sknn": {"k", "sample_size", "decay"},
    "stan": {"stan"},
    "vmis": {"vmis"},
}


def known_models() -> list[str]:
    """All names that `build_model` takes."""
    return [*COUNT_MODELS, *BACKBONES, *(name + LLM4SBR_SUFFIX for name in BACKBONES)]


def is_count_model(name: str) -> bool:
    """Whether the model is fitted by counting (`fit`), without gradient steps."""
    return name in COUNT_MODELS


def is_llm4sbr(name: str) -> bool:
    """Whether the model reads LLM intents and the text table."""
    return name.endswith(LLM4SBR_SUFFIX)


def build_model(
    name: str,
    n_items: int,
    config: ModelConfig,
    neighbours: Neighbours,
    anchors: Sequence[Literal["global", "local"]] = (),
    item_text_VE: Tensor | None = None,
) -> Recommender:
    """A new, untrained model; neural weights come from torch's global generator.

    Parameters
    ----------
    name
        One of `known_models()`.
    n_items
        V.
    config, neighbours
        Settings of neural models, and of session-kNN.
    anchors, item_text_VE
        For "<backbone>+llm4sbr" alone: the anchor of each perspective, and the items' text embeddings.

    Raises
    ------
    UserError
        Unknown name, or a "+llm4sbr" model without item texts.
    """
    if name not in known_models():
        raise UserError(f"train.models: no model {name!r}; known are {', '.join(known_models())}")
    if is_count_model(name):
        return COUNT_MODELS[name](n_items, neighbours)
    backbone = BACKBONES[name.removesuffix(LLM4SBR_SUFFIX)](n_items, config)
    if not is_llm4sbr(name):
        return PlainRecommender(backbone)
    if item_text_VE is None:
        raise UserError(f"train.models: {name!r} needs the items' text embeddings: run the perspectives first")
    return LLM4SBR(backbone, item_text_VE, anchors, config)
