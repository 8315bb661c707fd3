"""The way from clicks to a ranking: through deployments of their own, or within one process.

`Composed` calls the behaviour encoder, the embedding cache and the ranker by handles: each scales on its own. `Fused`
holds all three itself: a request makes no hop, which is what a small machine needs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle

from llm4sbr_ray.serving.bundle import Bundle
from llm4sbr_ray.serving.cache import CachedIntents, IntentCache
from llm4sbr_ray.serving.encoder import SessionEncoder
from llm4sbr_ray.serving.enrichment import Misses
from llm4sbr_ray.serving.nearest import IndexKind
from llm4sbr_ray.serving.new_items import Placed
from llm4sbr_ray.serving.ranker import Ranker, Ranking, RankQuery

# Requests that queue up while a batch is computed form the next one. Nobody waits for a batch to fill (Serve
# waits 10 ms by default), so a lone request costs what it costs without batching.
MAX_CLICKED = 20  # items of a session whose effect is told: each costs an encoding
BATCH = {"max_batch_size": 32, "batch_wait_timeout_s": 0.0}


class Wanted(NamedTuple):
    """What one request wants ranked."""

    items: Sequence[int]  # of the session, in click order; at least one
    excluded: Sequence[int]
    k: int
    compare: bool = False  # also rank by the clicks alone
    boosts: Sequence[tuple[int, float]] = ()  # items, each once, and what is added to their scores
    explain: bool = True
    explain_clicks: bool = False


def without_each(wanted: Wanted) -> list[list[int]]:
    """The session without each of `clicked_items`."""
    return [[j for j in wanted.items if j != item] for item in clicked_items(wanted)]


def clicked_items(wanted: Wanted) -> list[int]:
    """Distinct items whose effect a request asks for, the last clicked first; none where the session has no other."""
    distinct = list(dict.fromkeys(reversed(wanted.items))) if wanted.explain and wanted.explain_clicks else []
    return distinct[:MAX_CLICKED] if len(distinct) > 1 else []


@dataclass(frozen=True)
class Ranked:
    """One session's ranking and how it came about."""

    ranking: Ranking
    llm_clicks: int | None  # length of the prefix that the LLM's answer is about
    timings_ms: dict[str, float] = field(default_factory=dict)


class OtherVersion(Exception):  # noqa: N818  # a moment in an update, not a mistake
    """A part of the graph holds another bundle than the ingress: they must not answer together."""


def require_version(mine: str, asked: str) -> None:
    if mine != asked:
        raise OtherVersion(f"this part serves version {mine}, the ingress {asked}")


class Graph(Protocol):
    async def rank(self, wanted: Wanted) -> Ranked:
        """Rank for one session.

        Raises
        ------
        OtherVersion
            Parts of the graph are of different versions.
        """

    def probes(self) -> dict[str, Any]:
        """An awaitable health check of each part, by name; it raises where the part is broken."""


class Composed:
    """Encoder, cache and ranker behind handles, which may be of another version while an update rolls."""

    def __init__(
        self, version: str, encoder: DeploymentHandle, cache: DeploymentHandle, ranker: DeploymentHandle
    ) -> None:
        self._version = version
        self._parts = {"encoder": encoder, "cache": cache, "ranker": ranker}

    async def rank(self, wanted: Wanted) -> Ranked:
        sent = np.asarray(wanted.items, dtype=np.int32)
        timings: dict[str, float] = {}
        encode = self._parts["encoder"].encode
        (vectors, timings["encode"]), (intents, timings["intents"]), *without = await asyncio.gather(
            _timed(encode, sent, self._version),
            _timed(self._parts["cache"].lookup, sent, self._version),
            *(_timed(encode, np.asarray(left, np.int32), self._version) for left in without_each(wanted)),
        )
        query = _query(wanted, vectors, intents, [vectors_3D for vectors_3D, _ in without], {})
        ranking, timings["rank"] = await _timed(self._parts["ranker"].rank, query, self._version)
        return Ranked(ranking, None if intents is None else intents.clicks, timings)

    def probes(self) -> dict[str, Any]:
        return {name: part.check_health.remote() for name, part in self._parts.items()}


