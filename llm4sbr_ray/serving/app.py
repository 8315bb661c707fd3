"""The Serve graph: ingress -> behaviour encoder + embedding cache -> fusion ranker.

    serve run serve_configs/local.yaml

No request waits for an LLM: intents come from the cache, or from the model's own intent predictor. Options
set here are defaults; `serve_configs/*.yaml` overrides any of them by the deployment's name.
"""

# No `from __future__ import annotations` here: Serve makes a ServeArgs of the config's `args` only if the
# annotation of `build_app` is the class itself.

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.handle import DeploymentHandle

from llm4sbr_ray.perspectives.engine import uses_gpu
from llm4sbr_ray.serving.bundle import Bundle, load_bundle
from llm4sbr_ray.serving.cache import CachedIntents, IntentCache
from llm4sbr_ray.serving.encoder import SessionEncoder
from llm4sbr_ray.serving.enrichment import Enricher, Enrichment, Misses, reading
from llm4sbr_ray.serving.graph import BATCH, require_version
from llm4sbr_ray.serving.ingress import Ingress
from llm4sbr_ray.serving.nearest import IndexKind
from llm4sbr_ray.serving.ranker import Ranker, Ranking, RankQuery


class ServeArgs(BaseModel):
    """`args` of the application in a Serve config file."""

    model_config = ConfigDict(extra="forbid")

    bundle: str = "runs/demo/bundle"  # local path (relative to where `serve run` is called) or URI
    # composed: each part a deployment that scales on its own; fused: all in the ingress, no hop between them
    graph: Literal["composed", "fused"] = "composed"
    cache_capacity: int = Field(default=100_000, ge=1)  # sessions that each replica of the cache keeps
    stale_clicks: int = Field(default=3, ge=0)  # an LLM answer that is so many clicks old still counts
    # pq: a quantised index, for catalogues of 100,000 items and more; each replica builds it when it starts
    index: IndexKind = "exact"
    requests_per_second: int | None = Field(default=None, ge=1)  # of one address, in each replica of the ingress
    enrichment: Enrichment | None = None  # have an LLM read, behind the requests, what the cache lacks


class BehaviourEncoder:
    """Clicks to behaviour vectors."""

    def __init__(self, location: str, version: str) -> None:
        torch.set_num_threads(1)  # replicas share the machine's cores; one small session gains nothing from two
        bundle = Bundle(location, version)
        self._version = version
        self._encoder = SessionEncoder(bundle.model(), bundle.manifest.n_items)

    async def encode(self, session: NDArray[np.int32], version: str) -> NDArray[np.float32]:
        """The 3 x D vectors of a session (item indices in click order); batched by Serve."""
        require_version(self._version, version)
        vectors_3D: NDArray[np.float32] = await self._encode(session)
        return vectors_3D

    @serve.batch(**BATCH)
    async def _encode(self, sessions: list[NDArray[np.int32]]) -> list[NDArray[np.float32]]:
        return self._encoder.encode([session.tolist() for session in sessions])

    def check_health(self) -> None:
        self._encoder.check()


class EmbeddingCache:
    """What the LLM said of known sessions.

    `user_config: {newer_bundle: LOCATION}` adds the intents of a later export over the same catalogue to all
    running replicas, without a restart; sessions unused for longest make room. With an `enricher` (its handle, and how
    many sessions may wait here), sessions that are not known are read behind the requests.
    """

    def __init__(
        self,
        location: str,
        version: str,
        capacity: int,
        stale_clicks: int,
        enricher: tuple[DeploymentHandle, int] | None = None,
    ) -> None:
        self._bundle = Bundle(location, version)
        self._cache = IntentCache(capacity, stale_clicks)
        self._add(self._bundle)
        self._misses = enricher and Misses(self._cache, enricher[0], version, enricher[1])

    def reconfigure(self, user_config: dict[str, str]) -> None:
        newer = Bundle(user_config["newer_bundle"])
        mine, its = self._bundle.manifest, newer.manifest
        same_shape = (mine.perspectives, mine.localised_items) == (its.perspectives, its.localised_items)
        if not same_shape or mine.files["items.parquet"] != its.files["items.parquet"]:
            raise ValueError(f"{newer.store.uri()}: another catalogue or other perspectives: deploy it as a service")
        self._add(newer)

    async def lookup(self, items: NDArray[np.int32], version: str) -> CachedIntents | None:
        """Intents of a session or of its longest known prefix; None on a miss."""
        require_version(self._bundle.manifest.version, version)
        session = items.tolist()
        known = self._cache.lookup(session)
        if known is None and self._misses is not None:
            self._misses.add(session)
        return known

    def check_health(self) -> None:
        self._cache.check()

    def _add(self, bundle: Bundle) -> None:
        for key, intents in bundle.intents():
            self._cache.put(key, intents)


