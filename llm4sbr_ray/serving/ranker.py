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

from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.base import Intents, SessionVectors, pad_sessions
from llm4sbr_ray.models.fusion import Fused
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.models.memory import MemoryRecommender
from llm4sbr_ray.serving.cache import CachedIntents
from llm4sbr_ray.serving.nearest import Extended, IndexKind, build_search
from llm4sbr_ray.serving.scores import Products, Remembered, Scores


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
    items: Sequence[int] = ()  # of the session, in click order: what a memory reads
    without_items_N: Sequence[Sequence[int]] = ()  # the same without one of N clicked items each


@dataclass(frozen=True)
class Reasons:
    """What each perspective, and the memory, did for the ranked items."""

    # part_p . v_j, by the network's weight where there is a memory. With memory_k they add up to the score without the
    # boost.
    contribution_kP: NDArray[np.float32]
    memory_k: NDArray[np.float32] | None  # None: there is no memory
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
    memory
        The model that `model` is the network of, where there is one.

    Raises
    ------
    UserError
        A memory with a quantised index: a memory says something of every item.
    """

    def __init__(
        self,
        model: LLM4SBR,
        n_items: int,
        localised: int,
        index: IndexKind = "exact",
        memory: MemoryRecommender | None = None,
    ) -> None:
        if memory is not None and index != "exact":
            raise UserError(f"index {index!r}: a +memory model scores the whole catalogue: set index to 'exact'")
        self._model, self._n_items, self._R, self._memory = model, n_items, localised, memory
        self._item_VD = model.backbone.item_vectors()
        with torch.inference_mode():
            # V x E x D operations: once, not in each request
            self._best = build_search(self._item_VD, index)
            self._near = build_search(model.item_intents(), index, clustered=True)

    @torch.inference_mode()
    def with_items(self, vector_ND: Tensor, text_NE: Tensor) -> Ranker:
        """This ranker with N more items, V..V+N-1; what perspectives are shown by stays as it is."""
        more = copy.copy(self)
        more._item_VD = torch.cat([self._item_VD, vector_ND])
        more._best, more._n_items = Extended(self._best, self._n_items, vector_ND), self._n_items + len(vector_ND)
        if self._memory is not None:
            more._memory = self._memory.with_items(text_NE)
        return more

    @torch.inference_mode()
    def rank(self, queries: Sequence[RankQuery]) -> list[Ranking]:
        """Rank for some sessions at once; the answer for one does not depend on the others."""
        vectors = SessionVectors(*torch.from_numpy(np.stack([q.vectors_3D for q in queries])).unbind(1))
        intents = self._intents(queries)
        z_BPD = self._model.intent_vectors(vectors, intents)
        fused = self._model.fuse(vectors, z_BPD)
        scores = self._scores(fused.session_BD, queries)
        best = _ranked(scores, queries, self._n_items)
        reasons, alone = dict[int, Reasons](), dict[int, Best]()
        if explained := [row for row, query in enumerate(queries) if query.explain]:
            reasons = self._reasons(explained, [best[row].item_k for row in explained], intents, fused, z_BPD, scores)
            for row in explained:
                if queries[row].without_N3D is not None:
                    effect_kN = self._click_effects(queries[row], best[row], scores, row)
                    reasons[row] = replace(reasons[row], effect_kN=effect_kN)
        if compared := [row for row, query in enumerate(queries) if query.compare]:
            without = self._model.fuse(vectors, torch.zeros_like(z_BPD))  # all perspectives at zero
            asked = [queries[row] for row in compared]
            ranked = _ranked(self._scores(without.session_BD[compared], asked), asked, self._n_items)
            alone = dict(zip(compared, ranked, strict=True))
        return [
            Ranking(*found, reasons=reasons.get(row), clicks_alone=alone[row][:2] if row in alone else None)
            for row, found in enumerate(best)
        ]

    def _scores(self, session_BD: Tensor, queries: Sequence[RankQuery]) -> Scores:
        if self._memory is None:
            return Products(self._best, self._item_VD, session_BD)
        n_known = self._memory.n_items
        batch = pad_sessions([list(query.items) for query in queries], n_known, self._model.config.max_length)
        return Remembered(self._memory, session_BD @ self._item_VD.T, batch)

    def _reasons(
        self,
        rows: list[int],
        items: list[NDArray[np.int64]],
        intents: Intents | None,
        fused: Fused,
        z_BPD: Tensor,
        scores: Scores,
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
            row: Reasons(
                contribution_kP[: len(item_k)] * scores.network_weight(row),
                scores.memory(row, item_k),
                gate_P,
                predicted_P,
                shown_PR,
                weight_PR,
            )
            for row, item_k, contribution_kP, gate_P, predicted_P, shown_PR, weight_PR in zip(
                rows, items, contribution_BkP, gate_BP, predicted_BP, shown_BPR, weight_BPR, strict=True
            )
        }

    def _click_effects(self, query: RankQuery, best: Best, scores: Scores, row: int) -> NDArray[np.float32]:
        """k x N: how much lower each item would score without each clicked item, the LLM's intents kept as they are."""
        vectors = SessionVectors(*torch.from_numpy(query.without_N3D).unbind(1))
        N = len(vectors.session_BD)
        left = [replace(query, items=items) for items in query.without_items_N] or [query] * N
        without_ND = self._model.fuse(vectors, self._model.intent_vectors(vectors, self._intents(left))).session_BD
        without = self._scores(without_ND, left)
        lower_kN = np.stack([without.of(n, best.item_k) for n in range(N)], axis=1)
        effect_kN: NDArray[np.float32] = scores.of(row, best.item_k)[:, None] - lower_kN
        return effect_kN

    def check(self) -> None:
        """Rank for a probe.

        Raises
        ------
        RuntimeError
            Scores are not finite: the weights are broken.
        """
        probe = np.zeros((3, self._model.config.width), dtype=np.float32)
        ranking = self.rank([RankQuery(probe, None, [], 1, items=[0])])[0]
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


