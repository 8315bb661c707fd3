"""The service over real HTTP, with a real model from a bundle that the export wrote."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import ray
import requests
import schemathesis
import torch
from hypothesis import given, settings
from ray import serve
from serving_run import EVIL_TITLE, V, intents_of, planted_model, planted_run, samples_table

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.models.base import Intents, SessionBatch, pad_sessions
from llm4sbr_ray.models.ranking import top_items
from llm4sbr_ray.serving.app import ServeArgs, build_app
from llm4sbr_ray.serving.ask import ask, free_port
from llm4sbr_ray.serving.bundle import export
from llm4sbr_ray.serving.types import RecommendResponse

pytestmark = pytest.mark.integration
STALE_CLICKS = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = planted_run(tmp_path_factory.mktemp("runs"))
    export(run)
    return run


@pytest.fixture(scope="module")
def url(ray_cluster: None, run: Run) -> Iterator[str]:
    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run(build_app(ServeArgs(bundle=run.uri("bundle"), stale_clicks=STALE_CLICKS)), name="llm4sbr")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        yield client


def ids(items: list[int]) -> list[str]:
    return [f"id-{j}" for j in items]


def known_intents() -> dict[tuple[int, ...], dict[str, Any]]:
    """What the export should have put into the cache, by whole session."""
    rows = [row for seed, n in [(1, 40), (2, 20), (3, 60)] for row in samples_table(seed, n).to_pylist()]
    return {tuple(row["items"]): row for row in rows if any(row["grounded"])}


def offline_ranking(run: Run, session: list[int], exclude_seen: bool) -> tuple[list[int], list[float], int | None]:
    """The 20 best by the model itself, with the intents of the longest known prefix."""
    model, known, clicks = planted_model(run.config), known_intents(), None
    for n in range(max(1, len(session) - STALE_CLICKS), len(session) + 1):
        clicks = n if tuple(session[:n]) in known else clicks
    intents: Intents | None = None if clicks is None else intents_of([known[tuple(session[:clicks])]])
    batch = pad_sessions([session], V, run.config.model.max_length)
    seen = (torch.zeros(len(session), dtype=torch.int64), torch.tensor(session)) if exclude_seen else None
    with torch.inference_mode():
        scores_BV = model.score(SessionBatch(batch.items_BL, batch.length_B, intents))
        best = top_items(scores_BV, 20, seen)[0]
    return best.tolist(), scores_BV[0, best].tolist(), clicks


def test_served_ranking_equals_offline_ranking(url: str, run: Run) -> None:
    rng = np.random.default_rng(5)
    known = [list(session) for session in known_intents()][-50:]
    longer = [[*session, 0, 1] for session in known[:25]]
    unknown = [rng.choice(V, size=int(rng.integers(2, 30)), replace=False).tolist() for _ in range(25)]
    sessions = known + longer + unknown
    assert len(sessions) == 100

    async def send() -> list[httpx.Response]:
        """All at once, so that Serve batches them."""
        limits = httpx.Limits(max_connections=25)
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False, limits=limits) as many:
            posts = [
                many.post("/recommend", json={"session_id": n, "items": ids(s), "exclude_seen": n % 2 == 0})
                for n, s in enumerate(sessions)
            ]
            return list(await asyncio.gather(*posts))

    found_clicks = []
    for n, (session, response) in enumerate(zip(sessions, asyncio.run(send()), strict=True)):
        assert response.status_code == 200, response.text
        answer = RecommendResponse.model_validate_json(response.content)
        items, scores, clicks = offline_ranking(run, session, exclude_seen=n % 2 == 0)
        assert (answer.session_id, answer.llm_clicks, answer.served_by) == (n, clicks, "model")
        assert [r.item_id for r in answer.recommendations] == ids(items)
        assert [r.score for r in answer.recommendations] == pytest.approx(scores, rel=1e-4, abs=1e-4)
        for r in answer.recommendations:
            total = sum(part.contribution for part in r.explanation.perspectives)
            assert total == pytest.approx(r.score, rel=1e-4, abs=1e-4)
        found_clicks.append(clicks)
    assert found_clicks[:50] == [len(session) for session in known]
    assert None in found_clicks[75:]


def test_sources_of_the_perspectives(client: httpx.Client) -> None:
    for session, row in known_intents().items():
        body = client.post("/recommend", json={"session_id": "s", "items": ids(list(session)), "k": 1}).json()
        parts = body["perspectives"]
        assert [part["name"] for part in parts] == ["long-term", "short-term"]
        assert [part["source"] for part in parts] == ["llm" if g else "predicted" for g in row["grounded"]]
        shown = [item["item_id"] for part, g in zip(parts, row["grounded"], strict=True) if g
                 for item in part["localised_items"]]  # fmt: skip
        wanted = [j for p, g in enumerate(row["grounded"]) if g for j in row["intent_items"][3 * p : 3 * p + 3]]
        assert shown == ids(wanted)


def test_unknown_items_are_named_and_ignored(client: httpx.Client) -> None:
    mixed = client.post("/recommend", json={"session_id": "a", "items": ["nope", "id-1", 77, "id-2"]}).json()
    clean = client.post("/recommend", json={"session_id": "a", "items": ["id-1", "id-2"]}).json()
    assert mixed["ignored_items"] == ["nope", 77]
    assert clean["ignored_items"] == []
    assert [r["item_id"] for r in mixed["recommendations"]] == [r["item_id"] for r in clean["recommendations"]]


@pytest.mark.parametrize("items", [[], ["nope", "\u2603"]])
def test_nothing_known_is_answered_with_popular_items(client: httpx.Client, items: list[str]) -> None:
    response = client.post("/recommend", json={"session_id": 1, "items": items, "k": 3})
    answer = RecommendResponse.model_validate_json(response.content)
    assert (response.status_code, answer.served_by, answer.ignored_items) == (200, "popularity", items)
    assert [r.item_id for r in answer.recommendations] == ["id-7", "id-0", "id-1"]
    assert answer.recommendations[0].explanation.text.startswith("Popular")


def test_seen_items_and_small_catalogues(client: httpx.Client) -> None:
    session = ids(list(range(50)))
    left = client.post("/recommend", json={"session_id": 1, "items": session, "k": 100}).json()
    every = client.post("/recommend", json={"session_id": 1, "items": session, "k": 100, "exclude_seen": False}).json()
    assert {r["item_id"] for r in left["recommendations"]} == set(ids(list(range(50, V))))
    assert {r["item_id"] for r in every["recommendations"]} == set(ids(list(range(V))))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"items": ["id-1"]}, ["body", "session_id"]),
        ({"session_id": "s"}, ["body", "items"]),
        ({"session_id": "s", "items": ["id-1"], "k": 0}, ["body", "k"]),
        ({"session_id": "s", "items": ["id-1", None]}, ["body", "items", 1]),
        ({"session_id": "s", "items": ["id-1"] * 1001}, ["body", "items"]),
        ({"session_id": "s", "items": ["id-1"], "topk": 5}, ["body", "topk"]),
        ({"session_id": "s", "items": ["id-1"], "k": float("inf")}, ["body", "k"]),
        (["id-1"], ["body"]),
    ],
)
def test_bad_bodies_name_the_field(client: httpx.Client, body: Any, field: list[str]) -> None:
    response = client.post("/recommend", content=json.dumps(body))
    assert response.status_code == 422
    assert [problem["loc"] for problem in response.json()["detail"]] == [field]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"session_id": "\\ud800", "items": []}', b"[" * 100_000])
def test_what_is_not_json(client: httpx.Client, body: bytes) -> None:
    assert client.post("/recommend", content=body).status_code == 422


def test_too_large_bodies(client: httpx.Client) -> None:
    too_large = json.dumps({"session_id": "s", "items": ["x" * 256] * 1000}).encode().ljust(256 * 1024 + 1)
    assert client.post("/recommend", content=too_large).status_code == 413
    chunks = (b" " * 4096 for _ in range(100))  # no Content-Length
    assert client.post("/recommend", content=chunks).status_code == 413
    just_fits = json.dumps({"session_id": "s", "items": ["id-1"]}).encode().ljust(256 * 1024)
    assert client.post("/recommend", content=just_fits).status_code == 200


def test_search_and_page(client: httpx.Client) -> None:
    assert client.get("/items", params={"q": "number 12"}).json() == {
        "items": [{"item_id": "id-12", "title": "Soap number 12"}]
    }
    assert client.get("/items", params={"q": "<script>"}).json()["items"][0]["title"] == EVIL_TITLE
    assert len(client.get("/items").json()["items"]) == 20
    assert client.get("/items", params={"q": "x" * 201}).status_code == 422
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "innerHTML" not in page.text
    assert "http" not in page.text  # self-contained
    assert client.get("/recommend").status_code == 405
    assert client.get("/openapi.json").json()["paths"]["/recommend"]["post"]["requestBody"]


def test_answers_are_as_the_document_says(client: httpx.Client, url: str) -> None:
    """Requests made from /openapi.json: status, type and content of every answer are as described."""
    document = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    with requests.Session() as session:
        session.trust_env = False

        def check(case: schemathesis.Case) -> None:
            case.call_and_validate(base_url=url, session=session)

        for found in document.get_all_operations():
            made = given(case=found.ok().as_strategy())(check)
            settings(max_examples=25, deadline=None, derandomize=True, database=None)(made)()


def test_the_fused_graph_answers_as_the_composed(client: httpx.Client, run: Run) -> None:
    fused = ServeArgs(bundle=run.uri("bundle"), stale_clicks=STALE_CLICKS, graph="fused")
    serve.run(build_app(fused), name="fused", route_prefix="/fused")
    assert client.get("/fused/healthz").json()["status"] == "ok"
    for session in [*list(known_intents())[-10:], (1, 2, 3), (59,), ()]:
        body = {"session_id": "s", "items": ids(list(session))}
        one, other = (client.post(f"{prefix}/recommend", json=body).json() for prefix in ("", "/fused"))
        for key in ("version", "llm_clicks", "served_by"):
            assert one[key] == other[key]
        assert [r["item_id"] for r in one["recommendations"]] == [r["item_id"] for r in other["recommendations"]]
        text, other_text = ([r["explanation"]["text"] for r in a["recommendations"]] for a in (one, other))
        assert text == other_text
    serve.delete("fused")


def test_a_second_service_is_not_started_over_a_running_one(url: str, run: Run) -> None:
    from llm4sbr_ray.errors import UserError

    with pytest.raises(UserError, match="already"):
        ask(run)
    assert httpx.get(f"{url}/healthz", trust_env=False).status_code == 200


def test_health_falls_and_comes_back_with_a_part(client: httpx.Client) -> None:
    healthy = client.get("/healthz")
    assert (healthy.status_code, healthy.json()["status"]) == (200, "ok")
    (name,) = [
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if "llm4sbr#FusionRanker#" in actor["name"]
    ]
    ray.kill(ray.get_actor(name, namespace="serve"))
    seen = {client.get("/healthz").status_code}
    deadline = time.monotonic() + 60
    while seen != {503, 200} and time.monotonic() < deadline:
        time.sleep(0.1)
        response = client.get("/healthz")
        seen.add(response.status_code)
        if response.status_code == 503:
            assert response.json()["parts"]["ranker"] != "ok"
    assert seen == {503, 200}
    body = {"session_id": "s", "items": ["id-1"]}
    assert client.post("/recommend", json=body).status_code == 200


def test_free_port_is_free() -> None:
    with socket.create_server(("127.0.0.1", free_port())):
        pass
