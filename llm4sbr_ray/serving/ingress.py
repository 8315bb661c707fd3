"""HTTP: the routes of the service, and the way of one request through the deployments.

POST /recommend   items in click order -> recommendations with explanations
GET  /items?q=    search the catalogue
GET  /healthz     200, or 503 naming the broken part
GET  /            the playground page
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import orjson
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from pydantic import ValidationError
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.responses import HTMLResponse
from starlette.routing import Route

from llm4sbr_ray.metrics import count_answer
from llm4sbr_ray.serving.bundle import Bundle
from llm4sbr_ray.serving.catalogue import Catalogue
from llm4sbr_ray.serving.explain import clicks_alone, intents, popular, recommendations
from llm4sbr_ray.serving.graph import Composed, Fused, Graph, OtherVersion, Wanted, clicked_items, milliseconds
from llm4sbr_ray.serving.limit import AddressLimit
from llm4sbr_ray.serving.nearest import IndexKind
from llm4sbr_ray.serving.new_items import IngressConfig, NewItem, encode_titles, place
from llm4sbr_ray.serving.types import MAX_BODY_BYTES, RecommendRequest, RecommendResponse, SearchResponse

API_KEY = "LLM4SBR_API_KEY"  # environment variable of the replicas
HEALTH_TIMEOUT_S = 3.0
SEARCH_LIMIT = 20
# The page brings its own style and script and talks to this service alone.
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"

logger = logging.getLogger("ray.serve")
api = FastAPI(title="llm4sbr_ray", docs_url=None, redoc_url=None)  # their pages would load scripts from a CDN
REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"description": "The service asks for a key and the request does not bring it"},
    429: {"description": "The address has sent too many requests in this second"},
}


async def admit(request: Request) -> None:
    """429 to a request that is one too many of its address, if the service has a limit."""
    limit: AddressLimit | None = serve.get_replica_context().servable_object.limit
    if limit is not None:
        limit.check(request)


async def authorise(request: Request) -> None:
    """Where the environment holds a key: 401 to a request that does not bring it as `Authorization: Bearer KEY`."""
    key = os.environ.get(API_KEY)
    given = request.headers.get("authorization", "").encode("latin-1")  # as it came: headers are bytes
    if key and not hmac.compare_digest(given, f"Bearer {key}".encode()):
        raise HTTPException(401, "send the header Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})


async def read_request(request: Request) -> RecommendRequest:
    """Body of POST /recommend, read no further than the limit: 413 beyond it, 422 if it is no request."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body is larger than {MAX_BODY_BYTES // 1024} KiB")
    try:
        return RecommendRequest.model_validate_json(bytes(body))
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise HTTPException(422, [{**p, "loc": ["body", *p["loc"]]} for p in problems]) from error


async def post_recommend(request: Request) -> Response:
    """POST /recommend, past FastAPI's solving of dependencies: that takes 0.1 ms, a tenth of the request's CPU time.

    `Ingress.recommend` is declared as a FastAPI route too, which documents it in /openapi.json.
    """
    await admit(request)
    await authorise(request)
    asked = await read_request(request)
    answered: Response = await serve.get_replica_context().servable_object.recommend(asked)
    return answered


api.router.routes.append(Route("/recommend", post_recommend, methods=["POST"]))


def answer(body: dict[str, Any], status: int = 200) -> Response:
    """JSON without validating our own answer again."""
    return Response(orjson.dumps(body), status_code=status, media_type="application/json")


class Served(NamedTuple):
    """What answers: a catalogue, and the graph whose item indices are the catalogue's."""

    catalogue: Catalogue
    graph: Graph


