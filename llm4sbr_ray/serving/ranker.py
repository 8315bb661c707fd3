"""Behaviour vectors and intents to ranked items: the second half of the model, its arithmetic laid open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from llm4sbr_ray.models.base import Intents, SessionVectors
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.serving.cache import CachedIntents
from llm4sbr_ray.serving.nearest import Exact


@dataclass(frozen=True)
class RankQuery:
    """One session to rank for."""

    vectors_3D: NDArray[np.float32]  # as `SessionEncoder.encode` gives them
    intents: CachedIntents | None  # None: all perspectives are predicted
    excluded: Sequence[int]  # items left out of the ranking, each once
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
        self._item_VD = model.backbone.item_vectors()
        with torch.inference_mode():
            # V x E x D operations: once, not in each request
            self._best, self._near = Exact(self._item_VD), Exact(model.item_intents())

    @torch.inference_mode()
    def rank(self, queries: Sequence[RankQuery]) -> list[Ranking]:
        """Rank for some sessions at once; the answer for one does not depend on the others."""
        vectors = SessionVectors(*torch.from_numpy(np.stack([q.vectors_3D for q in queries])).unbind(1))
        intents = self._intents(queries)
        z_BPD = self._model.intent_vectors(vectors, intents)
        fused = self._model.fuse(vectors, z_BPD)
        best = self._ranked(fused.session_BD, queries)
        best_Bk = nn.utils.rnn.pad_sequence([torch.from_numpy(item_k) for item_k, _ in best], batch_first=True)
        contribution_BkP = (self._item_VD[best_Bk] @ fused.part_BPD.transpose(1, 2)).numpy()
        shown_BPR, weight_BPR = (shown.numpy() for shown in self._shown_items(intents, z_BPD))
        gate_BP = fused.gate_BP.numpy()
        compared = [row for row, query in enumerate(queries) if query.compare]
        alone = self._clicks_alone(vectors, z_BPD, compared, queries) if compared else {}
        return [
            Ranking(
                item_k=item_k,
                score_k=score_k,
                contribution_kP=contribution_BkP[row, : len(item_k)],
                gate_P=gate_BP[row],
                predicted_P=np.ones(z_BPD.shape[1], dtype=bool) if query.intents is None else ~query.intents.grounded_P,
                shown_PR=shown_BPR[row],
                shown_weight_PR=weight_BPR[row],
                clicks_alone=alone.get(row),
            )
            for row, (query, (item_k, score_k)) in enumerate(zip(queries, best, strict=True))
        ]

    def _ranked(
        self, session_BD: Tensor, queries: Sequence[RankQuery]
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Each query's best items that it does not exclude, and their scores."""
        asked = max(query.k + len(query.excluded) for query in queries)
        score_Bn, item_Bn = (found.numpy() for found in self._best(session_BD, min(asked, self._n_items)))
        answers = []
        for query, score_n, item_n in zip(queries, score_Bn, item_Bn, strict=True):
            excluded = set(query.excluded)
            kept = [place for place, item in enumerate(item_n.tolist()) if item not in excluded][: query.k]
            answers.append((item_n[kept], score_n[kept]))
        return answers

    def _clicks_alone(
        self, vectors: SessionVectors, z_BPD: Tensor, rows: list[int], queries: Sequence[RankQuery]
    ) -> dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """The ranking of these rows with all perspectives at zero."""
        session_BD = self._model.fuse(vectors, torch.zeros_like(z_BPD)).session_BD
        return dict(zip(rows, self._ranked(session_BD[rows], [queries[row] for row in rows]), strict=True))

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

    def _intents(self, queries: Sequence[RankQuery]) -> Intents | None:
        """Known intents as a batch, a session without any ungrounded throughout; None where none is known."""
        known = [row for row, query in enumerate(queries) if query.intents is not None]
        if not known:
            return None
        P = len(self._model.anchors)
        item_BPR = np.zeros((len(queries), P, self._R), dtype=np.int64)
        weight_BPR = np.zeros((len(queries), P, self._R), dtype=np.float32)
        grounded_BP = np.zeros((len(queries), P), dtype=bool)
        for row, query in enumerate(queries):
            if query.intents is not None:
                item_BPR[row] = query.intents.item_PR
                weight_BPR[row] = query.intents.weight_PR
                grounded_BP[row] = query.intents.grounded_P
        return Intents(torch.from_numpy(item_BPR), torch.from_numpy(weight_BPR), torch.from_numpy(grounded_BP))

    def _shown_items(self, intents: Intents | None, z_BPD: Tensor) -> tuple[Tensor, Tensor]:
        """The LLM's localised items where its answer is grounded, else those whose text is nearest to z."""
        B, P, D = z_BPD.shape
        if intents is None:
            near_NR, weight_NR = self._nearest(z_BPD.reshape(B * P, D))
            return near_NR.view(B, P, -1), weight_NR.view(B, P, -1)
        item_BPR, weight_BPR = intents.item_BPR.clone(), intents.weight_BPR.clone()
        predicted_BP = ~intents.grounded_BP
        if bool(predicted_BP.any()):
            item_BPR[predicted_BP], weight_BPR[predicted_BP] = self._nearest(z_BPD[predicted_BP])
        return item_BPR, weight_BPR

    def _nearest(self, z_ND: Tensor) -> tuple[Tensor, Tensor]:
        cosine_NR, item_NR = self._near(F.normalize(z_ND, dim=1), self._R)
        weight_NR = cosine_NR.clamp_min(0)
        return item_NR, weight_NR / weight_NR.sum(1, keepdim=True).clamp_min(1e-9)
