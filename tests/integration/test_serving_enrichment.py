"""Sessions that the cache lacks are read by a real vLLM engine behind the service, over real HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from ray import serve

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.serving.app import ServeArgs, build_app
from llm4sbr_ray.serving.ask import free_port
from llm4sbr_ray.serving.bundle import Bundle
from llm4sbr_ray.serving.enrichment import Enrichment
from llm4sbr_ray.serving.graph import Fused, Wanted

pytestmark = pytest.mark.integration
READ_WITHIN_S = 180  # the engine starts meanwhile


@pytest.fixture(scope="module")
def url(pipeline_run: Run) -> Iterator[str]:
    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    args = ServeArgs(bundle=pipeline_run.uri("bundle"), enrichment=Enrichment(), stale_clicks=0)
    serve.run(build_app(args), name="llm4sbr")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def test_a_miss_is_answered_at_once_and_later_from_what_the_llm_said(url: str, pipeline_run: Run) -> None:
    """The stored answers of test sessions are what the LLM has to say again: same engine, prompts and localisation."""
    rows = pipeline_run.read_table("intents/samples", "test").to_pylist()
    bundle = Bundle(pipeline_run.uri("bundle"))
    ids = bundle.catalogue().item_ids
    row = next(row for row in rows if all(row["grounded"]) and len(row["items"]) > 1)
    session = row["items"]
    unread = [session[0]] * pipeline_run.config.perspectives.max_items + session
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:

        def ask(items: list[int]) -> dict[str, Any]:
            response = client.post("/recommend", json={"session_id": "s", "items": [ids[j] for j in items], "k": 5})
            assert response.status_code == 200, response.text
            found: dict[str, Any] = response.json()
            return found

        first = ask(unread)
        assert first["llm_clicks"] is None
        assert {part["source"] for part in first["perspectives"]} == {"predicted"}
        deadline = time.monotonic() + READ_WITHIN_S
        while (later := ask(unread))["llm_clicks"] is None and time.monotonic() < deadline:
            time.sleep(0.5)
        assert later["llm_clicks"] == len(unread)
        assert "llm" in {part["source"] for part in later["perspectives"]}

    async def fused() -> None:
        """The other graph hears of what this one had asked, and asks for itself."""
        enricher = serve.get_deployment_handle("Enricher", "llm4sbr")
        graph = Fused(bundle, 10_000, 0, enricher=(enricher, 10))
        graph._cache._entries.clear()
        wanted = [Wanted(unread, [], 5), Wanted(session, [], 5)]
        assert [ranked.llm_clicks for ranked in graph.rank_all(wanted)] == [None, None]
        deadline = time.monotonic() + READ_WITHIN_S
        while None in (clicks := [r.llm_clicks for r in graph.rank_all(wanted)]) and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        assert clicks == [len(unread), len(session)]
        said = graph._cache.lookup(session)
        assert said is not None
        assert said.item_PR.reshape(-1).tolist() == row["intent_items"]
        assert said.weight_PR.reshape(-1).tolist() == pytest.approx(row["intent_weights"], abs=1e-3)

    asyncio.run(fused())