def _ranked(scores: Scores, queries: Sequence[RankQuery], n_items: int) -> list[Best]:
    """Each query's best items that it does not exclude."""
    asked = max(query.k + len(query.excluded) + len(query.boosts) for query in queries)
    score_Bn, item_Bn = (found.numpy() for found in scores.best(min(asked, n_items)))
    answers = []
    for row, (query, score_n, item_n) in enumerate(zip(queries, score_Bn, item_Bn, strict=True)):
        left_out = {*query.excluded, *(item for item, _ in query.boosts)}
        kept = [place for place, item in enumerate(item_n.tolist()) if item not in left_out][: query.k]
        best = Best(item_n[kept], score_n[kept], np.zeros(len(kept), dtype=np.float32))
        answers.append(_with_boosts(best, scores, row, query) if query.boosts else best)
    return answers


def _with_boosts(best: Best, scores: Scores, row: int, query: RankQuery) -> Best:
    """The boosted items among the best of all others."""
    excluded = set(query.excluded)
    boosts = [(item, boost) for item, boost in query.boosts if item not in excluded]
    item_b = np.array([item for item, _ in boosts], dtype=np.int64)
    boost_b = np.array([boost for _, boost in boosts], dtype=np.float32)
    item_n = np.concatenate([best.item_k, item_b])
    score_n = np.concatenate([best.score_k, scores.of(row, item_b) + boost_b])
    boost_n = np.concatenate([best.boost_k, boost_b])
    order_k = np.lexsort((item_n, -score_n))[: query.k]
    return Best(item_n[order_k], score_n[order_k], boost_n[order_k])


def shares(contribution_kP: NDArray[np.float32]) -> NDArray[np.float64]:
    """|contribution| of each perspective over their sum, row by row; even shares where all are 0."""
    size_kP = np.abs(contribution_kP.astype(np.float64))
    total_k1 = size_kP.sum(-1, keepdims=True)
    if not total_k1.all():
        size_kP, total_k1 = size_kP + (total_k1 == 0), np.where(total_k1 == 0, size_kP.shape[-1], total_k1)
    share_kP: NDArray[np.float64] = size_kP / total_k1
    return share_kP
