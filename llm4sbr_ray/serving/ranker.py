"""Behaviour vectors and intents to ranked items: the second half of the model, its arithmetic laid open."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from llm4sbr_ray.models.base import Intents, SessionVectors
from llm4sbr_ray.models.fusion import Fused
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.serving.cache import CachedIntents
from llm4sbr_ray.serving.nearest import Extended, IndexKind, build_search


@dataclass(frozen=True)
class RankQuery:
    """One session to rank for."""

    vectors_3D: NDArray[np.float32]  # as `SessionEncoder.encode` gives them
    intents: CachedIntents | None  # None: all perspectives are predicted
    excluded: Sequence[int]  # items left out of the ranking, each once
    k: int
    compare: bool = False  # also rank without the perspectives
    boosts: Sequence[tuple[int, float]] = ()  # items, each once, and what is added to their scores
    explain: bool = True
    without_N3D: NDArray[np.float32] | None = None  # vectors of the session without one of N clicked items each


@dataclass(frozen=True)
class Reasons:
    """What each perspective did for the ranked items."""

    contribution_kP: NDArray[np.float32]  # part_p . v_j; sums over P to the score without the boost
    gate_P: NDArray[np.float32]
    predicted_P: NDArray[np.bool_]  # True: by the intent predictor; False: from the LLM's answer
    shown_PR: NDArray[np.int64]  # items that show what the perspective is about, strongest first
    shown_weight_PR: NDArray[np.float32]
    effect_kN: NDArray[np.float32] | None = None  # of each clicked item: the score less that without it


@dataclass(frozen=True)
class Ranking:
    """The k best items (fewer if the catalogue has no more)."""

    item_k: NDArray[np.int64]  # best first; ties by lower index
    score_k: NDArray[np.float32]  # with the boost
    boost_k: NDArray[np.float32]
    reasons: Reasons | None  # None: not asked for
    clicks_alone: tuple[NDArray[np.int64], NDArray[np.float32]] | None = None  # items and scores, perspectives at zero


class Best(NamedTuple):
    """The items of a ranking."""

    item_k: NDArray[np.int64]
    score_k: NDArray[np.float32]  # with the boost
    boost_k: NDArray[np.float32]


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
    index
        How the catalogue is searched: by whole products, or by a quantised index whose shortlist is scored exactly.
    """

    def __init__(self, model: LLM4SBR, n_items: int, localised: int, index: IndexKind = "exact") -> None:
        self._model, self._n_items, self._R = model, n_items, localised
        self._item_VD = model.backbone.item_vectors()
        with torch.inference_mode():
            # V x E x D operations: once, not in each request
            self._best, self._near = (build_search(t_VD, index) for t_VD in (self._item_VD, model.item_intents()))

    @torch.inference_mode()
    def with_items(self, vector_ND: Tensor) -> Ranker:
        """This ranker with N more items, V..V+N-1; what perspectives are shown by stays as it is."""
        more = copy.copy(self)
        more._item_VD = torch.cat([self._item_VD, vector_ND])
        more._best, more._n_items = Extended(self._best, self._n_items, vector_ND), self._n_items + len(vector_ND)
        return more

    @torch.inference_mode()
    def rank(self, queries: Sequence[RankQuery]) -> list[Ranking]:
        """Rank for some sessions at once; the answer for one does not depend on the others."""
        vectors = SessionVectors(*torch.from_numpy(np.stack([q.vectors_3D for q in queries])).unbind(1))
        intents = self._intents(queries)
        z_BPD = self._model.intent_vectors(vectors, intents)
        fused = self._model.fuse(vectors, z_BPD)
        best = self._ranked(fused.session_BD, queries)
        reasons, alone = dict[int, Reasons](), dict[int, Best]()
        if explained := [row for row, query in enumerate(queries) if query.explain]:
            reasons = self._reasons(explained, [best[row].item_k for row in explained], intents, fused, z_BPD)
            for row in explained:
                if queries[row].without_N3D is not None:
                    effect_kN = self._click_effects(queries[row], best[row], fused.session_BD[row])
                    reasons[row] = replace(reasons[row], effect_kN=effect_kN)
        if compared := [row for row, query in enumerate(queries) if query.compare]:
            without = self._model.fuse(vectors, torch.zeros_like(z_BPD))  # all perspectives at zero
            ranked = self._ranked(without.session_BD[compared], [queries[row] for row in compared])
            alone = dict(zip(compared, ranked, strict=True))
        return [
            Ranking(*found, reasons=reasons.get(row), clicks_alone=alone[row][:2] if row in alone else None)
            for row, found in enumerate(best)
        ]

    def _reasons(
        self, rows: list[int], items: list[NDArray[np.int64]], intents: Intents | None, fused: Fused, z_BPD: Tensor
    ) -> dict[int, Reasons]:
        """Reasons of some rows of a batch, whose items are given."""
        z_BPD, gate_BP = z_BPD[rows], fused.gate_BP[rows].numpy()
        if intents is not None:
            intents = Intents(intents.item_BPR[rows], intents.weight_BPR[rows], intents.grounded_BP[rows])
        item_Bk = nn.utils.rnn.pad_sequence([torch.from_numpy(item_k) for item_k in items], batch_first=True)
        contribution_BkP = (self._item_VD[item_Bk] @ fused.part_BPD[rows].transpose(1, 2)).numpy()
        predicted_BP = np.ones(z_BPD.shape[:2], dtype=bool) if intents is None else ~intents.grounded_BP.numpy()
        shown_BPR, weight_BPR = (shown.numpy() for shown in self._shown_items(intents, z_BPD))
        return {
            row: Reasons(contribution_kP[: len(item_k)], gate_P, predicted_P, shown_PR, weight_PR)
            for row, item_k, contribution_kP, gate_P, predicted_P, shown_PR, weight_PR in zip(
                rows, items, contribution_BkP, gate_BP, predicted_BP, shown_BPR, weight_BPR, strict=True
            )
        }

    def _click_effects(self, query: RankQuery, best: Best, session_D: Tensor) -> NDArray[np.float32]:
        """k x N: how much lower each item would score without each clicked item, the LLM's intents kept as they are."""
        vectors = SessionVectors(*torch.from_numpy(query.without_N3D).unbind(1))
        intents = self._intents([query] * len(vectors.session_BD))
        without_ND = self._model.fuse(vectors, self._model.intent_vectors(vectors, intents)).session_BD
        effect_kN: NDArray[np.float32] = (
            self._item_VD[torch.from_numpy(best.item_k)] @ (session_D - without_ND).T
        ).numpy()
        return effect_kN

    def _ranked(self, session_BD: Tensor, queries: Sequence[RankQuery]) -> list[Best]:
        """Each query's best items that it does not exclude."""
        asked = max(query.k + len(query.excluded) + len(query.boosts) for query in queries)
        score_Bn, item_Bn = (found.numpy() for found in self._best(session_BD, min(asked, self._n_items)))
        answers = []
        for session_D, query, score_n, item_n in zip(session_BD, queries, score_Bn, item_Bn, strict=True):
            left_out = {*query.excluded, *(item for item, _ in query.boosts)}
            kept = [place for place, item in enumerate(item_n.tolist()) if item not in left_out][: query.k]
            best = Best(item_n[kept], score_n[kept], np.zeros(len(kept), dtype=np.float32))
            answers.append(self._with_boosts(best, session_D, query) if query.boosts else best)
        return answers

    def _with_boosts(self, best: Best, session_D: Tensor, query: RankQuery) -> Best:
        """The boosted items among the best of all others."""
        excluded = set(query.excluded)
        boosts = [(item, boost) for item, boost in query.boosts if item not in excluded]
        item_b = np.array([item for item, _ in boosts], dtype=np.int64)
        boost_b = np.array([boost for _, boost in boosts], dtype=np.float32)
        score_b = (self._item_VD[torch.from_numpy(item_b)] @ session_D).numpy() + boost_b
        item_n, score_n = np.concatenate([best.item_k, item_b]), np.concatenate([best.score_k, score_b])
        boost_n = np.concatenate([best.boost_k, boost_b])
        order_k = np.lexsort((item_n, -score_n))[: query.k]
        return Best(item_n[order_k], score_n[order_k], boost_n[order_k])

    def check(self) -> None:
        """Rank for a probe.

        Raises
        ------
        RuntimeError
            Scores are not finite: the weights are broken.
        """
        probe = np.zeros((3, self._model.config.width), dtype=np.float32)
        ranking = self.rank([RankQuery(probe, None, [], 1)])[0]
        finite = [np.isfinite(ranking.score_k).all(), ranking.reasons and np.isfinite(ranking.reasons.gate_P).all()]
        if not all(finite):
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
