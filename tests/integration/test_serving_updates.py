"""New versions of a bundle under traffic, over real HTTP: none is lost, none is mixed, a broken one is refused."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
import serving_run
import torch
from ray import serve
from serving_run import V, planted_model, planted_run
from traffic import Traffic, deploy

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.models.base import pad_sessions
from llm4sbr_ray.models.ranking import top_items
from llm4sbr_ray.serving.app import ServeArgs, build_app
from llm4sbr_ray.serving.ask import free_port
from llm4sbr_ray.serving.bundle import Bundle, export

pytestmark = pytest.mark.integration
SESSION, K = [1, 2, 3, 59], 10  # no LLM has read it
WIDTHS = (16, 24)  # of the two versions: vectors of one do not fit the other


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Two runs with a bundle, by its version."""
    found = {}
    for width in WIDTHS:
        run = planted_run(tmp_path_factory.mktemp("runs"), model={"width": width, "max_length": 8})
        export(run)
        found[Bundle(run.uri("bundle")).manifest.version] = run
    return found


@pytest.fixture(scope="module")
def url(ray_cluster: None) -> Iterator[str]:
    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def offline(run: Run) -> list[str]:
    batch = pad_sessions([SESSION], V, run.config.model.max_length)
    with torch.inference_mode():
        scores_BV = planted_model(run.config).score(batch)
    seen = torch.zeros(len(SESSION), dtype=torch.int64), torch.tensor(SESSION)
    return [f"id-{j}" for j in top_items(scores_BV, K, seen)[0].tolist()]


BODY = {"session_id": "s", "items": [f"id-{j}" for j in SESSION], "k": K}


@pytest.mark.parametrize("graph", ["fused", "composed"])
def test_a_new_version_is_taken_up_and_rolled_back(
    url: str, versions: dict[str, Run], graph: Literal["fused", "composed"]
) -> None:
    expected = {version: offline(run) for version, run in versions.items()}
    first = next(iter(versions))
    order = [*versions, first]
    serve.run(build_app(ServeArgs(bundle=versions[first].uri("bundle"), graph=graph)), name="llm4sbr")
    with Traffic(url, BODY) as traffic:
        for version in order[1:]:
            serve.run(build_app(ServeArgs(bundle=versions[version].uri("bundle"), graph=graph)), name="llm4sbr")
            last = httpx.post(f"{url}/recommend", json={"session_id": 1, "items": ["id-1"]}, trust_env=False).json()
            assert last["version"] == version
    statuses = {response.status_code for response in traffic.answers}
    assert statuses <= ({200} if graph == "fused" else {200, 503})
    served = set()
    for response in traffic.answers:
        if response.status_code == 200:
            answer = response.json()
            assert [r["item_id"] for r in answer["recommendations"]] == expected[answer["version"]]
            served.add(answer["version"])
        else:
            assert response.headers["retry-after"] == "1"
    assert served == set(versions)


def test_a_broken_bundle_is_refused_while_the_running_one_answers(
    url: str, versions: dict[str, Run], tmp_path: Path
) -> None:
    first, other = versions
    fused = ServeArgs(bundle=versions[first].uri("bundle"), graph="fused")
    serve.run(build_app(fused), name="llm4sbr")
    broken = Path(shutil.copytree(versions[other].path("bundle"), tmp_path / "bundle"))
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with Traffic(url, BODY) as traffic, pytest.raises(UserError, match=r"model\.safetensors"):
        serve.run(build_app(fused.model_copy(update={"bundle": str(broken)})), name="llm4sbr")
    body = {"session_id": "s", "items": ["id-1"]}
    after = httpx.post(f"{url}/recommend", json=body, trust_env=False)
    assert {response.status_code for response in [*traffic.answers, after]} == {200}
    assert after.json()["version"] == first


def test_new_items_are_recommended_at_once(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `serve deploy` brings them: the same application with another user_config, no request lost."""
    monkeypatch.setattr(serving_run, "E", 384)  # the width of the encoder that reads the new titles
    run = planted_run(tmp_path)
    export(run)
    args = ServeArgs(bundle=run.uri("bundle"), graph="fused")

    def take_up(new_items: list[dict[str, str]]) -> None:
        deploy(args, [{"name": "Ingress", "user_config": {"new_items": new_items}}])

    def answered(items: list[str]) -> dict[str, Any]:
        body = {"session_id": "s", "items": items, "k": 100, "exclude_seen": False}
        response = httpx.post(f"{url}/recommend", json=body, timeout=30, trust_env=False)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def until(known: bool) -> None:
        deadline = time.monotonic() + 60
        while (answered(["brand-new"])["ignored_items"] == []) is not known:
            assert time.monotonic() < deadline
            time.sleep(0.2)

    take_up([])
    until(False)
    with Traffic(url, BODY) as traffic:
        take_up([{"item_id": "brand-new", "title": "Rose soap with shea butter"}])
        until(True)
        assert answered(["brand-new"])["served_by"] == "model"
        found = {r["item_id"]: r for r in answered(["id-5"])["recommendations"]}
        assert len(found) == V + 1
        assert found["brand-new"]["title"] == "Rose soap with shea butter"
        take_up([])
        until(False)
    assert not traffic.failures
    assert {response.status_code for response in traffic.answers} == {200}