class Fused:
    """Encoder, cache and ranker in the ingress itself."""

    def __init__(
        self,
        bundle: Bundle,
        cache_capacity: int,
        stale_clicks: int,
        index: IndexKind = "exact",
        enricher: tuple[DeploymentHandle, int] | None = None,
    ) -> None:
        torch.set_num_threads(1)  # replicas share the machine's cores; one small session gains nothing from two
        self.model, manifest = bundle.model(), bundle.manifest
        self._encoder = SessionEncoder(self.model, manifest.n_items)
        self._ranker = Ranker(self.model, manifest.n_items, manifest.localised_items, index, bundle.memory())
        self._read_as: dict[int, int] = {}  # what the encoder reads in place of a new item
        self._cache = IntentCache(cache_capacity, stale_clicks)
        for key, intents in bundle.intents():
            self._cache.put(key, intents)
        self._misses = enricher and Misses(self._cache, enricher[0], manifest.version, enricher[1])

    def with_items(self, placed: Placed, n_items: int) -> Fused:
        """This graph with more items beside its `n_items`; what it was asked before it still answers by itself."""
        more = Fused.__new__(Fused)
        more.model, more._encoder, more._cache, more._misses = self.model, self._encoder, self._cache, self._misses
        more._ranker = self._ranker.with_items(placed.vector_ND, placed.text_NE)
        more._read_as = dict(enumerate(placed.nearest_N, start=n_items))
        return more

    async def rank(self, wanted: Wanted) -> Ranked:
        ranked: Ranked = await self._rank_batch(wanted)
        return ranked

    @serve.batch(**BATCH)
    async def _rank_batch(self, queries: list[Wanted]) -> list[Ranked]:
        return self.rank_all(queries)

    def rank_all(self, queries: Sequence[Wanted]) -> list[Ranked]:
        """Rank for some sessions at once; the timings are those of the whole batch."""
        began = time.perf_counter()
        left_N = [without_each(wanted) for wanted in queries]
        encode = [wanted.items for wanted in queries] + [session for left in left_N for session in left]
        read_as = self._read_as
        if read_as:
            encode = [[read_as.get(item, item) for item in session] for session in encode]
        vectors = iter(self._encoder.encode(encode))
        whole = list(islice(vectors, len(queries)))
        encoded = time.perf_counter()
        intents = [self._cache.lookup(wanted.items) for wanted in queries]
        if self._misses is not None:
            for wanted, known in zip(queries, intents, strict=True):
                if known is None and read_as.keys().isdisjoint(wanted.items):  # the LLM's run has no new items
                    self._misses.add(wanted.items)
        found = time.perf_counter()
        rankings = self._ranker.rank(
            [
                _query(wanted, vectors_3D, known, list(islice(vectors, len(left))), read_as)
                for wanted, vectors_3D, known, left in zip(queries, whole, intents, left_N, strict=True)
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


def _query(
    wanted: Wanted,
    vectors_3D: NDArray[np.float32],
    intents: CachedIntents | None,
    without: Sequence[NDArray[np.float32]],
    read_as: Mapping[int, int],
) -> RankQuery:
    _, excluded, k, compare, boosts, explain, _ = wanted
    return RankQuery(
        vectors_3D,
        intents,
        excluded,
        k,
        compare,
        boosts,
        explain,
        np.stack(without) if without else None,
        _remembered(wanted.items, read_as),
        [_remembered(items, read_as) for items in without_each(wanted)],
    )


def _remembered(items: Sequence[int], read_as: Mapping[int, int]) -> list[int]:
    """What a memory reads of a session: no train session holds a new item.

    A session of new items alone is read as the encoder reads it.
    """
    return [item for item in items if item not in read_as] or [read_as[item] for item in items]


async def _timed(method: Any, *arguments: Any) -> tuple[Any, float]:
    """A deployment's answer and the milliseconds until it came.

    Where the replica dies with the request, another one is asked, once: no call here has a lasting effect.
    """
    began = time.perf_counter()
    try:
        result = await method.remote(*arguments)
    except RayActorError:
        result = await method.remote(*arguments)
    return result, milliseconds(began, time.perf_counter())


def milliseconds(began: float, ended: float) -> float:
    return round((ended - began) * 1000, 3)
