"""Items that come after the export: their vectors, their place in rankings, and what a click on one does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from serving_run import E, V, items_table, planted_model, planted_run, run_config, samples_table, text_table

from llm4sbr_ray.config import Text
from llm4sbr_ray.serving.bundle import Bundle, export
from llm4sbr_ray.serving.catalogue import Catalogue
from llm4sbr_ray.serving.graph import Fused, Wanted
from llm4sbr_ray.serving.nearest import Exact, Extended
from llm4sbr_ray.serving.new_items import IngressConfig, Placed, encode_titles, place


def test_vectors_are_those_of_a_weighted_least_squares_fit(tmp_path: Path) -> None:
    model, text_VE = planted_model(run_config(tmp_path)), text_table().double().numpy()
    rng = np.random.default_rng(0)
    clicks_V = rng.integers(0, 90, size=V).astype(np.int32)
    title_NE = rng.normal(size=(8, E)).astype(np.float32)
    title_NE /= np.linalg.norm(title_NE, axis=1, keepdims=True)
    placed = place(title_NE, model, clicks_V)
    item_VD = model.backbone.item_vectors().double().detach().numpy()
    rows, wanted = [], []
    for j in range(V):
        root = np.sqrt(min(clicks_V[j], 50) if text_VE[j].any() else 0)
        rows.append(root * np.append(text_VE[j], 1))
        wanted.append(root * item_VD[j])
    rows += list(np.eye(E + 1))  # the ridge
    wanted += [np.zeros(item_VD.shape[1])] * (E + 1)
    fitted_FD = np.linalg.lstsq(np.array(rows), np.array(wanted), rcond=None)[0]
    for n, title_E in enumerate(title_NE.astype(np.float64)):
        np.testing.assert_allclose(placed.vector_ND[n].numpy(), np.append(title_E, 1) @ fitted_FD, rtol=1e-3, atol=1e-4)
        assert placed.nearest_N[n] == int(np.argmax(text_VE @ title_E))


def twins(fused: Fused, items: list[int]) -> Placed:
    """New items that are others under a new name."""
    model = fused.model
    return Placed(model.backbone.item_vectors()[items].detach(), model.item_text_VE[items], items)


def test_new_items_are_ranked_by_their_vectors_among_the_others(tmp_path: Path) -> None:
    run = planted_run(tmp_path)
    export(run)
    bundle, threads = Bundle(run.uri("bundle")), torch.get_num_threads()
    fused = Fused(bundle, 1000, 3)
    torch.set_num_threads(threads)
    more = fused.with_items(twins(fused, [10, 20, 30]), V)
    for row in samples_table(3, 20).to_pylist():
        (before,), (after,) = (
            graph.rank_all([Wanted(row["items"], [], V + n)]) for graph, n in ((fused, 0), (more, 3))
        )
        score = dict(zip(after.ranking.item_k.tolist(), after.ranking.score_k.tolist(), strict=True))
        assert sorted(score) == list(range(V + 3))
        for new, twin in ((V, 10), (V + 1, 20), (V + 2, 30)):
            assert score[new] == pytest.approx(score[twin], rel=1e-4, abs=1e-4)
        known = [item for item in after.ranking.item_k.tolist() if item < V]
        assert known == before.ranking.item_k.tolist()
        assert after.ranking.reasons is not None
        total_k = after.ranking.reasons.contribution_kP.sum(1)
        np.testing.assert_allclose(total_k, after.ranking.score_k, rtol=1e-3, atol=1e-3)


def test_a_click_on_a_new_item_is_read_as_one_on_the_nearest(tmp_path: Path) -> None:
    run = planted_run(tmp_path)
    export(run)
    bundle, threads = Bundle(run.uri("bundle")), torch.get_num_threads()
    fused = Fused(bundle, 1000, 3)
    torch.set_num_threads(threads)
    more = fused.with_items(twins(fused, [10]), V)
    new, twin = more.rank_all([Wanted([V, 5], [V], 10), Wanted([10, 5], [V], 10)])
    assert new.ranking.item_k.tolist() == twin.ranking.item_k.tolist()
    assert V not in new.ranking.item_k.tolist()


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_an_extended_search_is_one_over_the_whole_table(k: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    table_VD, query_BD = torch.randint(-2, 3, (12, 3), generator=draw).float(), torch.randn(4, 3, generator=draw)
    whole = Exact(table_VD)(query_BD, k)
    for V_known in (1, 5, 11):
        parts = Extended(Exact(table_VD[:V_known]), V_known, table_VD[V_known:])(query_BD, k)
        torch.testing.assert_close(parts[0], whole[0], rtol=1e-5, atol=1e-5)
        assert (query_BD @ table_VD.T).gather(1, parts[1]) == pytest.approx(whole[0].numpy(), rel=1e-5, abs=1e-5)


def test_the_catalogue_with_new_items() -> None:
    catalogue = Catalogue(items_table()).with_items([("new-1", "A rose"), ("new-2", "A lily")])
    assert catalogue.split_known(["new-2", "id-3", "nope"]) == ([V + 1, 3], ["nope"])
    assert catalogue.search("rose", 5) == [V]
    assert catalogue.popular_V[0] == 7
    for taken in ([("id-3", "A rose")], [("new", "A rose"), ("new", "A lily")]):
        with pytest.raises(ValueError, match="holds already, or that occur twice"):
            Catalogue(items_table()).with_items(taken)


def test_what_the_ingress_takes_as_its_configuration() -> None:
    assert IngressConfig.model_validate({"new_items": []}).new_items == ()
    for wrong in ({}, {"new_items": [{"item_id": "a"}]}, {"new_items": [{"item_id": "", "title": "x"}]}, {"new": []}):
        with pytest.raises(ValidationError):
            IngressConfig.model_validate(wrong)


def test_titles_are_encoded_as_the_catalogue_was() -> None:
    title_NE = encode_titles(["rose soap", "soap with roses", "garden hose"], Text())
    assert title_NE.shape[0] == 3
    assert title_NE[0] @ title_NE[1] > title_NE[0] @ title_NE[2]
