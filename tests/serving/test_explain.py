"""Explanations are the model's own arithmetic, in numbers and in words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from serving_run import P, R, V, intents_of, items_table, planted_model, run_config, samples_table

from llm4sbr_ray.config import RunConfig
from llm4sbr_ray.models.base import SessionBatch, pad_sessions
from llm4sbr_ray.models.llm4sbr import LLM4SBR
from llm4sbr_ray.serving.cache import CachedIntents
from llm4sbr_ray.serving.catalogue import Catalogue
from llm4sbr_ray.serving.encoder import SessionEncoder
from llm4sbr_ray.serving.explain import intents, popular, recommendations, sentence
from llm4sbr_ray.serving.ranker import Ranker, Ranking, RankQuery, Reasons, shares
from llm4sbr_ray.serving.types import PerspectiveIntent, Recommendation

NAMES = ["long-term", "short-term"]


@pytest.fixture(params=["average", "gate", "residual"])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return run_config(tmp_path_factory.mktemp("r"), model={"width": 16, "max_length": 8, "fusion": request.param})


@pytest.fixture
def model(config: RunConfig) -> LLM4SBR:
    return planted_model(config)


def reasons(ranking: Ranking) -> Reasons:
    assert ranking.reasons is not None
    return ranking.reasons


def queries(model: LLM4SBR, known: bool, k: int = 10) -> tuple[list[RankQuery], SessionBatch]:
    """The same 20 sessions for the service and for the model."""
    rows = samples_table(3, 20).to_pylist()
    vectors = SessionEncoder(model, V).encode([row["items"] for row in rows])
    intents = intents_of(rows)
    batch = pad_sessions([row["items"] for row in rows], V, model.config.max_length)
    asked = []
    for n, vector in enumerate(vectors):
        cached = CachedIntents(
            intents.item_BPR[n].numpy().astype(np.int32),
            intents.weight_BPR[n].numpy(),
            intents.grounded_BP[n].numpy(),
        )
        asked.append(RankQuery(vector, cached if known else None, [], k))
    return asked, SessionBatch(batch.items_BL, batch.length_B, intents if known else None)


@pytest.mark.parametrize("known", [True, False])
def test_scores_are_the_models_and_contributions_add_up(model: LLM4SBR, known: bool) -> None:
    asked, batch = queries(model, known)
    with torch.inference_mode():
        scores_BV = model.score(batch).numpy()
    for ranking, scores_V in zip(Ranker(model, V, R).rank(asked), scores_BV, strict=True):
        assert ranking.item_k.tolist() == np.argsort(-scores_V, kind="stable")[:10].tolist()
        np.testing.assert_allclose(ranking.score_k, scores_V[ranking.item_k], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(reasons(ranking).contribution_kP.sum(1), ranking.score_k, rtol=1e-4, atol=1e-4)


def test_clicks_alone_is_the_ranking_with_the_perspectives_at_zero(model: LLM4SBR) -> None:
    asked, batch = queries(model, known=True)
    out = list(range(0, V, 2))
    compared = [replace(query, compare=n % 2 == 0, excluded=out) for n, query in enumerate(asked)]
    with torch.inference_mode():
        vectors = model.encode(batch.items_BL, batch.length_B)
        zero_BPD = torch.zeros(len(asked), P, model.config.width)
        scores_BV = (model.fuse(vectors, zero_BPD).session_BD @ model.backbone.item_vectors().T).numpy()
        if model.config.fusion == "residual":  # there it is the backbone itself
            np.testing.assert_allclose(scores_BV, model.rank_scores(vectors.session_BD).numpy(), rtol=1e-5, atol=1e-5)
    scores_BV[:, out] = -np.inf
    for n, (plain, ranking) in enumerate(zip(asked, Ranker(model, V, R).rank(compared), strict=True)):
        if n % 2:
            assert ranking.clicks_alone is None
            continue
        item_k, score_k = ranking.clicks_alone
        assert item_k.tolist() == np.argsort(-scores_BV[n], kind="stable")[: plain.k].tolist()
        np.testing.assert_allclose(score_k, scores_BV[n, item_k], rtol=1e-5, atol=1e-5)


def test_an_answer_does_not_depend_on_the_batch(model: LLM4SBR) -> None:
    asked, _ = queries(model, known=True)
    ranker = Ranker(model, V, R)
    for alone, together in zip([ranker.rank([query])[0] for query in asked], ranker.rank(asked), strict=True):
        assert alone.item_k.tolist() == together.item_k.tolist()
        np.testing.assert_allclose(alone.score_k, together.score_k, rtol=1e-5, atol=1e-5)


def test_what_is_shown_for_a_perspective(model: LLM4SBR) -> None:
    asked, batch = queries(model, known=True)
    assert batch.intents is not None
    with torch.inference_mode():
        vectors = model.encode(batch.items_BL, batch.length_B)
        near_BPR, _ = model.nearest_items(model.predict(vectors), R)
    for row, ranking in enumerate(Ranker(model, V, R).rank(asked)):
        for p in range(P):
            grounded = bool(batch.intents.grounded_BP[row, p])
            assert bool(reasons(ranking).predicted_P[p]) is not grounded
            expected = batch.intents.item_BPR if grounded else near_BPR
            assert reasons(ranking).shown_PR[p].tolist() == expected[row, p].tolist()
        np.testing.assert_allclose(reasons(ranking).shown_weight_PR.sum(1), 1, rtol=1e-5)


def test_excluded_items_never_show_up(model: LLM4SBR) -> None:
    asked, _ = queries(model, known=False, k=V)
    out = list(range(0, V, 2))
    narrowed = [RankQuery(q.vectors_3D, None, out, k) for q, k in zip(asked, [5, V] * 10, strict=True)]
    for full, rest, k in zip(
        Ranker(model, V, R).rank(asked), Ranker(model, V, R).rank(narrowed), [5, V] * 10, strict=True
    ):
        expected = [item for item in full.item_k.tolist() if item not in out]
        assert rest.item_k.tolist() == expected[:k]
    everything = RankQuery(asked[0].vectors_3D, None, list(range(V)), 5)
    assert Ranker(model, V, R).rank([everything])[0].item_k.tolist() == []


def test_recommendations_have_the_promised_form(model: LLM4SBR) -> None:
    asked, _ = queries(model, known=True)
    catalogue = Catalogue(items_table())
    for ranking in Ranker(model, V, R).rank(asked):
        for n, found in enumerate(recommendations(ranking, NAMES, catalogue)):
            answer = Recommendation.model_validate(found)
            assert answer.explanation is not None
            parts = answer.explanation.perspectives
            assert [part.name for part in parts] == NAMES
            assert answer.score == pytest.approx(sum(part.contribution for part in parts), rel=1e-4, abs=1e-4)
            assert sum(part.share for part in parts) == pytest.approx(1)
            leader = max(parts, key=lambda part: part.contribution)
            assert f"({leader.share:.0%})" in answer.explanation.text
            assert answer.item_id == f"id-{ranking.item_k[n]}"
        said = [PerspectiveIntent.model_validate(value) for value in intents(ranking, NAMES, catalogue) or []]
        assert [part.name for part in said] == NAMES
        for part, shown_R, gate in zip(said, reasons(ranking).shown_PR, reasons(ranking).gate_P, strict=True):
            assert [item.item_id for item in part.localised_items] == [f"id-{j}" for j in shown_R]
            assert part.gate == pytest.approx(gate)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=5))
def test_shares(contributions: list[float]) -> None:
    share_P = shares(np.array(contributions, dtype=np.float32))
    assert share_P.sum() == pytest.approx(1)
    total = sum(abs(c) for c in contributions)
    for share, contribution in zip(share_P, contributions, strict=True):
        assert share == pytest.approx(abs(contribution) / total if total else 1 / len(contributions))


def test_sentences() -> None:
    assert sentence("long-term", 0.62, ["Rose", "Rose", "Lily", "Iris"]) == (
        "Mostly because of long-term taste (62%): like Rose, Lily."
    )
    assert sentence("short-term", 0.4, []) == "Partly because of current need (40%)."
    assert sentence("short-term", 1, ["x" * 61]) == f"Mostly because of current need (100%): like {'x' * 59}…."
    assert sentence("gift", 0.5, ["Rose"]) == "Mostly because of the perspective “gift” (50%): like Rose."


def test_popular_items_say_why() -> None:
    found = [Recommendation.model_validate(value) for value in popular(Catalogue(items_table()), 3)]
    assert [(r.item_id, r.score) for r in found] == [("id-7", 50.0), ("id-0", 5.0), ("id-1", 5.0)]
    assert all(r.explanation and r.explanation.text.startswith("Popular") for r in found)
    assert not any(r.explanation and r.explanation.perspectives for r in found)


def test_broken_weights_fail_the_checks(model: LLM4SBR) -> None:
    encoder, ranker = SessionEncoder(model, V), Ranker(model, V, R)
    encoder.check()
    ranker.check()
    with torch.no_grad():
        model.backbone.item_embedding.weight[0] = float("nan")
    with pytest.raises(RuntimeError, match="behaviour encoder"):
        encoder.check()
    with torch.no_grad():
        model.backbone.item_embedding.weight[:-1] = float("nan")
    with pytest.raises(RuntimeError, match="fusion ranker"):
        ranker.check()


def test_boosted_items_compete_with_their_boost(model: LLM4SBR) -> None:
    asked, batch = queries(model, known=True)
    with torch.inference_mode():
        scores_BV = model.score(batch).numpy()
    boosts, excluded = [(5, 3.0), (6, -50.0), (7, 500.0), (8, 500.0)], [0, 8]
    boosted = [RankQuery(q.vectors_3D, q.intents, excluded, q.k, boosts=boosts) for q in asked]
    for ranking, scores_V in zip(Ranker(model, V, R).rank(boosted), scores_BV, strict=True):
        wanted_V = scores_V.astype(np.float64)
        for item, boost in boosts:
            wanted_V[item] += boost
        wanted_V[excluded] = -np.inf
        assert ranking.item_k.tolist() == np.argsort(-wanted_V, kind="stable")[:10].tolist()
        assert ranking.item_k[0] == 7
        np.testing.assert_allclose(ranking.score_k, wanted_V[ranking.item_k], rtol=1e-5, atol=1e-4)
        total_k = reasons(ranking).contribution_kP.sum(1) + ranking.boost_k
        np.testing.assert_allclose(total_k, ranking.score_k, rtol=1e-4, atol=1e-4)
    everything = RankQuery(asked[0].vectors_3D, None, list(range(V)), 5, boosts=[(3, 1.0)])
    assert Ranker(model, V, R).rank([everything])[0].item_k.tolist() == []


def test_blocked_items_are_not_popular_either() -> None:
    assert [r["item_id"] for r in popular(Catalogue(items_table()), 3, {7, 1})] == ["id-0", "id-2", "id-3"]


def test_a_ranking_without_reasons_is_the_same(model: LLM4SBR) -> None:
    asked, _ = queries(model, known=True)
    every_other = [replace(query, explain=n % 2 == 0) for n, query in enumerate(asked)]
    for n, (full, mixed) in enumerate(zip(*map(Ranker(model, V, R).rank, (asked, every_other)), strict=True)):
        assert full.item_k.tolist() == mixed.item_k.tolist()
        if n % 2:
            assert mixed.reasons is None
            found = recommendations(mixed, NAMES, Catalogue(items_table()))
            assert all(Recommendation.model_validate(r).explanation is None for r in found)
            assert intents(mixed, NAMES, Catalogue(items_table())) is None
        else:
            np.testing.assert_allclose(
                reasons(mixed).contribution_kP, reasons(full).contribution_kP, rtol=1e-4, atol=1e-5
            )
            assert reasons(mixed).shown_PR.tolist() == reasons(full).shown_PR.tolist()
            assert reasons(mixed).predicted_P.tolist() == reasons(full).predicted_P.tolist()
