"""Background enrichment: sessions that the embedding cache lacks are read by an LLM, for the requests that come later.

    request ─► cache: a miss ─► answered at once, from predicted intents
                         └────► the replica's queue ─► Enricher's queue ─► vLLM ─► answers ─► the caches of all replicas

No request waits for any of it: a replica hands over its misses and fetches answers between requests. Both queues are
bounded; a session that finds one full is dropped and counted.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import posixpath
import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray.serve.handle import DeploymentHandle

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.config import Engine, Perspectives, Text
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.metrics import count_enrichment, observe_enrichment, show_enrichment_queue
from llm4sbr_ray.serving.bundle import Bundle
from llm4sbr_ray.serving.cache import CachedIntents, IntentCache, session_key
from llm4sbr_ray.serving.reader import SessionReader, session_views
from llm4sbr_ray.serving.waiting import WaitingSessions

PERIOD_S, AFTER_ERROR_S = 0.5, 5.0  # between two exchanges of a replica
HANDED_OVER = 500  # sessions, and answers, of one exchange
REMEMBERED = 10_000  # sessions whose answers a new replica still gets

logger = logging.getLogger("ray.serve")


class Enrichment(BaseModel):
    """`args.enrichment` of the application."""

    model_config = ConfigDict(extra="forbid")

    run: str | None = None  # folder of the run: its LLM, prompts and texts; None: the one in which the bundle stands
    queue: int = Field(default=1000, ge=1)  # sessions that wait at most, in each replica and before the LLM
    batch: int = Field(default=32, ge=1)  # sessions that the LLM reads at once
    engine: dict[str, Any] = {}  # what differs from the run's perspectives.engine, such as {device: gpu}


class Reading(NamedTuple):
    """What the Enricher has to know of a run."""

    run: str
    perspectives: Perspectives
    text: Text


def reading(args: Enrichment, bundle: Bundle) -> Reading:
    """The run that a bundle is of, checked.

    Raises
    ------
    UserError
        No run there, another catalogue or other perspectives than the bundle's, no perspective about sessions, or
        a setting of the engine that does not exist.
    """
    store = Store(args.run or posixpath.dirname(bundle.store.uri()))
    if not store.exists("run.json"):
        raise UserError(f"enrichment.run: {store.uri()} holds no run.json: name the folder of the bundle's run")
    settings = store.read_json("run.json")["config"]
    try:
        perspectives = Perspectives.model_validate(settings["perspectives"])
        engine = Engine.model_validate(perspectives.engine.model_dump() | args.engine)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"enrichment: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from error
    perspectives = perspectives.model_copy(update={"engine": engine})
    if [view.name for view in perspectives.views] != [view.name for view in bundle.manifest.perspectives]:
        raise UserError(f"enrichment.run: {store.uri()} has other perspectives than the bundle")
    ids = store.read_table("data/items.parquet", columns=["item_id"])["item_id"].to_pylist()
    if ids != bundle.catalogue().item_ids:
        raise UserError(f"enrichment.run: {store.uri()} has another catalogue than the bundle")
    if not session_views(perspectives):
        raise UserError("enrichment: no perspective of the run is asked about sessions")
    if perspectives.model is None and not store.exists("pocket-lm"):
        raise UserError(f"enrichment.run: {store.uri()} names no perspectives.model and has no pocket-lm/")
    return Reading(store.uri(), perspectives, Text.model_validate(settings["text"]))


class Answered(NamedTuple):
    """What the Enricher tells a replica."""

    epoch: str  # of the Enricher: another one counts anew
    number: int  # of the last answer here
    answers: list[tuple[bytes, CachedIntents]]


class Enricher:
    """Deployment of one replica: reads sessions with an LLM and remembers the answers for the replicas of the cache.

    The engine is loaded behind, as its start takes minutes: neither this replica nor a request waits for it. Where it
    fails the health check fails, and Serve starts the replica anew; the service answers meanwhile as without it.
    """

    def __init__(self, given: Reading, version: str, queue: int, batch: int) -> None:
        self._given, self._version, self._batch = given, version, batch
        self._epoch, self._number = uuid.uuid4().hex, 0
        self._waiting = WaitingSessions(queue)
        self._answers: OrderedDict[bytes, tuple[int, CachedIntents | None]] = OrderedDict()  # None: nothing grounded
        self._work = asyncio.create_task(self._read())  # Serve constructs replicas in their event loop

    async def exchange(self, sessions: Sequence[Sequence[int]], epoch: str, number: int, version: str) -> Answered:
        """Take sessions to be read; tell the answers that came after answer `number` of this epoch.

        Raises
        ------
        ValueError
            The replica serves another bundle.
        """
        if version != self._version:
            raise ValueError(f"this enricher serves version {self._version}, the replica {version}")
        for items in sessions:
            self._take(items)
        since = number if epoch == self._epoch else 0
        newest_first = takewhile(lambda entry: entry[1][0] > since, reversed(self._answers.items()))
        fresh = [(place, key, intents) for key, (place, intents) in newest_first][::-1][:HANDED_OVER]
        told = [(key, intents) for _, key, intents in fresh if intents is not None]
        return Answered(self._epoch, fresh[-1][0] if fresh else since, told)

    def _take(self, items: Sequence[int]) -> None:
        key = session_key(items)
        known = self._answers.get(key)
        if known is not None:  # the replica has not heard yet, or has forgotten: tell it (again)
            self._remember(key, known[1])
        elif self._waiting.add(items):
            count_enrichment("queued")
        else:
            count_enrichment("dropped")

    def _remember(self, key: bytes, intents: CachedIntents | None) -> None:
        self._number += 1
        self._answers[key] = self._number, intents
        self._answers.move_to_end(key)
        if len(self._answers) > REMEMBERED:
            self._answers.popitem(last=False)

    async def _read(self) -> None:
        loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1)  # vLLM stays in the thread that started it
        reader = await loop.run_in_executor(thread, lambda: SessionReader(*self._given))
        while True:
            waiters = self._waiting.first(self._batch)
            show_enrichment_queue("llm", len(self._waiting))
            if not waiters:
                await asyncio.sleep(PERIOD_S / 5)
                continue
            self._waiting.remove(waiters)
            found = await loop.run_in_executor(thread, reader.read, [waiter.items for waiter in waiters.values()])
            for (key, waiter), intents in zip(waiters.items(), found, strict=True):
                self._remember(key, intents)
                count_enrichment("ungrounded" if intents is None else "answered")
                observe_enrichment(time.monotonic() - waiter.since)

    def check_health(self) -> None:
        if self._work.done():
            raise RuntimeError("enricher: the LLM has failed") from self._work.exception()


class Misses:
    """What a replica's cache lacked, on its way to the Enricher; and answers, on their way into the cache."""

    def __init__(self, cache: IntentCache, enricher: DeploymentHandle, version: str, queue: int) -> None:
        self._cache, self._enricher, self._version = cache, enricher, version
        self._waiting = WaitingSessions(queue)
        self._epoch, self._number = "", 0
        self._task: asyncio.Task[None] | None = None

    def add(self, items: Sequence[int]) -> None:
        """Note a session (item indices in click order) that the cache does not know; returns at once."""
        if not self._waiting.add(items):
            count_enrichment("dropped")
        if self._task is None:  # of no request: Serve ends the calls of a request with it
            follow = self._follow()
            self._task = asyncio.get_running_loop().create_task(follow, context=contextvars.Context())

    async def _follow(self) -> None:
        while True:
            try:
                await self.exchange()
                pause = PERIOD_S
            except Exception:  # requests are answered all the same
                logger.exception("enrichment: no exchange with the LLM")
                pause = AFTER_ERROR_S
            show_enrichment_queue("replica", len(self._waiting))
            await asyncio.sleep(pause)

    async def exchange(self) -> None:
        """Hand over what waits, and put what the LLM has answered since into the cache."""
        waiters = self._waiting.first(HANDED_OVER)
        sessions = [waiter.items for waiter in waiters.values()]
        told: Answered = await self._enricher.exchange.remote(sessions, self._epoch, self._number, self._version)
        self._epoch, self._number, answers = told
        self._waiting.remove(waiters)
        for key, intents in answers:
            self._cache.put(key, intents)
