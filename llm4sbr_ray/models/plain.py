"""A backbone alone: the ordinary session recommender that LLM4SBR is compared with."""

from __future__ import annotations

from torch import Tensor

from llm4sbr_ray.models.base import Backbone, Recommender, SessionBatch, SessionVectors
from llm4sbr_ray.models.catalogue_loss import CatalogueLoss, FullSoftmax, TextSmoothing


class PlainRecommender(Recommender):
    """Scores are products of the backbone's session vector and the item vectors."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.ranking_loss: CatalogueLoss = FullSoftmax()
        self.text_smoothing: TextSmoothing | None = None

    def score(self, batch: SessionBatch) -> Tensor:
        vectors: SessionVectors = self.backbone(batch.items_BL, batch.length_B)
        return vectors.session_BD @ self.backbone.item_vectors().T

    def loss(self, batch: SessionBatch, target_B: Tensor) -> dict[str, Tensor]:
        """The ranking loss, full-softmax cross-entropy unless set, plus the backbone's own: "total" (scalar)."""
        vectors: SessionVectors = self.backbone(batch.items_BL, batch.length_B)
        return {"total": self.ranking_loss(vectors.session_BD, self.backbone, target_B) + vectors.auxiliary}
