"""The fused graph: sessions in one batch are answered as by the parts one after the other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from serving_run import V, planted_run, samples_table

from llm4sbr_ray.serving.bundle import Bundle, export
from llm4sbr_ray.serving.graph import Fused, Wanted
from llm4sbr_ray.serving.ranker import Ranker, RankQuery

STALE_CLICKS = 3


def test_fused_equals_the_parts(tmp_path: Path) -> None:
    run = planted_run(tmp_path)
    export(run)
    bundle = Bundle(run.uri("bundle"))
    threads = torch.get_num_threads()
    fused = Fused(bundle, 1000, STALE_CLICKS)
    torch.set_num_threads(threads)
    known = [row["items"] for row in samples_table(3, 60).to_pylist()]
    asked = known + [[*items, 0] for items in known]
    ranker = Ranker(bundle.model(), V, bundle.manifest.localised_items)
    clicks = []
    wanted = [Wanted(items, sorted(set(items)), 5) for items in asked]
    for items, ranked in zip(asked, fused.rank_all(wanted), strict=True):
        intents = fused._cache.lookup(items)
        query = RankQuery(fused._encoder.encode([items])[0], intents, sorted(set(items)), 5)
        (alone,) = ranker.rank([query])
        assert ranked.ranking.item_k.tolist() == alone.item_k.tolist()
        assert ranked.ranking.score_k == pytest.approx(alone.score_k, rel=1e-4, abs=1e-4)
        assert ranked.llm_clicks == (None if intents is None else intents.clicks)
        assert set(ranked.timings_ms) == {"encode", "intents", "rank"}
        clicks.append(ranked.llm_clicks)
    assert any(clicks[:60])
    assert None in clicks


def test_probes_fail_with_broken_weights(tmp_path: Path) -> None:
    run = planted_run(tmp_path)
    export(run)
    threads = torch.get_num_threads()
    fused = Fused(Bundle(run.uri("bundle")), 1000, STALE_CLICKS)
    torch.set_num_threads(threads)

    async def probe() -> dict[str, bool]:
        """Whether each part is well."""
        probes = fused.probes()
        results = await asyncio.gather(*probes.values(), return_exceptions=True)
        return {name: result is None for name, result in zip(probes, results, strict=True)}

    assert asyncio.run(probe()) == {"encoder": True, "cache": True, "ranker": True}
    with torch.no_grad():
        fused._encoder._model.backbone.item_embedding.weight.fill_(float("nan"))
    assert asyncio.run(probe()) == {"encoder": False, "cache": True, "ranker": False}
