"""Names to models: "popularity", "sknn", ..., "<backbone>", and a backbone with suffixes.

"<backbone>+llm4sbr" is the method; "<backbone>+text" the backbone alone, its item embeddings started from the item
texts (what of the gain is that?); a neural model that ends in "+memory" also weighs counts (`models.memory`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from llm4sbr_ray.config import MemoryConfig, ModelConfig, Neighbours
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.backbones import BACKBONES
from llm4sbr_ray.models.base import CountModel, Recommender
from llm4sbr_ray.models.item_links import ItemNeighbours, SequentialRules
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.models.memory import MemoryRecommender
from llm4sbr_ray.models.neighbours import SessionKNN
from llm4sbr_ray.models.plain import PlainRecommender
from llm4sbr_ray.models.popularity import Popularity
from llm4sbr_ray.models.stan import STAN
from llm4sbr_ray.models.vmis import VMISKNN

LLM4SBR_SUFFIX, TEXT_SUFFIX, MEMORY_SUFFIX = "+llm4sbr", "+text", "+memory"

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
    """Names that `build_model` takes; "+text" and "+memory" make more of them."""
    return [*COUNT_MODELS, *BACKBONES, *(name + LLM4SBR_SUFFIX for name in BACKBONES)]


def require_known(name: str, setting: str = "train.models") -> None:
    """Check the name of a model.

    Raises
    ------
    UserError
        There is no such model.
    """
    network = without_memory(name)
    known = network in known_models() or network.removesuffix(TEXT_SUFFIX) in BACKBONES
    if not known or (has_memory(name) and is_count_model(network)):
        raise UserError(
            f"{setting}: no model {name!r}; known are {', '.join(known_models())}, a backbone with {TEXT_SUFFIX}, and "
            f"a neural model with {MEMORY_SUFFIX}"
        )


def is_count_model(name: str) -> bool:
    """Whether the model is fitted by counting (`fit`), without gradient steps."""
    return name in COUNT_MODELS


def is_llm4sbr(name: str) -> bool:
    """Whether the model reads LLM intents and the text table."""
    return without_memory(name).endswith(LLM4SBR_SUFFIX)


def reads_texts(name: str) -> bool:
    """Whether the model needs the text table, for its start at least."""
    return is_llm4sbr(name) or without_memory(name).endswith(TEXT_SUFFIX)


def needs_text_table(name: str) -> bool:
    """Whether the built model holds the items' texts: "+text" alone starts from them and then knows them no more."""
    return is_llm4sbr(name) or (reads_texts(name) and has_memory(name))


def backbone_of(name: str) -> str:
    """The name without its suffixes; of a count model its own."""
    return without_memory(name).removesuffix(LLM4SBR_SUFFIX).removesuffix(TEXT_SUFFIX)


def has_memory(name: str) -> bool:
    """Whether the model is a trained network weighed together with counts."""
    return name.endswith(MEMORY_SUFFIX)


def without_memory(name: str) -> str:
    """The network of a "+memory" model; every other model itself."""
    return name.removesuffix(MEMORY_SUFFIX)


def build_model(
    name: str,
    n_items: int,
    config: ModelConfig,
    neighbours: Neighbours,
    anchors: Sequence[Literal["global", "local"]] = (),
    item_text_VE: Tensor | None = None,
    memory: MemoryConfig | None = None,
) -> Recommender:
    """A new, untrained model; neural weights come from torch's global generator.

    Parameters
    ----------
    name
        As `require_known` takes it.
    n_items
        V.
    config, neighbours
        Settings of neural models, and of session-kNN.
    anchors, item_text_VE
        The anchor of each perspective, and the items' text embeddings, where `needs_text_table`.
    memory
        Which count models a "+memory" model weighs in; None: the defaults.

    Raises
    ------
    UserError
        Unknown name, or a model that needs item texts without them.
    """
    require_known(name)
    if needs_text_table(name) and item_text_VE is None:
        raise UserError(f"train.models: {name!r} needs the items' text embeddings: run the perspectives first")
    if has_memory(name):
        network = build_model(without_memory(name), n_items, config, neighbours, anchors, item_text_VE)
        memory = memory or MemoryConfig()
        counts: dict[str, CountModel] = {part: COUNT_MODELS[part](n_items, neighbours) for part in memory.parts}
        return MemoryRecommender(
            network, counts, n_items, config.max_length, item_text_VE if needs_text_table(name) else None
        )
    if is_count_model(name):
        return COUNT_MODELS[name](n_items, neighbours)
    backbone = BACKBONES[backbone_of(name)](n_items, config)
    if not is_llm4sbr(name):
        return PlainRecommender(backbone)
    assert item_text_VE is not None  # said above
    return LLM4SBR(backbone, item_text_VE, anchors, config)
