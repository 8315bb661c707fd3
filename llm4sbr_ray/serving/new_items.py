"""Items that have come since the bundle was exported: known by their titles alone, recommendable at once.

Nobody has clicked them, so the model has no vector of theirs. They get the mean of the vectors of the R catalogue items
whose texts are nearest, weighted as an LLM's answer is localised (ours); one that resembles nothing gets its projected
text. A click on one is read as a click on the nearest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from llm4sbr_ray.config import Text
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.perspectives.localisation import FloatArray, localise
from llm4sbr_ray.perspectives.text_encoder import TextEncoder
from llm4sbr_ray.serving.types import MAX_ID_CHARS

MAX_NEW_ITEMS = 10_000  # beyond: export again


class NewItem(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    item_id: str = Field(min_length=1, max_length=MAX_ID_CHARS)
    title: str = Field(min_length=1)


class IngressConfig(BaseModel):
    """`user_config` of the ingress."""

    model_config = ConfigDict(extra="forbid")

    new_items: tuple[NewItem, ...] = Field(max_length=MAX_NEW_ITEMS)


@dataclass(frozen=True)
class Placed:
    """Where N new items stand among the known ones; they are items V..V+N-1."""

    vector_ND: Tensor
    nearest_N: list[int]  # the known item that each is read as when it is clicked


def encode_titles(titles: Sequence[str], text: Text) -> FloatArray:
    """N x E; loads the text encoder for this once."""
    return TextEncoder(text).encode(titles)


@torch.inference_mode()
def place(title_NE: FloatArray, model: LLM4SBR, text: Text) -> Placed:
    """Vectors of items that are known by the embedding of their title."""
    found = localise(title_NE, model.item_text_VE.numpy(), text.localised_items, text.min_cosine)
    neighbour_NRD = model.backbone.item_vectors()[torch.from_numpy(found.item_NR).long()]
    mean_ND = (torch.from_numpy(found.weight_NR)[..., None] * neighbour_NRD).sum(1)
    text_ND = model.text_projection(torch.from_numpy(title_NE))
    vector_ND = torch.where(torch.from_numpy(found.grounded_N)[:, None], mean_ND, text_ND)
    return Placed(vector_ND, found.item_NR[:, 0].tolist())
