"""LLM4SBR around any backbone: localised intents are aligned with behaviour, then fused with it.

With P perspectives, each anchored to a vector H_a(p) of the backbone, the "global" or the "local" one:

    h_p = sum_r w_r e_r                 the text of the items that the LLM's answer was localised to
    z_p = T h_p + b                     one T for all perspectives
    loss = cross-entropy + alignment and uniformity of z_p and H_a(p) + the intent predictor's loss
    score_j = fuse(H, z) . v_j

The intent predictor (ours) guesses z_p from behaviour, so a session without LLM answers gets intents too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from llm4sbr_ray.config import ModelConfig
from llm4sbr_ray.models.alignment import alignment, uniformity
from llm4sbr_ray.models.base import Backbone, Intents, Recommender, SessionBatch, SessionVectors
from llm4sbr_ray.models.catalogue_loss import CatalogueLoss, FullSoftmax, TextSmoothing
from llm4sbr_ray.models.fusion import Fused, build_fusion
from llm4sbr_ray.models.predictor import IntentPredictor, predictor_loss
from llm4sbr_ray.models.row_shards import RowShards
from llm4sbr_ray.models.text_space import start_from_text


class LLM4SBR(Recommender):
    """The method, end to end in tensors.

    Parameters
    ----------
    backbone
        Encodes clicks. Sessions come cut to `config.max_length` by whoever batches them.
    item_text_VE
        float32, L2-normalised text embedding of each item, zeros where it has no text. A constant: not in the
        state dict.
    anchors
        "global" or "local" for each perspective.
    config
        Sizes, the fusion rule and the weights of the auxiliary losses.
    predictor_mix
        Share of training samples that are fused with predicted intents in place of the LLM's, drawn anew in
        each step from torch's generator. It makes one model good with and without LLM answers (ours).
    """

    item_text_VE: Tensor
    text_shards: RowShards | None = None  # where `item_text_VE` is this worker's rows of the table alone

    def __init__(
        self,
        backbone: Backbone,
        item_text_VE: Tensor,
        anchors: Sequence[Literal["global", "local"]],
        config: ModelConfig,
        predictor_mix: float = 0.3,
    ) -> None:
        super().__init__()
        self.backbone, self.anchors, self.config = backbone, tuple(anchors), config
        self.predictor_mix = predictor_mix
        self.ranking_loss: CatalogueLoss = FullSoftmax()
        self.text_smoothing: TextSmoothing | None = None
        self.register_buffer("item_text_VE", item_text_VE.float(), persistent=False)
        self.text_projection = nn.Linear(item_text_VE.shape[1], config.width)  # T, b
        self.predictor = IntentPredictor(len(self.anchors), config.width)
        self.fusion = build_fusion(len(self.anchors), config)

    def start_from_text(self) -> None:
        """Put items and perspectives into one text space before the first step (see `models.text_space`)."""
        start_from_text(self.backbone.item_embedding, self.text_projection, self.item_text_VE, self.config.text_spread)

    def encode(self, items_BL: Tensor, length_B: Tensor) -> SessionVectors:
        vectors: SessionVectors = self.backbone(items_BL, length_B)
        return vectors

    def text_intents(self, intents: Intents) -> Tensor:
        """z_BPD = T h_p + b of the LLM's localised answers; for an ungrounded one (weights 0) it is b."""
        B, P, R = intents.item_BPR.shape
        item_NR, table = intents.item_BPR.reshape(B * P, R), self.item_text_VE
        if self.text_shards is not None:
            table, item_NR = self.text_shards.fetch(table, item_NR)
        h_BPE = F.embedding_bag(
            item_NR,
            table,
            mode="sum",
            per_sample_weights=intents.weight_BPR.reshape(B * P, R).to(self.item_text_VE),
        ).view(B, P, -1)
        # B * P projections cost less than projecting the catalogue: sessions of a batch are fewer than items.
        z_BPD: Tensor = self.text_projection(h_BPE)
        return z_BPD

    def predict(self, vectors: SessionVectors) -> Tensor:
        """z_BPD guessed from behaviour alone."""
        z_BPD: Tensor = self.predictor(vectors)
        return z_BPD

    def intent_vectors(self, vectors: SessionVectors, intents: Intents | None) -> Tensor:
        """z_BPD: the LLM's where its answer is grounded, predicted elsewhere."""
        predicted_BPD = self.predict(vectors)
        if intents is None:
            return predicted_BPD
        return torch.where(intents.grounded_BP[..., None], self.text_intents(intents), predicted_BPD)

    def fuse(self, vectors: SessionVectors, z_BPD: Tensor) -> Fused:
        fused: Fused = self.fusion(vectors, self.anchor_vectors(vectors), z_BPD)
        return fused

    def anchor_vectors(self, vectors: SessionVectors) -> Tensor:
        """H_a(p), B x P x D."""
        by_name = {"global": vectors.global_BD, "local": vectors.local_BD}
        return torch.stack([by_name[anchor] for anchor in self.anchors], dim=1)

    def rank_scores(self, session_BD: Tensor) -> Tensor:
        """scores_BV of fused session vectors."""
        return session_BD @ self.backbone.item_vectors().T

    def score(self, batch: SessionBatch) -> Tensor:
        vectors = self.encode(batch.items_BL, batch.length_B)
        return self.rank_scores(self.fuse(vectors, self.intent_vectors(vectors, batch.intents)).session_BD)

    def item_intents(self) -> Tensor:
        """T e_j + b of every item, L2-normalised, V x D (zeros without text): for `nearest_items`."""
        unit_VD = F.normalize(self.text_projection(self.item_text_VE), dim=1)
        return unit_VD * self.item_text_VE.any(dim=1, keepdim=True)

    def nearest_items(self, z_BPD: Tensor, k: int, item_intents_VD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The k items whose projected text is nearest to each z: how a predicted intent is shown to people.

        Parameters
        ----------
        z_BPD
            Intents.
        k
            At most V.
        item_intents_VD
            The result of `item_intents`, for callers who keep it: a served model's weights do not change.

        Returns
        -------
        item_BPk, cosine_BPk
            int64 and float32, nearest first.
        """
        table_VD = self.item_intents() if item_intents_VD is None else item_intents_VD
        cosine_BPk, item_BPk = (F.normalize(z_BPD, dim=2) @ table_VD.T).topk(k, dim=2)
        return item_BPk, cosine_BPk

    def loss(self, batch: SessionBatch, target_B: Tensor) -> dict[str, Tensor]:
        """Training loss (scalars): "total", with the backbone's auxiliary loss, and its unweighted parts.

        "cross_entropy" over the whole catalogue, or the ranking loss that took its place; "alignment" and
        "uniformity" summed over perspectives, on grounded answers alone; "predictor". A batch without intents has
        "cross_entropy" alone.
        """
        vectors = self.encode(batch.items_BL, batch.length_B)
        predicted_BPD = self.predict(vectors)
        if batch.intents is None:
            session_BD = self.fuse(vectors, predicted_BPD).session_BD
            cross_entropy = self.ranking_loss(session_BD, self.backbone, target_B)
            return {"total": cross_entropy + vectors.auxiliary, "cross_entropy": cross_entropy}

        grounded_BP, text_BPD = batch.intents.grounded_BP, self.text_intents(batch.intents)
        use_text_BP = grounded_BP
        if self.training:
            kept_B = torch.rand(len(target_B), device=target_B.device) >= self.predictor_mix
            use_text_BP = grounded_BP & kept_B[:, None]
        fused = self.fuse(vectors, torch.where(use_text_BP[..., None], text_BPD, predicted_BPD))
        modality_2PBD = torch.stack([text_BPD, self.anchor_vectors(vectors)]).transpose(1, 2)
        grounded_PB = grounded_BP.T
        parts = {
            "cross_entropy": self.ranking_loss(fused.session_BD, self.backbone, target_B),
            "alignment": alignment(modality_2PBD[0], modality_2PBD[1], grounded_PB).sum(),
            "uniformity": uniformity(modality_2PBD, grounded_PB).mean(0).sum(),  # the mean of both modalities
            "predictor": predictor_loss(predicted_BPD, text_BPD, grounded_BP),
        }
        total = (
            parts["cross_entropy"]
            + self.config.alignment * parts["alignment"]
            + self.config.uniformity * parts["uniformity"]
            + self.config.predictor * parts["predictor"]
            + vectors.auxiliary
        )
        return {"total": total, **parts}
