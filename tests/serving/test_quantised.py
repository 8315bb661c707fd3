"""The quantised index: nearly the exact items, and exact scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from serving_run import planted_model, planted_run, run_config, samples_table

from llm4sbr_ray.serving.bundle import Bundle, export
from llm4sbr_ray.serving.graph import Fused, Wanted
from llm4sbr_ray.serving.nearest import Exact, build_search
from llm4sbr_ray.serving.ranker import Ranker, RankQuery


def recall(table_VD: torch.Tensor, query_BD: torch.Tensor, k: int) -> float:
    """Share of the exact top k that the index finds; its scores are checked against a float64 loop."""
    score_Bk, item_Bk = build_search(table_VD, "pq")(query_BD, k)
    exact_BV = query_BD.double().numpy() @ table_VD.double().numpy().T
    shares = []
    for scores, items, exact_V in zip(score_Bk.tolist(), item_Bk.tolist(), exact_BV, strict=True):
        assert scores == sorted(scores, reverse=True)
        assert scores == pytest.approx([float(exact_V[j]) for j in items], rel=1e-5, abs=1e-5)
        shares.append(len(set(items) & set(np.argsort(-exact_V)[:k].tolist())) / k)
    return float(np.mean(shares))


@pytest.mark.parametrize("k", [1, 20, 100])
def test_recall_on_vectors_without_clusters(k: int) -> None:
    draw = torch.Generator().manual_seed(0)
    table_VD, query_BD = torch.randn(20_000, 48, generator=draw), torch.randn(25, 48, generator=draw)
    assert recall(table_VD, query_BD, k) >= 0.99


def test_recall_where_dimensions_differ_in_spread() -> None:
    draw = torch.Generator().manual_seed(1)
    spread_D = 2.0 ** -torch.arange(32.0).div(4)
    table_VD, query_BD = torch.randn(20_000, 32, generator=draw) * spread_D, torch.randn(25, 32, generator=draw)
    assert recall(table_VD, query_BD, 20) >= 0.99


def test_recall_on_clustered_vectors() -> None:
    draw = torch.Generator().manual_seed(5)
    centre_CD = torch.randn(500, 24, generator=draw)
    table_VD = torch.nn.functional.normalize(centre_CD.repeat(120, 1) + torch.randn(60_000, 24, generator=draw) / 2)
    query_BD = table_VD[:40] + torch.randn(40, 24, generator=draw) / 20
    search = build_search(table_VD, "pq", clustered=True)
    score_Bk, item_Bk = search(query_BD, 5)
    exact_Bk, best_Bk = Exact(table_VD)(query_BD, 5)
    found = [len(set(a) & set(b)) / 5 for a, b in zip(item_Bk.tolist(), best_Bk.tolist(), strict=True)]
    assert np.mean(found) >= 0.95
    torch.testing.assert_close(score_Bk[:, 0], exact_Bk[:, 0])


def test_where_the_nearest_clusters_hold_too_few_all_are_read() -> None:
    table_VD = torch.nn.functional.normalize(torch.randn(50_000, 16, generator=torch.Generator().manual_seed(6)))
    _, item_Bk = build_search(table_VD, "pq", clustered=True)(table_VD[:3], 1000)
    assert all(len(set(row)) == 1000 and min(row) >= 0 for row in item_Bk.tolist())


def test_a_small_catalogue_is_searched_whole() -> None:
    draw = torch.Generator().manual_seed(2)
    table_VD, query_BD = torch.randn(60, 16, generator=draw), torch.randn(9, 16, generator=draw)
    for k in (1, 59, 60):
        (score_Bk, item_Bk), (exact_Bk, best_Bk) = (
            build_search(table_VD, "pq")(query_BD, k),
            Exact(table_VD)(query_BD, k),
        )
        assert item_Bk.tolist() == best_Bk.tolist()
        torch.testing.assert_close(score_Bk, exact_Bk)


@pytest.mark.parametrize("kind", ["exact", "pq"])
def test_of_equal_scores_the_lower_index_comes_first(kind: str) -> None:
    # Whole numbers: their products are exact in whatever order a processor adds them up, so equal rows score alike.
    table_VD = torch.randint(-9, 10, (10, 16), generator=torch.Generator().manual_seed(3)).float().repeat(5, 1)
    _, item_Bk = build_search(table_VD, "exact" if kind == "exact" else "pq")(table_VD[:3], 7)
    score_BV = table_VD[:3].double().numpy() @ table_VD.double().numpy().T
    assert item_Bk.tolist() == [np.argsort(-row, kind="stable")[:7].tolist() for row in score_BV.round(4)]


def test_nan_comes_after_every_number() -> None:
    table_VD = torch.randn(30, 8, generator=torch.Generator().manual_seed(4))
    table_VD[5] = torch.nan
    _, item_Bk = Exact(table_VD)(torch.ones(2, 8), 29)
    assert all(5 not in row for row in item_Bk.tolist())


def test_the_service_answers_alike_with_both(tmp_path: Path) -> None:
    run = planted_run(tmp_path)
    export(run)
    bundle, threads = Bundle(run.uri("bundle")), torch.get_num_threads()
    exact, quantised = Fused(bundle, 1000, 3), Fused(bundle, 1000, 3, "pq")
    torch.set_num_threads(threads)
    asked = [Wanted(row["items"], sorted(row["items"]), 10) for row in samples_table(3, 60).to_pylist()]
    for one, other in zip(exact.rank_all(asked), quantised.rank_all(asked), strict=True):
        assert one.ranking.item_k.tolist() == other.ranking.item_k.tolist()
        assert one.ranking.reasons is not None
        assert other.ranking.reasons is not None
        assert one.ranking.reasons.shown_PR.tolist() == other.ranking.reasons.shown_PR.tolist()
        np.testing.assert_allclose(one.ranking.score_k, other.ranking.score_k, rtol=1e-5, atol=1e-5)


def test_broken_weights_fail_the_check(tmp_path: Path) -> None:
    model = planted_model(run_config(tmp_path))
    ranker = Ranker(model, 60, 3, "pq")
    ranker.check()
    vectors = np.full((3, 16), np.nan, dtype=np.float32)
    assert np.isnan(ranker.rank([RankQuery(vectors, None, [], 1)])[0].score_k).all()
