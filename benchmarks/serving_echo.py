"""The least that a Serve application can do for a POST: `benchmarks/serving.py` deploys it as the framework's floor."""

from __future__ import annotations

from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.1})
class Echo:
    """Gives back what it gets."""

    async def __call__(self, request: Request) -> Response:
        return Response(await request.body())


app = Echo.bind()  # type: ignore[attr-defined]
