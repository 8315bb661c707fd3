"""A backbone alone: the ordinary session recommender that LLM4SBR is compared with."""

from __future__ import annotations

from torch import Tensor

from llm4sbr_ray.models.base import Backbone, Recommender, SessionBatch, SessionVectors
from llm4sbr_ray.models.cross_entropy import catalogue_cross_entropy


class PlainRecommender(Recommender):
    """Scores are products of the backbone's session vector and the item vectors."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def score(self, batch: SessionBatch) -> Tensor:
        vectors: SessionVectors = self.backbone(batch.items_BL, batch.length_B)
        return vectors.session_BD @ self.backbone.item_vectors().T

    def loss(self, batch: SessionBatch, target_B: Tensor) -> dict[str, Tensor]:
        """Full-softmax cross-entropy plus the backbone's auxiliary loss, under "total" (scalar)."""
        vectors: SessionVectors = self.backbone(batch.items_BL, batch.length_B)
        cross_entropy = catalogue_cross_entropy(vectors.session_BD, self.backbone.item_vectors(), target_B)
        return {"total": cross_entropy + vectors.auxiliary}
