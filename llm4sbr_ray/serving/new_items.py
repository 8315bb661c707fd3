"""Items that have come since the bundle was exported: known by their titles alone, recommendable at once.

Nobody has clicked them, so the model has no vector of theirs. They get what a linear map makes of their text: the one
that, by least squares, takes the texts of the clicked items to their trained vectors (attribute-to-feature mapping,
Gantner et al., ICDM 2010). A click on a new item is read as one on the item whose text is nearest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from llm4sbr_ray.config import Text
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.perspectives.localisation import FloatArray
from llm4sbr_ray.perspectives.text_encoder import TextEncoder
from llm4sbr_ray.serving.types import MAX_ID_CHARS

RIDGE, MAX_WEIGHT = 1.0, 50
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
    text_NE: Tensor
    nearest_N: list[int]  # the known item that each is read as when it is clicked


def encode_titles(titles: Sequence[str], text: Text) -> FloatArray:
    """N x E; loads the text encoder for this once."""
    return TextEncoder(text).encode(titles)


@torch.inference_mode()
def place(title_NE: FloatArray, model: LLM4SBR, clicks_V: NDArray[np.int32]) -> Placed:
    """Vectors of items that are known by the embedding of their title.

    An item counts in the map as often as it was clicked, at most `MAX_WEIGHT` times: few clicks fix no vector.
    """
    text_VE, title = model.item_text_VE, torch.from_numpy(title_NE)
    with_one_VF = torch.cat([text_VE, torch.ones(len(text_VE), 1)], dim=1)
    weight_V1 = torch.tensor(clicks_V).clamp_max(MAX_WEIGHT)[:, None] * text_VE.any(dim=1, keepdim=True)
    weighted_VF = with_one_VF * weight_V1
    gram_FF = weighted_VF.T @ with_one_VF + RIDGE * torch.eye(with_one_VF.shape[1])
    map_FD = torch.linalg.solve(gram_FF, weighted_VF.T @ model.backbone.item_vectors())
    vector_ND = torch.cat([title, torch.ones(len(title), 1)], dim=1) @ map_FD
    return Placed(vector_ND, title, (title @ text_VE.T).argmax(dim=1).tolist())
