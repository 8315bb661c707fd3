"""Behaviour vectors and intents to ranked items: the second half of the model, its arithmetic laid open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm4sbr_ray.models.base import Intents, SessionVectors
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.models.ranking import top_items
from llm4sbr_ray.serving.cache import CachedIntents


@dataclass(frozen=True)
class RankQuery:
    """One session to rank for."""

    vectors_3D: NDArray[np.float32]  # as `SessionEncoder.encode` gives them
    intents: CachedIntents | None  # None: all perspectives are predicted
    excluded: Sequence[int]  # items left out of the ranking
    k: int
    compare: bool = False  # also rank without the perspectives


@dataclass(frozen=True)
class Ranking:
    """The k best items and what each perspective did for them (fewer than k if the catalogue has no more)."""

    item_k: NDArray[np.int64]  # best first; ties by lower index
    score_k: NDArray[np.float32]
    contribution_kP: NDArray[np.float32]  # part_p . v_j; sums over P to the score
    gate_P: NDArray[np.float32]
    predicted_P: NDArray[np.bool_]  # True: by the intent predictor; False: from the LLM's answer
    shown_PR: NDArray[np.int64]  # items that show what the perspective is about, strongest first
    shown_weight_PR: NDArray[np.float32]
    clicks_alone: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None  # items and scores, perspectives at zero


class Ranker:
    """Fuses, scores and ranks.

    Parameters
    ----------
    model
        In eval mode.
    n_items
        V.
    localised
        R, items shown for a perspective; at most V.
    """

    def __init__(self, model: LLM4SBR, n_items: int, localised: int) -> None:
        self._model, self._n_items, self._R = model, n_items, localised
        with torch.inference_mode():
            self._item_intents_VD = model.item_intents()  # V x E x D operations: once, not in each request

    @torch.inference_mode()
    def rank(self, queries: Sequence[RankQuery]) -> list[Ranking]:
        """Rank for some sessions at once; the answer for one does not depend on the others."""
        vectors = SessionVectors(*torch.from_numpy(np.stack([q.vectors_3D for q in queries])).unbind(1))
        intents = self._intents(queries)
        z_BPD = self._model.intent_vectors(vectors, intents)
        fused = self._model.fuse(vectors, z_BPD)
        scores_BV = self._model.rank_scores(fused.session_BD)
        k = min(max(q.k for q in queries), self._n_items)
        excluded = _excluded_indices(queries)
        item_Bk = top_items(scores_BV, k, excluded)
        score_Bk = scores_BV.gather(1, item_Bk)
        contribution_BkP = torch.einsum("bkd,bpd->bkp", self._model.backbone.item_vectors()[item_Bk], fused.part_BPD)
        shown_BPR, weight_BPR = self._shown_items(intents, z_BPD)
        if any(query.compare for query in queries):
            alone_BV = self._model.rank_scores(self._model.fuse(vectors, torch.zeros_like(z_BPD)).session_BD)
            alone_Bk = top_items(alone_BV, k, excluded)
        answers = []
        for row, query in enumerate(queries):
            best = _kept(item_Bk[row], query)
            clicks_alone = None
            if query.compare:
                items_k = alone_Bk[row][_kept(alone_Bk[row], query)]
                clicks_alone = (items_k.numpy(), alone_BV[row, items_k].numpy())
            answers.append(
                Ranking(
                    item_k=item_Bk[row].numpy()[best],
                    score_k=score_Bk[row].numpy()[best],
                    contribution_kP=contribution_BkP[row].numpy()[best],
                    gate_P=fused.gate_BP[row].numpy(),
                    predicted_P=~intents.grounded_BP[row].numpy(),
                    shown_PR=shown_BPR[row].numpy(),
                    shown_weight_PR=weight_BPR[row].numpy(),
                    clicks_alone=clicks_alone,
                )
            )
        return answers

    def check(self) -> None:
        """Rank for a probe.

        Raises
        ------
        RuntimeError
            Scores are not finite: the weights are broken.
        """
        probe = np.zeros((3, self._model.config.width), dtype=np.float32)
        ranking = self.rank([RankQuery(probe, None, [], 1)])[0]
        if not (np.isfinite(ranking.score_k).all() and np.isfinite(ranking.gate_P).all()):
            raise RuntimeError("fusion ranker: scores are not finite")

    def _intents(self, queries: Sequence[RankQuery]) -> Intents:
        """Known intents as a batch; a session without any is ungrounded throughout."""
        P = len(self._model.anchors)
        item_BPR = torch.zeros(len(queries), P, self._R, dtype=torch.int64)
        weight_BPR = torch.zeros(len(queries), P, self._R)
        grounded_BP = torch.zeros(len(queries), P, dtype=torch.bool)
        for row, query in enumerate(queries):
            if query.intents is not None:
                item_BPR[row] = torch.from_numpy(query.intents.item_PR.astype(np.int64))
                weight_BPR[row] = torch.from_numpy(query.intents.weight_PR.copy())
                grounded_BP[row] = torch.from_numpy(query.intents.grounded_P.copy())
        return Intents(item_BPR, weight_BPR, grounded_BP)

    def _shown_items(self, intents: Intents, z_BPD: Tensor) -> tuple[Tensor, Tensor]:
        """The LLM's localised items where its answer is grounded, else those whose text is nearest to z."""
        if bool(intents.grounded_BP.all()):
            return intents.item_BPR, intents.weight_BPR
        near_BPR, cosine_BPR = self._model.nearest_items(z_BPD, self._R, self._item_intents_VD)
        weight_BPR = cosine_BPR.clamp_min(0)
        weight_BPR = weight_BPR / weight_BPR.sum(2, keepdim=True).clamp_min(1e-9)
        grounded_BP1 = intents.grounded_BP[..., None]
        return (
            torch.where(grounded_BP1, intents.item_BPR, near_BPR),
            torch.where(grounded_BP1, intents.weight_BPR, weight_BPR),
        )


def _kept(item_k: Tensor, query: RankQuery) -> NDArray[np.int64]:
    """Places of the query's k best. Excluded items come last of all: they are met where the catalogue has no more."""
    kept_k = ~np.isin(item_k.numpy(), np.asarray(query.excluded, dtype=np.int64))
    return np.flatnonzero(kept_k)[: query.k]


def _excluded_indices(queries: Sequence[RankQuery]) -> tuple[Tensor, Tensor]:
    """(row, item) pairs."""
    rows = [row for row, query in enumerate(queries) for _ in query.excluded]
    items = [item for query in queries for item in query.excluded]
    return torch.tensor(rows, dtype=torch.int64), torch.tensor(items, dtype=torch.int64)
