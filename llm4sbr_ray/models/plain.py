"""A backbone alone: the ordinary session recommender that LLM4SBR is compared with."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llm4sbr_ray.models.base import Backbone, Recommender, SessionBatch, SessionVectors


class PlainRecommender(Recommender):
    """Scores are products of the backbone's session vector and the item vectors."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def score(self, batch: SessionBatch) -> Tensor:
        return self._rank_scores(self.backbone(batch.items_BL, batch.length_B))

    def loss(self, batch: SessionBatch, target_B: Tensor) -> dict[str, Tensor]:
        """Full-softmax cross-entropy plus the backbone's auxiliary loss, under "total" (scalar)."""
        vectors: SessionVectors = self.backbone(batch.items_BL, batch.length_B)
        return {"total": F.cross_entropy(self._rank_scores(vectors), target_B) + vectors.auxiliary}

    def _rank_scores(self, vectors: SessionVectors) -> Tensor:
        return vectors.session_BD @ self.backbone.item_vectors().T
