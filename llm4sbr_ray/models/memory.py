"""A neural model mixed with what the train sessions simply show: which item followed which (ours).

Networks generalise, counts remember: the item that followed the last click in three train sessions is a strong guess
that a dot product of two vectors blurs. With the probabilities of the network and those of C components that count,

    p(j | session) = w_0 n(j) + w_1 n(j | new) + sum_c w_c m_c(j | new)          w >= 0, sum w = 1

where n is the softmax of the network's scores, m_c a count model's score, and "| new" means normalised over the items
that the session doesn't hold yet. Where sessions never repeat an item, w_1 takes the place of w_0; where they do, the
network says how likely a repeat is. A count model that knows nothing of a session has no mass. kNN-LM (Khandelwal et
al., ICLR 2020) mixes a language model with its neighbours in this way. The weights are chosen on validation data
(`training.memory`); the network isn't trained again.

A short session says little that counts could be sure of, a long one much: the weights depend on the session's length.

Shapes, besides those of `models.base`: C components, the network's two first; G groups of session lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from llm4sbr_ray.models.base import CountModel, Recommender, SessionBatch

TIE_BREAK = 2e-7  # above what count models add to order items that they have not counted
NETWORK = ("network", "network, new items")


class MemoryRecommender(Recommender):
    """The mixture; as it is made the network has all the weight.

    Parameters
    ----------
    network
        A trained neural model.
    counts
        The count models to mix in, by name.
    n_items
        V.
    lengths
        Ascending: sessions of at most so many clicks are a group each, longer ones the last group.
    """

    weight_GC: Tensor  # float32, rows sum to 1; in the order of `components`
    length_G1: Tensor  # int64, `lengths`

    def __init__(
        self, network: Recommender, counts: Mapping[str, CountModel], n_items: int, lengths: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.network: Recommender = network
        self.counts, self.n_items = nn.ModuleDict(counts), n_items
        self.components = (*NETWORK, *counts)
        self.register_buffer("length_G1", torch.tensor(lengths, dtype=torch.int64))
        self.register_buffer("weight_GC", torch.eye(len(self.components))[0].repeat(len(lengths) + 1, 1))

    def fit_counts(self, items_N: Tensor, offsets_S1: Tensor) -> None:
        """Count N int64 clicks; session s is items_N[offsets_S1[s] : offsets_S1[s + 1]], in time order where known."""
        for model in self._counts():
            model.fit(items_N, offsets_S1)

    def distributions(self, batch: SessionBatch) -> Iterator[Tensor]:
        """Each component's probabilities, B x V float32, one after the other: rows sum to 1, or to 0."""
        return self.parts_of(self.network.score(batch), batch)

    def parts_of(self, scores_BV: Tensor, batch: SessionBatch) -> Iterator[Tensor]:
        """`distributions` from the network's scores, which may have items beyond V: nobody has clicked those."""
        network_BV = scores_BV.softmax(dim=1)
        beyond = (0, scores_BV.shape[1] - self.n_items)
        held_BV = F.pad(_held_items(batch, self.n_items), beyond)
        yield network_BV
        yield _normalised(network_BV.masked_fill(held_BV, 0))
        for model in self._counts():
            counted_BV = F.pad(model.score(batch), beyond)
            yield _normalised(counted_BV.masked_fill(held_BV | (counted_BV <= TIE_BREAK), 0))

    def score(self, batch: SessionBatch) -> Tensor:
        """scores_BV: p(j | session)."""
        weight_CB1 = self.weights_of(batch).T[..., None]
        scores_BV = torch.zeros((), device=weight_CB1.device)
        for weight_B1, part_BV in zip(weight_CB1, self.distributions(batch), strict=True):
            scores_BV = scores_BV + weight_B1 * part_BV
        return scores_BV

    def group_of(self, length_B: Tensor) -> Tensor:
        """Which group of lengths each session is in, int64."""
        return torch.bucketize(length_B, self.length_G1)

    def weights_of(self, batch: SessionBatch) -> Tensor:
        """B x C."""
        return self.weight_GC[self.group_of(batch.length_B)]

    def _counts(self) -> Iterator[CountModel]:
        for model in self.counts.values():
            assert isinstance(model, CountModel)
            yield model


def _held_items(batch: SessionBatch, n_items: int) -> Tensor:
    """Whether a session holds an item, B x V."""
    held_BV1 = torch.zeros(len(batch.length_B), n_items + 1, dtype=torch.bool, device=batch.items_BL.device)
    held_BV1.scatter_(1, batch.items_BL, True)  # padding falls into the last column
    return held_BV1[:, :-1]


def _normalised(mass_BV: Tensor) -> Tensor:
    return mass_BV / mass_BV.sum(dim=1, keepdim=True).clamp_min(1e-12)
