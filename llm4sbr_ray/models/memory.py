"""A neural model weighed together with what the train sessions simply show (ours).

Networks generalise, counts remember: the item that followed the last click in three train sessions is a strong guess
that a dot product of two vectors blurs. With s_j the network's score of item j,

    score_j = w_net s_j + sum_c w_c log(1 + m_c(j) / EPSILON) + w_held [j in session]
              + w_popular log(1 + clicks of j) + w_lately log(1 + late clicks of j) + w_texts cos(text of j, of session)

where m_c(j) is the share of item j in what count model c says of the items that the session doesn't hold yet, late
clicks are those of the last train sessions, and texts are there where the network reads them. So the softmax of the
scores is a logarithmic opinion pool (Heskes, NIPS 1997): experts that multiply, each sharper or flatter by its weight,
where a sum of probabilities, as kNN-LM has it (Khandelwal et al., ICLR 2020), follows whichever expert is surest. The
weights are a conditional logit (McFadden, 1974), fitted to validation sessions (`training.memory`); the network isn't
trained again. What one click says and what ten say is not to be trusted alike, so each weight goes in a straight line
over the logarithm of the session's length, from that of one click to that of the longest session.

Shapes, besides those of `models.base`: C components, 2 ends of the line.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from llm4sbr_ray.models.base import CountModel, Recommender, SessionBatch

EPSILON = 3e-3  # share of a count model's mass that is worth log 2
TIE_BREAK = 2e-7  # above what count models add to order items that they have not counted
RECENT = 0.1  # of the train sessions, the last ones
NETWORK, HELD, POPULAR, LATELY, TEXTS = "network", "held", "popular", "popular lately", "texts"


class MemoryRecommender(Recommender):
    """The weighed sum; as it is made it scores as its network does.

    Parameters
    ----------
    network
        A trained neural model.
    counts
        The count models to weigh in, by name.
    n_items
        V.
    max_length
        Clicks of the longest session.
    item_text_VE
        float32, L2-normalised, zeros for items without text; None: the network reads no texts, nor does this model.
        A constant: not in the state dict.
    """

    weight_2C: Tensor  # float32, in the order of `components`: of one click, of `max_length` clicks
    popular_V: Tensor  # log(1 + clicks)
    lately_V: Tensor
    item_text_VE: Tensor | None

    def __init__(
        self,
        network: Recommender,
        counts: Mapping[str, CountModel],
        n_items: int,
        max_length: int,
        item_text_VE: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.network: Recommender = network
        self.counts, self.n_items, self.max_length = nn.ModuleDict(counts), n_items, max_length
        self.components = (NETWORK, HELD, *counts, POPULAR, LATELY, *([TEXTS] if item_text_VE is not None else []))
        self.register_buffer("weight_2C", torch.eye(len(self.components))[0].repeat(2, 1))
        self.register_buffer("popular_V", torch.zeros(n_items))
        self.register_buffer("lately_V", torch.zeros(n_items))
        self.register_buffer("item_text_VE", item_text_VE, persistent=False)

    def fit_counts(self, items_N: Tensor, offsets_S1: Tensor) -> None:
        """Count N int64 clicks; session s is items_N[offsets_S1[s] : offsets_S1[s + 1]], in time order where known."""
        for model in self._counts():
            model.fit(items_N, offsets_S1)
        sessions = len(offsets_S1) - 1
        late = int(offsets_S1[sessions - round(RECENT * sessions)])
        self.popular_V = torch.bincount(items_N, minlength=self.n_items).float().log1p()
        self.lately_V = torch.bincount(items_N[late:], minlength=self.n_items).float().log1p()

    def with_items(self, text_NE: Tensor) -> MemoryRecommender:
        """The same model with N more items, V..V+N-1: nobody has clicked them, but they have texts."""
        more = copy.copy(self)
        more._buffers = dict(self._buffers)
        if self.item_text_VE is not None:
            more.item_text_VE = torch.cat([self.item_text_VE, text_NE])
        return more

    def features(self, batch: SessionBatch) -> Iterator[Tensor]:
        """What each component says, B x V float32, one after the other."""
        return self.features_from(self.network.score(batch), batch)

    def features_from(self, scores_BV: Tensor, batch: SessionBatch) -> Iterator[Tensor]:
        """`features` from the network's scores, which may have items beyond V."""
        beyond = (0, scores_BV.shape[1] - self.n_items)
        held_BV = _held_items(batch, self.n_items)
        yield scores_BV
        yield F.pad(held_BV.to(scores_BV), beyond)
        for model in self._counts():
            yield F.pad(_counted(model.score(batch), held_BV), beyond)
        yield F.pad(self.popular_V, beyond).expand_as(scores_BV)
        yield F.pad(self.lately_V, beyond).expand_as(scores_BV)
        if self.item_text_VE is not None:
            yield _session_texts(batch, self.item_text_VE) @ self.item_text_VE.T

    def longness(self, length_B: Tensor) -> Tensor:
        """0 for one click to 1 for `max_length` clicks, by the logarithm; float32."""
        return length_B.log() / math.log(max(self.max_length, 2))

    def weights_of(self, length_B: Tensor) -> Tensor:
        """B x C of sessions of so many clicks."""
        one_C, longest_C = self.weight_2C
        return torch.lerp(one_C, longest_C, self.longness(length_B)[:, None])

    def score(self, batch: SessionBatch) -> Tensor:
        network_BV, memory_BV = self.split(self.network.score(batch), batch)
        return network_BV + memory_BV

    def split(self, scores_BV: Tensor, batch: SessionBatch) -> tuple[Tensor, Tensor]:
        """The network's part of the scores, from its own, and the memory's: all the others."""
        weight_CB1 = self.weights_of(batch.length_B).T[..., None]
        parts = zip(weight_CB1, self.features_from(scores_BV, batch), strict=True)
        network_weight_B1, network_BV = next(parts)
        memory_BV = torch.zeros_like(network_BV)
        for weight_B1, part_BV in parts:
            memory_BV += weight_B1 * part_BV
        return network_weight_B1 * network_BV, memory_BV

    def _counts(self) -> Iterator[CountModel]:
        for model in self.counts.values():
            assert isinstance(model, CountModel)
            yield model


def _held_items(batch: SessionBatch, n_items: int) -> Tensor:
    """Whether a session holds an item, B x V."""
    held_BV1 = torch.zeros(len(batch.length_B), n_items + 1, dtype=torch.bool, device=batch.items_BL.device)
    held_BV1.scatter_(1, batch.items_BL, True)  # padding falls into the last column
    return held_BV1[:, :-1]


def _counted(score_BV: Tensor, held_BV: Tensor) -> Tensor:
    """log(1 + m / EPSILON); a count model that knows nothing of a session says 0 of every item."""
    mass_BV = score_BV.masked_fill(held_BV | (score_BV <= TIE_BREAK), 0)
    return (mass_BV / (EPSILON * mass_BV.sum(dim=1, keepdim=True).clamp_min(1e-12))).log1p()


def _session_texts(batch: SessionBatch, item_text_VE: Tensor) -> Tensor:
    """The mean text of the clicks, L2-normalised, B x E."""
    clicked_BL = torch.arange(batch.items_BL.shape[1], device=batch.items_BL.device) < batch.length_B[:, None]
    first_BL = batch.items_BL.masked_fill(~clicked_BL, 0)  # any item: padding has weight 0
    sum_BE = F.embedding_bag(first_BL, item_text_VE, mode="sum", per_sample_weights=clicked_BL.to(item_text_VE))
    return F.normalize(sum_BE, dim=1)