class FusionRanker:
    """Vectors and intents to ranked items."""

    def __init__(self, location: str, version: str, index: IndexKind = "exact") -> None:
        torch.set_num_threads(1)
        bundle = Bundle(location, version)
        manifest, self._version = bundle.manifest, version
        model, memory = bundle.model(), bundle.memory()
        self._ranker = Ranker(model, manifest.n_items, manifest.localised_items, index, memory)

    async def rank(self, query: RankQuery, version: str) -> Ranking:
        """The ranking that a query asks for; batched by Serve."""
        require_version(self._version, version)
        ranking: Ranking = await self._rank(query)
        return ranking

    @serve.batch(**BATCH)
    async def _rank(self, queries: list[RankQuery]) -> list[Ranking]:
        return self._ranker.rank(queries)

    def check_health(self) -> None:
        self._ranker.check()


def build_app(args: ServeArgs) -> Application:
    """The application of one bundle.

    Raises
    ------
    UserError
        The bundle is missing or damaged, or the run of `enrichment` is not its own. It is checked here, whole, before
        any replica starts.
    """
    bundle = load_bundle(args.bundle)
    # Absolute, as replicas run in other folders; and one version for all, as the folder may be exported anew
    # while replicas come and go.
    place = bundle.store.uri(), bundle.manifest.version
    ingress = _deployment(Ingress, 256, 0.5)
    limits = args.cache_capacity, args.stale_clicks
    enricher = None if args.enrichment is None else (_enricher(args.enrichment, bundle), args.enrichment.queue)
    if args.graph == "fused":
        alone = (*limits, args.index)
        fused: Application = ingress.bind(*place, alone=alone, enricher=enricher, per_second=args.requests_per_second)
        return fused
    encoder = _deployment(BehaviourEncoder, 64, 0.5).bind(*place)
    cache = _deployment(EmbeddingCache, 256, 0.1).bind(*place, *limits, enricher)
    ranker = _deployment(FusionRanker, 64, 0.5).bind(*place, args.index)
    parts = {"encoder": encoder, "cache": cache, "ranker": ranker}
    composed: Application = ingress.bind(*place, parts=parts, per_second=args.requests_per_second)
    return composed


def _enricher(args: Enrichment, bundle: Bundle) -> Application:
    given = reading(args, bundle)
    engine = given.perspectives.engine
    gpus = engine.tensor_parallel_size * engine.pipeline_parallel_size if uses_gpu(engine) else 0
    options = {"num_cpus": engine.cpus_per_actor, "num_gpus": gpus}
    deployment = serve.deployment(max_ongoing_requests=64, ray_actor_options=options)(Enricher)
    application: Application = deployment.bind(given, bundle.manifest.version, args.queue, args.batch)
    return application


def _deployment(cls: type, max_ongoing_requests: int, num_cpus: float) -> Deployment:
    """Room for a few batches in each replica (Serve's default of 5 would starve them); shares of a CPU."""
    options = {"num_cpus": num_cpus}
    return serve.deployment(max_ongoing_requests=max_ongoing_requests, ray_actor_options=options)(cls)
