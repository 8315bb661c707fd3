"""Settings of the models: text encoder, networks, counts, memories."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llm4sbr_ray.config.section import Bounds, Section


class Text(Section):
    """Text encoder and intent localisation."""

    model: str = "all-MiniLM-L6-v2"  # this one ships with the package; else any sentence-transformers name or path
    actors: Bounds = (1, 1)  # of the encoder
    device: Literal["auto", "gpu", "cpu"] = "auto"  # auto: a GPU for each actor where the cluster has any
    batch_size: int = Field(default=128, ge=1)
    columns: tuple[str, ...] = ()  # of the catalogue: their texts follow title and attributes, as a description does
    max_text_chars: int = Field(default=256, ge=8)
    localised_items: int = Field(default=5, ge=1, le=50)  # r
    localisation: Literal["nearest", "exact_first"] = "nearest"  # exact_first: a title's own item and no other
    min_cosine: float = Field(default=0.35, ge=-1, le=1)  # below it an answer is "ungrounded"


class ModelConfig(Section):
    """Sizes and rules of the neural models."""

    width: int = Field(default=100, ge=4)
    max_length: int = Field(default=50, ge=1)  # the last clicks that the backbone sees
    dropout: float = Field(default=0.2, ge=0, lt=1)
    gnn_steps: int = Field(default=1, ge=1)
    attention_layers: int = Field(default=2, ge=1)  # of sasrec and hstu
    attention_heads: int = Field(default=2, ge=1)  # of sasrec and hstu; a divisor of width
    gru_layers: int = Field(default=1, ge=1)  # of gru4rec
    global_neighbours: int = Field(default=12, ge=1)  # of gcegnn: items next to each in the graph of all sessions
    global_reach: int = Field(default=3, ge=1)  # of gcegnn: clicks at most this far apart are neighbours (epsilon)
    hypergraph_layers: int = Field(default=3, ge=1)  # of dhcn
    self_supervision: float = Field(default=0.01, ge=0)  # of dhcn: weight of its loss between both channels
    fusion: Literal["average", "gate", "residual"] = "residual"  # chosen on validation, see docs/results.md
    text_start: bool = True  # LLM4SBR's item embeddings start from the item texts, in the space of the perspectives
    text_spread: float = Field(default=3.0, gt=0)  # of the item vectors at that start, in units of the backbone's own
    text_smoothing: float = Field(default=0.2, ge=0, lt=1)  # share of a target's probability for items with like texts
    alignment: float = Field(default=0.1, ge=0)  # lambda
    uniformity: float = Field(default=0.1, ge=0)
    predictor: float = Field(default=0.1, ge=0)  # weight of the intent predictor's loss


class Rules(Section):
    """Sequential rules."""

    reach: int = Field(default=3, ge=1)  # clicks at most this far apart make a rule, of weight 1 / distance


class ItemKNN(Section):
    """Item-kNN."""

    reach: int = Field(default=50, ge=1)  # clicks further apart are not counted as seen together
    decay: float = Field(default=3.0, gt=0)  # the click i steps before the last counts exp(-i / decay)


class Stan(Section):
    """STAN: session-kNN with three decay factors; a decay of 0 leaves its factor away."""

    k: int = Field(default=200, ge=1)
    sample_size: int = Field(default=1000, ge=1)  # most recent candidate sessions considered
    click_decay: float = Field(default=3.0, ge=0)  # clicks: the one i steps before the last counts exp(-i / decay)
    recency_decay: float = Field(default=0.0, ge=0)  # share of the train sessions; only where they are in time order
    item_decay: float = Field(default=2.0, ge=0)  # clicks between a neighbour's item and the shared click


class Vmis(Section):
    """VMIS-kNN."""

    k: int = Field(default=100, ge=1)
    m: int = Field(default=1000, ge=1)  # most recent sessions an item in the index, and candidates considered
    decay: float = Field(default=0.0, ge=0)  # the click i steps before the last counts exp(-i / decay); 0: linearly
    idf: float = Field(default=1.0, ge=0)  # power of the idf factor; 0 leaves it away


class Neighbours(Section):
    """The models that count: session-kNN (V-SkNN), and the others in sections of their own."""

    k: int = Field(default=100, ge=1)
    sample_size: int = Field(default=1000, ge=1)  # most recent candidate sessions considered
    decay: float = Field(default=3.0, ge=0)  # lambda of the position decay; 0 = plain S-kNN
    rules: Rules = Rules()
    itemknn: ItemKNN = ItemKNN()
    stan: Stan = Stan()
    vmis: Vmis = Vmis()


class MemoryConfig(Section):
    """What a "+memory" model weighs its network together with (models/memory.py); its parts' settings: `neighbours`."""

    parts: tuple[Literal["itemknn", "rules", "sknn", "stan", "vmis"], ...] = ("rules", "stan", "itemknn")
    max_samples: int = Field(default=20_000, ge=1)  # validation samples that the weights are fitted to
