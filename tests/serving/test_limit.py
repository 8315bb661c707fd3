"""Requests a second by address."""

from __future__ import annotations

import asyncio

import httpx
from fastapi import FastAPI, Request

from llm4sbr_ray.serving.limit import AddressLimit


def test_an_address_that_sends_too_many_is_refused_and_another_is_not() -> None:
    app, limit = FastAPI(), AddressLimit(3)

    @app.get("/")
    async def page(request: Request) -> str:
        limit.check(request)
        return "answered"

    async def statuses(address: str, requests: int) -> list[int]:
        transport = httpx.ASGITransport(app, client=(address, 1234))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            answers = [await client.get("/") for _ in range(requests)]
        assert {a.headers.get("retry-after") for a in answers if a.status_code == 429} <= {"1"}
        return [a.status_code for a in answers]

    many = asyncio.run(statuses("192.0.2.1", 40))
    assert many[:3] == [200, 200, 200]
    assert set(many) == {200, 429}
    assert asyncio.run(statuses("192.0.2.2", 3)) == [200, 200, 200]
