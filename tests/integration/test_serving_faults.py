"""The service while its processes are killed, while more is asked than it can answer, and while load comes and goes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from ray import serve
from serving_run import V, planted_run
from traffic import Traffic, deploy

from llm4sbr_ray.serving.app import ServeArgs
from llm4sbr_ray.serving.ask import free_port
from llm4sbr_ray.serving.bundle import export

pytestmark = pytest.mark.integration
PARTS = ("FusionRanker", "BehaviourEncoder", "EmbeddingCache", "Ingress")
THREADS = 4
BODY: dict[str, Any] = {"session_id": "s", "items": [f"id-{j}" for j in (1, 2, 3, 59)], "k": 10}
SLOW = {"session_id": "s", "items": [f"id-{j}" for j in range(40)], "k": V, "explain_clicks": True}


@pytest.fixture(scope="module")
def bundle(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    run = planted_run(tmp_path_factory.mktemp("runs"))
    export(run)
    return run.uri("bundle")


@pytest.fixture(scope="module")
def url(bundle: str) -> Iterator[str]:
    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def processes(title: str) -> list[psutil.Process]:
    """Ray's processes of this test with such a title."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(f"ray::{title}"):
                found.append(process)
    return found


def until(done: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.1)


def ask(url: str, body: dict[str, Any] = BODY) -> httpx.Response:
    return httpx.post(f"{url}/recommend", json=body, timeout=30, trust_env=False)


