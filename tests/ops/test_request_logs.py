"""Logs of the service: JSON with the id of the request, which the answer names; no key in them. And its rate limit."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml
from ray import serve
from ray.serve.schema import LoggingConfig
from serving_run import planted_run

from llm4sbr_ray.serving.ask import free_port
from llm4sbr_ray.serving.bundle import Bundle, export
from llm4sbr_ray.serving.ingress import API_KEY, Ingress

pytestmark = pytest.mark.integration
PRODUCTION = Path(__file__).parent.parent.parent / "serve_configs" / "production.yaml"
KEY = "the-key-of-this-test"


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def url(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[str]:
    """As production.yaml says, but with a line for each request, and a limit for each address."""
    run = planted_run(tmp_path_factory.mktemp("runs"))
    export(run)
    said = yaml.safe_load(PRODUCTION.read_text())["logging_config"]
    config = LoggingConfig(**{**said, "enable_access_log": True, "logs_dir": str(logs)})
    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port}, logging_config=config)
    options = {"num_cpus": 0.1, "runtime_env": {"env_vars": {API_KEY: KEY}}}
    place = run.uri("bundle"), Bundle(run.uri("bundle")).manifest.version
    app = serve.deployment(ray_actor_options=options)(Ingress).bind(*place, alone=(100, 3, "exact"), per_second=5)
    serve.run(app, name="llm4sbr", logging_config=config)
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def test_a_request_is_found_in_the_logs_by_its_id(url: str, logs: Path) -> None:
    body = {"session_id": "s", "items": ["id-1"]}
    for key, status in ((KEY, 200), ("wrong-key", 401)):
        headers = {"X-Request-ID": f"request-{status}", "Authorization": f"Bearer {key}"}
        answer = httpx.post(f"{url}/recommend", json=body, headers=headers, trust_env=False)
        assert (answer.status_code, answer.headers["X-Request-ID"]) == (status, f"request-{status}")
    assert httpx.get(f"{url}/healthz", trust_env=False).headers["X-Request-ID"]

    def records() -> list[dict[str, str]]:
        lines = [line for path in logs.rglob("replica*") for line in path.read_text().splitlines()]
        return [json.loads(line) for line in lines]

    deadline = time.monotonic() + 30
    while {"request-200", "request-401"} - {record.get("request_id") for record in records()}:
        assert time.monotonic() < deadline, records()
        time.sleep(0.2)
    found = [record for record in records() if record.get("request_id") == "request-200"]
    assert {(record["application"], record["deployment"]) for record in found} == {("llm4sbr", "llm4sbr_Ingress")}
    written = "".join(path.read_text() for path in logs.rglob("*") if path.is_file())
    assert KEY not in written
    assert "wrong-key" not in written


def test_an_address_that_asks_too_often_is_told_to_wait(url: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: httpx.get(f"{url}/items?q=a", trust_env=False), range(60)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
    assert {answer.status_code for answer in answers} == {401, 429}  # counted before the key is looked at
