"""The way from clicks to a ranking: through deployments of their own, or within one process.

`Composed` calls the behaviour encoder, the embedding cache and the ranker by handles: each scales on its own. `Fused`
holds all three itself: a request makes no hop, which is what a small machine needs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from ray import serve
from ray.serve.handle import DeploymentHandle

from llm4sbr_ray.serving.bundle import Bundle
from llm4sbr_ray.serving.cache import IntentCache
from llm4sbr_ray.serving.encoder import SessionEncoder
from llm4sbr_ray.serving.nearest import IndexKind
from llm4sbr_ray.serving.ranker import Ranker, Ranking, RankQuery

# Requests that queue up while a batch is computed form the next one. Nobody waits for a batch to fill (Serve
# waits 10 ms by default), so a lone request costs what it costs without batching.
BATCH = {"max_batch_size": 32, "batch_wait_timeout_s": 0.0}


class Wanted(NamedTuple):
    """What one request wants ranked."""

    items: Sequence[int]  # of the session, in click order; at least one
    excluded: Sequence[int]
    k: int
    compare: bool = False  # also rank by the clicks alone
    boosts: Sequence[tuple[int, float]] = ()  # items, each once, and what is added to their scores
    explain: bool = True


@dataclass(frozen=True)
class Ranked:
    """One session's ranking and how it came about."""

    ranking: Ranking
    llm_clicks: int | None  # length of the prefix that the LLM's answer is about
    timings_ms: dict[str, float] = field(default_factory=dict)


class Graph(Protocol):
    async def rank(self, wanted: Wanted) -> Ranked:
        """Rank for one session."""

    def probes(self) -> dict[str, Any]:
        """An awaitable health check of each part, by name; it raises where the part is broken."""


class Composed:
    """Encoder, cache and ranker behind handles."""

    def __init__(self, encoder: DeploymentHandle, cache: DeploymentHandle, ranker: DeploymentHandle) -> None:
        self._parts = {"encoder": encoder, "cache": cache, "ranker": ranker}

    async def rank(self, wanted: Wanted) -> Ranked:
        sent = np.asarray(wanted.items, dtype=np.int32)
        timings: dict[str, float] = {}
        (vectors, timings["encode"]), (intents, timings["intents"]) = await asyncio.gather(
            _timed(self._parts["encoder"].encode.remote(sent)),
            _timed(self._parts["cache"].lookup.remote(sent)),
        )
        query = RankQuery(vectors, intents, *wanted[1:], items=wanted.items)
        ranking, timings["rank"] = await _timed(self._parts["ranker"].rank.remote(query))
        return Ranked(ranking, None if intents is None else intents.clicks, timings)

    def probes(self) -> dict[str, Any]:
        return {name: part.check_health.remote() for name, part in self._parts.items()}


class Fused:
    """Encoder, cache and ranker in the ingress itself."""

    def __init__(self, bundle: Bundle, cache_capacity: int, stale_clicks: int, index: IndexKind = "exact") -> None:
        torch.set_num_threads(1)  # replicas share the machine's cores; one small session gains nothing from two
        model, manifest = bundle.model(), bundle.manifest
        self._encoder = SessionEncoder(model, manifest.n_items)
        self._ranker = Ranker(model, manifest.n_items, manifest.localised_items, index, bundle.memory())
        self._cache = IntentCache(cache_capacity, stale_clicks)
        for key, intents in bundle.intents():
            self._cache.put(key, intents)

    async def rank(self, wanted: Wanted) -> Ranked:
        ranked: Ranked = await self._rank_batch(wanted)
        return ranked

    @serve.batch(**BATCH)
    async def _rank_batch(self, queries: list[Wanted]) -> list[Ranked]:
        return self.rank_all(queries)

    def rank_all(self, queries: Sequence[Wanted]) -> list[Ranked]:
        """Rank for some sessions at once; the timings are those of the whole batch."""
        began = time.perf_counter()
        vectors = self._encoder.encode([wanted.items for wanted in queries])
        encoded = time.perf_counter()
        intents = [self._cache.lookup(wanted.items) for wanted in queries]
        found = time.perf_counter()
        rankings = self._ranker.rank(
            [
                RankQuery(vector, known, *wanted[1:], items=wanted.items)
                for vector, known, wanted in zip(vectors, intents, queries, strict=True)
            ]
        )
        timings = {
            "encode": milliseconds(began, encoded),
            "intents": milliseconds(encoded, found),
            "rank": milliseconds(found, time.perf_counter()),
        }
        return [
            Ranked(ranking, None if known is None else known.clicks, dict(timings))
            for ranking, known in zip(rankings, intents, strict=True)
        ]

    def probes(self) -> dict[str, Any]:
        checks = {"encoder": self._encoder.check, "cache": self._cache.check, "ranker": self._ranker.check}
        return {name: asyncio.to_thread(check) for name, check in checks.items()}


async def _timed(response: Any) -> tuple[Any, float]:
    """A deployment's answer and the milliseconds until it came."""
    began = time.perf_counter()
    result = await response
    return result, milliseconds(began, time.perf_counter())


def milliseconds(began: float, ended: float) -> float:
    return round((ended - began) * 1000, 3)