# Serve ships the routes to the replicas as they are at this line: what they call must be defined above it.
@serve.ingress(api)
class Ingress:
    """Reads requests, has the graph rank, words the answers; holds the catalogue.

    Parameters
    ----------
    location, version
        The bundle.
    parts
        Handles "encoder", "cache" and "ranker" of the composed graph; None: all is done in this process.
    alone
        Without parts: capacity and stale clicks of the cache in this process, and the index.
    enricher
        Without parts: the handle of what reads sessions that the cache lacks, and how many may wait here.
    per_second
        Requests that one address may send to this replica in a second; None: any number.
    """

    def __init__(
        self,
        location: str,
        version: str,
        parts: dict[str, DeploymentHandle] | None = None,
        alone: tuple[int, int, IndexKind] = (0, 0, "exact"),
        enricher: tuple[DeploymentHandle, int] | None = None,
        per_second: int | None = None,
    ) -> None:
        self.limit = None if per_second is None else AddressLimit(per_second)
        bundle = Bundle(location, version)
        self._manifest = bundle.manifest
        self._perspectives = [p.name for p in bundle.manifest.perspectives]
        graph: Graph = Fused(bundle, *alone, enricher) if parts is None else Composed(version, **parts)
        self._exported = self._served = Served(bundle.catalogue(), graph)
        self._page = Path(__file__).with_name("playground.html").read_text(encoding="utf-8")

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take up `new_items` in place of those given before, while requests go on.

        Raises
        ------
        ValueError
            They are not as `IngressConfig` says, an id is taken, the bundle names no text encoder, or the graph is
            composed.
        """
        self._served = await asyncio.to_thread(self._with_items, IngressConfig.model_validate(user_config).new_items)

    def _with_items(self, items: Sequence[NewItem]) -> Served:
        catalogue, graph = self._exported
        if not items:
            return self._exported
        if not isinstance(graph, Fused):
            raise ValueError("new_items: only args.graph: fused takes them up")
        text = self._manifest.text
        if text is None:
            raise ValueError("new_items: the bundle does not name its text encoder: export it again")
        more = catalogue.with_items([(item.item_id, item.title) for item in items])
        placed = place(encode_titles([item.title for item in items], text), graph.model, catalogue.train_count_V)
        return Served(more, graph.with_items(placed, len(catalogue)))

    @api.post(
        "/recommend",
        response_model=RecommendResponse,
        dependencies=[Depends(authorise)],
        responses={
            **REFUSALS,
            413: {"description": "The body is too large"},
            422: {"description": "The body is no request: each entry of `detail` names a field"},
            503: {"description": "Too many requests, or an update: come back after the seconds in Retry-After"},
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": RecommendRequest.model_json_schema()}},
            }
        },
    )
    async def recommend(self, asked: Annotated[RecommendRequest, Depends(read_request)]) -> Response:
        began = time.perf_counter()
        catalogue, graph = self._served  # both of one moment: an answer's indices are those of its catalogue
        known, ignored = catalogue.split_known(asked.items)
        blocked = set(catalogue.split_known(asked.block)[0])
        boosts = catalogue.known_values(asked.boost)
        timings: dict[str, float] = {}
        llm_clicks = alone = None
        said: list[dict[str, Any]] | None = [] if asked.explain else None
        if known:
            excluded = sorted({*blocked, *known} if asked.exclude_seen else blocked)
            wanted = Wanted(known, excluded, asked.k, asked.compare, boosts, asked.explain, asked.explain_clicks)
            try:
                ranked = await graph.rank(wanted)
            except OtherVersion as error:
                raise HTTPException(503, "a new version is being taken up", {"Retry-After": "1"}) from error
            found = recommendations(ranked.ranking, self._perspectives, catalogue, clicked_items(wanted))
            said = intents(ranked.ranking, self._perspectives, catalogue)
            alone = clicks_alone(ranked.ranking, catalogue)
            llm_clicks, timings = ranked.llm_clicks, ranked.timings_ms
        else:
            found = popular(catalogue, asked.k, blocked)
        timings["total"] = milliseconds(began, time.perf_counter())
        body = {
            "session_id": asked.session_id,
            "model": self._manifest.model,
            "version": self._manifest.version,
            "perspectives": said,
            "recommendations": found,
            "clicks_alone": alone,
            "ignored_items": ignored,
            "served_by": "model" if known else "popularity",
            "llm_clicks": llm_clicks,
            "timings_ms": timings,
        }
        count_answer(body, len(known))
        return answer(body)

    @api.get(
        "/items",
        response_model=SearchResponse,
        dependencies=[Depends(admit), Depends(authorise)],
        responses=REFUSALS,
    )
    def items(self, q: Annotated[str, Query(max_length=200)] = "") -> Response:  # a thread: it scans the catalogue
        catalogue = self._served.catalogue
        found = catalogue.search(q, SEARCH_LIMIT)
        return answer({"items": [{"item_id": catalogue.item_ids[j], "title": catalogue.titles[j]} for j in found]})

    @api.get("/healthz", responses={503: {"description": "A part is broken: `parts` names it"}})
    async def healthz(self) -> Response:
        probes = self._served.graph.probes()
        waits = [asyncio.wait_for(probe, HEALTH_TIMEOUT_S) for probe in probes.values()]
        results = await asyncio.gather(*waits, return_exceptions=True)
        parts = {}
        for name, result in zip(probes, results, strict=True):
            parts[name] = "ok" if result is None else type(result).__name__
            if result is not None:
                logger.error("unhealthy %s: %r", name, result)
        healthy = all(state == "ok" for state in parts.values())
        body = {"status": "ok" if healthy else "unhealthy", "version": self._manifest.version, "parts": parts}
        return answer(body, 200 if healthy else 503)

    @api.get("/", response_class=HTMLResponse)
    async def playground(self) -> Response:
        return Response(
            self._page,
            media_type="text/html; charset=utf-8",
            headers={"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff"},
        )

    def check_health(self) -> None:
        """Fails when the catalogue is not the bundle's; the other parts have checks of their own."""
        if len(self._exported.catalogue) != self._manifest.n_items:
            raise RuntimeError("ingress: the catalogue is not complete")
