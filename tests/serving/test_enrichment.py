"""The way of a session to an LLM behind the service, without the LLM: queues, what is told to whom, what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_run import P, R, planted_run

from llm4sbr_ray.artifacts import Run
from llm4sbr_ray.errors import UserError
from llm4sbr_ray.serving import enrichment
from llm4sbr_ray.serving.bundle import Bundle, export
from llm4sbr_ray.serving.cache import CachedIntents, IntentCache, session_key
from llm4sbr_ray.serving.enrichment import Enricher, Enrichment, Misses, reading
from llm4sbr_ray.serving.waiting import WaitingSessions

VERSION = "v1"


def intents_of_session(items: Sequence[int]) -> CachedIntents:
    return CachedIntents(np.full((P, R), items[-1], np.int32), np.full((P, R), 1 / R, np.float32), np.ones(P, np.bool_))


class Reader:
    """Stands where the engine stands: says of a session its last item, and nothing of those that end with 0."""

    def __init__(self, *_: Any) -> None:
        self.asked: list[tuple[int, ...]] = []

    def read(self, sessions: Sequence[tuple[int, ...]]) -> list[CachedIntents | None]:
        self.asked += sessions
        return [intents_of_session(items) if items[-1] else None for items in sessions]


class Broken(Reader):
    def read(self, sessions: Sequence[tuple[int, ...]]) -> list[CachedIntents | None]:
        raise RuntimeError("out of memory")


class Handle:
    """The part of a DeploymentHandle that a replica uses."""

    def __init__(self, enricher: Enricher) -> None:
        self.exchange, self._enricher = self, enricher

    def remote(self, *arguments: Any) -> Any:
        return self._enricher.exchange(*arguments)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), max_size=30), st.integers(1, 5), st.integers(0, 5))
def test_the_queue_is_bounded_and_holds_each_session_once(sessions: list[list[int]], capacity: int, n: int) -> None:
    waiting, model = WaitingSessions(capacity), list[tuple[int, ...]]()
    for items in map(tuple, sessions):
        fits = items in model or len(model) < capacity
        assert waiting.add(items) is fits
        if fits and items not in model:
            model.append(items)
    assert [waiter.items for waiter in waiting.first(n).values()] == model[:n]
    waiting.remove(waiting.first(n))
    assert [waiter.items for waiter in waiting.first(99).values()] == model[n:]


async def until(done: Any) -> None:
    for _ in range(500):
        if done():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come")


def test_answers_reach_the_caches_of_all_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrichment, "SessionReader", Reader)
    monkeypatch.setattr(enrichment, "PERIOD_S", 0.01)

    async def run() -> None:
        handle: Any = Handle(Enricher((), VERSION, 100, 2))  # type: ignore[arg-type]
        caches = [IntentCache(100, 0), IntentCache(100, 0)]
        first, second = (Misses(cache, handle, VERSION, 100) for cache in caches)
        for items in ([1, 2], [3], [4, 0], [1, 2]):
            first.add(items)
        second.add([5])
        await until(lambda: all(cache.lookup(items) for cache in caches for items in ([1, 2], [3], [5])))
        found = caches[1].lookup([1, 2])
        assert found is not None
        assert found.item_PR.tolist() == intents_of_session([1, 2]).item_PR.tolist()
        assert caches[0].lookup([4, 0]) is None  # nothing grounded was said
        late = IntentCache(100, 0)  # a replica that starts now asks nothing and is told all the same
        await Misses(late, handle, VERSION, 100).exchange()
        assert len(late) == 3

    asyncio.run(run())


def test_what_is_known_is_told_again_and_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrichment, "SessionReader", Reader)

    async def run() -> None:
        enricher = Enricher((), VERSION, 100, 8)  # type: ignore[arg-type]
        await enricher.exchange([(1,), (2, 0)], "", 0, VERSION)
        await until(lambda: len(enricher._answers) == 2)
        told = await enricher.exchange([], "", 0, VERSION)
        assert [key for key, _ in told.answers] == [session_key([1])]
        assert (await enricher.exchange([], told.epoch, told.number, VERSION)).answers == []
        forgotten = await enricher.exchange([(1,), (2, 0)], told.epoch, told.number, VERSION)
        assert [key for key, _ in forgotten.answers] == [session_key([1])]
        assert len(enricher._waiting) == 0
        assert len((await enricher.exchange([], "of another process", 99, VERSION)).answers) == 1
        with pytest.raises(ValueError, match="the replica another"):
            await enricher.exchange([(3,)], told.epoch, told.number, "another")

    asyncio.run(run())


def test_many_answers_are_told_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrichment, "SessionReader", Reader)
    monkeypatch.setattr(enrichment, "HANDED_OVER", 3)

    async def run() -> None:
        enricher = Enricher((), VERSION, 100, 8)  # type: ignore[arg-type]
        sessions = [(n,) for n in range(1, 9)]
        await enricher.exchange(sessions, "", 0, VERSION)
        await until(lambda: len(enricher._answers) == 8)
        cache = IntentCache(100, 0)
        handle: Any = Handle(enricher)
        replica = Misses(cache, handle, VERSION, 100)
        for known in (3, 6, 8, 8):
            await replica.exchange()
            assert len(cache) == known

    asyncio.run(run())


def test_a_full_queue_drops_and_a_broken_llm_fails_the_health_check_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrichment, "SessionReader", Broken)
    counted: list[str] = []
    monkeypatch.setattr(enrichment, "count_enrichment", counted.append)

    async def run() -> None:
        enricher = Enricher((), VERSION, 2, 1)  # type: ignore[arg-type]
        enricher.check_health()
        await enricher.exchange([(1,), (2,), (3,), (1,)], "", 0, VERSION)
        assert counted == ["queued", "queued", "dropped", "queued"]
        await until(enricher._work.done)
        with pytest.raises(RuntimeError, match="LLM has failed"):
            enricher.check_health()
        handle: Any = Handle(enricher)
        replica = Misses(IntentCache(9, 0), handle, "another", 1)
        replica.add([1])
        replica.add([2])
        assert counted[4:] == ["dropped"]
        await asyncio.sleep(0.05)  # the exchange fails; the replica goes on, and the session waits
        assert len(replica._waiting) == 1

    asyncio.run(run())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = planted_run(tmp_path_factory.mktemp("runs"))
    export(run)
    return run


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"run": "nowhere"}, "holds no run.json"),
        ({"engine": {"gpus": 1}}, "enrichment: gpus: "),
        ({}, "has no pocket-lm/"),
    ],
)
def test_what_is_refused_before_anything_starts(run: Run, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        reading(Enrichment.model_validate(settings), Bundle(run.uri("bundle")))


def test_another_catalogue_is_refused(run: Run, tmp_path: Path) -> None:
    other = planted_run(tmp_path)
    items = other.read_table("data/items.parquet")
    other.write_table(items.set_column(1, "item_id", [[f"other-{j}" for j in range(len(items))]]), "data/items.parquet")
    with pytest.raises(UserError, match="another catalogue"):
        reading(Enrichment(run=other.uri()), Bundle(run.uri("bundle")))


def test_the_run_in_which_the_bundle_stands(run: Run) -> None:
    run.write_bytes(b"", "pocket-lm", "config.json")
    found = reading(Enrichment(engine={"device": "gpu", "max_num_seqs": 8}), Bundle(run.uri("bundle")))
    assert found.run == run.uri()
    engine = found.perspectives.engine
    assert (engine.device, engine.max_num_seqs, engine.max_model_len) == ("gpu", 8, 1024)
