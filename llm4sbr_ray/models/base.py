"""What every model is: tensors in, scores out.

Shape legend, used all over the package: B batch, L session length, D width, V catalogue, P perspectives,
R localised items, E width of the text embeddings.

Items are 0..V-1 everywhere, so that ``scores_BV[:, j]`` is item j. Sessions are padded at the end with V.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm4sbr_ray.models.row_shards import ShardedEmbedding


@dataclass
class Intents:
    """Localised answers of an LLM for a batch of sessions (design, section 3: localisation)."""

    item_BPR: Tensor  # int64, item_idx of the r best catalogue items of each answer
    weight_BPR: Tensor  # float32, their cosines normalised to sum 1
    grounded_BP: Tensor  # bool; False: no usable answer, the intent predictor stands in


@dataclass
class SessionBatch:
    """A batch of sessions, in click order."""

    items_BL: Tensor  # int64, padded at the end with V
    length_B: Tensor  # int64, at least 1
    intents: Intents | None = None  # None: LLM-free


@dataclass
class SessionVectors:
    """What a backbone says of a session."""

    global_BD: Tensor  # long-term vector
    local_BD: Tensor  # short-term vector
    session_BD: Tensor  # the backbone's own mix of both: what the plain model ranks with
    auxiliary: Tensor | float = 0.0  # a loss of the backbone's own, weighted (scalar): training adds it to the total


class Recommender(nn.Module):
    """The interface of every model, neural or not. Scores of padding do not exist: V columns, one an item."""

    def score(self, batch: SessionBatch) -> Tensor:
        """scores_BV, higher is better; float32. Deterministic in eval mode."""
        raise NotImplementedError


class CountModel(Recommender):
    """A recommender that is fitted by counting, in one pass over whole train sessions, without gradient steps."""

    def fit(self, items_N: Tensor, offsets_S1: Tensor) -> None:
        """Count N int64 clicks; session s is items_N[offsets_S1[s] : offsets_S1[s + 1]], in time order where known."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, buffer in self.named_buffers():  # how many counts there are is known from the state alone
            if prefix + name in state_dict:
                self.register_buffer(name, buffer.new_empty(state_dict[prefix + name].shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Backbone(nn.Module):
    """An ordinary session recommender: one file in `backbones/`, one line in `backbones/__init__.py`."""

    item_embedding: nn.Embedding  # (V + 1) x D; row V is the padding and stays zero
    ranks_with_embedding = True  # False: `item_vectors` is something else than the embedding

    def forward(self, items_BL: Tensor, length_B: Tensor) -> SessionVectors:
        raise NotImplementedError

    def item_vectors(self) -> Tensor:
        """V x D: what session vectors are multiplied with."""
        assert not isinstance(self.item_embedding, ShardedEmbedding), "no worker has all of them"
        return self.item_embedding.weight[:-1]

    def item_rows(self, item_N: Tensor) -> Tensor:
        """`item_vectors` of these items, N x D: for losses that sample items."""
        rows_ND: Tensor = self.item_embedding(item_N) if self.ranks_with_embedding else self.item_vectors()[item_N]
        return rows_ND


class GraphBackbone(Backbone):
    """A backbone that reads a graph from all train sessions before its first step.

    It keeps the graph in buffers, so that it comes back with the state dict, wherever that is loaded.
    """

    def fit_graph(self, items_N: Tensor, offsets_S1: Tensor) -> None:
        """Read the graph from N int64 clicks; session s is items_N[offsets_S1[s] : offsets_S1[s + 1]]."""
        raise NotImplementedError


def pad_sessions(sessions: list[list[int]], n_items: int, max_length: int) -> SessionBatch:
    """The last `max_length` clicks of each session as one batch (a helper for callers, not for the hot path)."""
    kept = [torch.tensor(s[-max_length:], dtype=torch.int64) for s in sessions]
    items_BL = nn.utils.rnn.pad_sequence(kept, batch_first=True, padding_value=n_items)
    return SessionBatch(items_BL, torch.tensor([len(s) for s in kept]))
