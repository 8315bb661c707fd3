"""The fused graph: sessions in one batch are answered as by the parts one after the other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from serving_run import V, planted_run, samples_table

from llm4sbr_ray.models.base import Intents, SessionBatch, pad_sessions
from llm4sbr_ray.serving.bundle import Bundle, export
from llm4sbr_ray.serving.cache import CachedIntents
from llm4sbr_ray.serving.explain import recommendations
from llm4sbr_ray.serving.graph import Fused, Wanted, clicked_items
from llm4sbr_ray.serving.ranker import Ranker, RankQuery
from llm4sbr_ray.serving.types import Recommendation

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


def test_click_effects_are_what_leaving_the_item_out_does(tmp_path: Path) -> None:
    run = planted_run(tmp_path)
    export(run)
    bundle, threads = Bundle(run.uri("bundle")), torch.get_num_threads()
    fused, model = Fused(bundle, 1000, STALE_CLICKS), bundle.model()
    torch.set_num_threads(threads)
    sessions = [row["items"] for row in samples_table(3, 20).to_pylist()] + [[4, 9, 4, 2], [7], [7, 7]]
    asked = [Wanted(items, [], 5, explain_clicks=True) for items in sessions]
    catalogue = bundle.catalogue()
    for wanted, ranked in zip(asked, fused.rank_all(asked), strict=True):
        reasons, clicked = ranked.ranking.reasons, clicked_items(wanted)
        assert reasons is not None
        if len(set(wanted.items)) == 1:
            assert (clicked, reasons.effect_kN) == ([], None)
            continue
        assert reasons.effect_kN is not None
        assert sorted(clicked) == sorted(set(wanted.items))
        intents = fused._cache.lookup(wanted.items)
        for n, item in enumerate(clicked):
            left = pad_sessions([[j for j in wanted.items if j != item]], V, model.config.max_length)
            batch = SessionBatch(left.items_BL, left.length_B, as_batch(intents))
            with torch.inference_mode():
                without_V = model.score(batch)[0].numpy()
            effect_k = ranked.ranking.score_k - without_V[ranked.ranking.item_k]
            assert reasons.effect_kN[:, n] == pytest.approx(effect_k, rel=1e-3, abs=1e-3)
        for found, effect_N in zip(
            recommendations(ranked.ranking, ["a", "b"], catalogue, clicked), reasons.effect_kN.tolist(), strict=True
        ):
            named = Recommendation.model_validate(found).explanation
            assert named is not None
            assert named.clicks is not None
            assert [click.effect for click in named.clicks] == sorted(effect_N, reverse=True)[:3]
            assert named.clicks[0].item_id == f"id-{clicked[int(np.argmax(effect_N))]}"


def as_batch(intents: CachedIntents | None) -> Intents | None:
    if intents is None:
        return None
    parts = (intents.item_PR.astype(np.int64), intents.weight_PR, intents.grounded_P)
    return Intents(*(torch.from_numpy(part.copy())[None] for part in parts))


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
