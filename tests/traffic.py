"""Constant traffic for tests of the running service, and deployment from a Serve config as `serve deploy` does it."""

from __future__ import annotations

import threading
from typing import Any

import httpx
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from llm4sbr_ray.serving.app import ServeArgs


class Traffic:
    """Asks without a pause, from some threads, until it is stopped."""

    def __init__(self, url: str, body: dict[str, Any], threads: int = 4, pause_s: float = 0.01) -> None:
        self.answers: list[httpx.Response] = []
        self.failures: list[httpx.HTTPError] = []  # no answer at all
        self._url, self._body, self._pause_s, self._stop = url, body, pause_s, threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def _ask(self) -> None:
        with httpx.Client(timeout=30, trust_env=False) as client:
            while not self._stop.wait(self._pause_s):
                try:
                    self.answers.append(client.post(f"{self._url}/recommend", json=self._body))
                except httpx.HTTPError as error:
                    self.failures.append(error)

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def deploy(args: ServeArgs, deployments: list[dict[str, Any]]) -> None:
    """One application, as a Serve config file describes it; returns when it runs."""
    application = {
        "name": "llm4sbr",
        "import_path": "llm4sbr_ray.serving.app:build_app",
        "args": args.model_dump(),
        "deployments": deployments,
    }
    config = ServeDeploySchema.model_validate({"applications": [application]})
    _get_global_client().deploy_apps(config, _blocking=True)
