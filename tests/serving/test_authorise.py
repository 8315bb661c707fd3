"""The API key: asked for where the environment holds one."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import Depends, FastAPI

from llm4sbr_ray.serving.ingress import API_KEY, authorise

guarded = FastAPI()


@guarded.get("/", dependencies=[Depends(authorise)])
async def secret() -> str:
    return "secret"


def get(headers: dict[str, bytes]) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guarded), base_url="http://here") as client:
            return await client.get("/", headers=headers)

    return asyncio.run(send())


@pytest.mark.parametrize("key", [None, ""])
def test_without_a_key_everyone_may_ask(key: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(API_KEY, raising=False)
    if key is not None:
        monkeypatch.setenv(API_KEY, key)
    assert get({}).status_code == 200


def test_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY, "schl\u00fcssel")
    assert get({"Authorization": "Bearer schl\u00fcssel".encode()}).status_code == 200
    for wrong in ({}, {"Authorization": b"Bearer x"}, {"Authorization": b"schl"}, {"Authorization": b"\xff\xfe"}):
        refused = get(wrong)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert "secret" not in refused.text