def takes_traffic(url: str) -> bool:
    """What a load balancer asks before it sends requests to a proxy."""
    try:
        return httpx.get(f"{url}/-/healthz", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def ranked(response: httpx.Response) -> list[str]:
    return [found["item_id"] for found in response.json()["recommendations"]]


def test_processes_are_killed_under_load(url: str, bundle: str) -> None:
    """No wrong answer, and none lost but those that the killed ingress or proxy was working on."""
    deploy(ServeArgs(bundle=bundle), [{"name": name, "num_replicas": 2} for name in PARTS])
    expected = ranked(ask(url))
    for part in PARTS:
        with Traffic(url, BODY, THREADS) as traffic:
            time.sleep(0.5)
            os.kill(processes(f"ServeReplica:llm4sbr:{part}")[0].pid, signal.SIGKILL)
            time.sleep(2)
        statuses = Counter(response.status_code for response in traffic.answers)
        assert all(ranked(response) == expected for response in traffic.answers if response.status_code == 200)
        lost = len(traffic.failures) + sum(n for status, n in statuses.items() if status != 200)
        assert lost <= (THREADS if part == "Ingress" else 0), (part, statuses, traffic.failures)
        assert statuses[200] > 0
    with Traffic(url, BODY, THREADS) as traffic:
        until(lambda: len(traffic.answers) > 0)
        (proxy,) = processes("ProxyActor")
        os.kill(proxy.pid, signal.SIGKILL)
        until(lambda: bool(traffic.failures))
        until(lambda: takes_traffic(url))
    # A proxy that comes back listens before it has its routes: 404 from Serve itself, and its health route says so.
    others = [response for response in traffic.answers if response.status_code != 200]
    assert {response.status_code for response in others} <= {404}
    assert all("-/routes" in response.text for response in others)
    assert all(ranked(response) == expected for response in traffic.answers if response.status_code == 200)
    with Traffic(url, BODY, THREADS) as traffic:
        until(lambda: len(traffic.answers) > 10 * THREADS)
    assert not traffic.failures
    assert {response.status_code for response in traffic.answers} == {200}
    assert all(ranked(response) == expected for response in traffic.answers)


def test_what_is_no_request_disturbs_no_other(url: str, bundle: str) -> None:
    deploy(ServeArgs(bundle=bundle, graph="fused"), [{"name": "Ingress"}])
    expected = ranked(ask(url))
    host, port = urlsplit(url).hostname, urlsplit(url).port
    deep = b'{"session_id": "s", "items": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    abuse: list[tuple[bytes, int]] = [
        (b"x" * 2**20, 413),
        (json.dumps({"session_id": "s", "items": ["id-1"] * 10_000}).encode(), 422),
        (deep, 422),
        (b'{"session_id": "s", "items": [NaN]}', 422),
        (b'{"session_id": "s", "items": ["id-1"], "boost": {"id-2": Infinity}}', 422),
        (b'{"session_id": {}, "items": "id-1", "k": []}', 422),
        (
            json.dumps(
                {"session_id": "\u202e\U0001f9fc", "items": ["\u0000", "\U0001f9fc" * 256, "id-\u0661"]}
            ).encode(),
            200,
        ),
    ]
    with Traffic(url, BODY, THREADS) as traffic, socket.create_connection((str(host), port)) as slow:
        content = json.dumps(BODY).encode()
        head = (
            f"POST /recommend HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        )
        slow.sendall(head.encode())
        for number, (body, status) in enumerate(abuse):
            answer = httpx.post(f"{url}/recommend", content=body, timeout=30, trust_env=False)
            assert answer.status_code == status, (number, answer.text)
            slow.sendall(content[number : number + 1])  # a client that sends a byte now and then
        assert answer.json()["served_by"] == "popularity"
        slow.sendall(content[len(abuse) :])
        slow.settimeout(30)
        received = b"".join(iter(lambda: slow.recv(2**16), b""))
    assert received.startswith(b"HTTP/1.1 200")
    assert not traffic.failures
    assert {response.status_code for response in traffic.answers} == {200}
    assert all(ranked(response) == expected for response in traffic.answers)


def test_overload_is_refused_at_once(url: str, bundle: str) -> None:
    """Sixteen times as many as there is room for: 200, or 503 with Retry-After, and memory stays."""
    limits = {"max_ongoing_requests": 2, "max_queued_requests": 2}
    refusal = {"status_code": 503, "retry_after_s": 1}
    deploy(ServeArgs(bundle=bundle, graph="fused"), [{"name": "Ingress", "backpressure_config": refusal, **limits}])
    serving = [*processes("ServeReplica:llm4sbr:Ingress"), *processes("ProxyActor")]

    async def flood(n: int) -> list[httpx.Response]:
        connections = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(timeout=30, trust_env=False, limits=connections) as client:
            return list(await asyncio.gather(*(client.post(f"{url}/recommend", json=SLOW) for _ in range(n))))

    asyncio.run(flood(64))
    before = sum(process.memory_info().rss for process in serving)
    answers = asyncio.run(flood(512))
    after = sum(process.memory_info().rss for process in serving)
    assert {answer.status_code for answer in answers} == {200, 503}
    assert {answer.headers["retry-after"] for answer in answers if answer.status_code == 503} == {"1"}
    assert after - before < 100 * 2**20
    assert ask(url).status_code == 200


def test_replicas_come_with_the_load_and_go_after_it(url: str, bundle: str) -> None:
    def running() -> int:
        deployment = serve.status().applications["llm4sbr"].deployments["Ingress"]
        return deployment.replica_states.get("RUNNING", 0)

    scaling = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 1, "upscale_delay_s": 0.2}
    scaling |= {"downscale_delay_s": 1, "metrics_interval_s": 0.2, "look_back_period_s": 1}
    deploy(ServeArgs(bundle=bundle, graph="fused"), [{"name": "Ingress", "autoscaling_config": scaling}])
    expected = ranked(ask(url))
    with Traffic(url, BODY, threads=1, pause_s=0.05) as lasting:
        until(lambda: running() == 1)
        with Traffic(url, SLOW, threads=6, pause_s=0) as step:
            until(lambda: running() == 2)
        until(lambda: running() == 1)
    assert not [*lasting.failures, *step.failures]
    assert {response.status_code for response in [*lasting.answers, *step.answers]} == {200}
    assert all(ranked(response) == expected for response in lasting.answers)
