"""The demo shop holds what its story says."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from llm4sbr_ray.config import DemoShop
from llm4sbr_ray.data.demo_shop import COLD_SPAN, GOES_WITH, MAX_ITEMS, MIN_ITEMS, generate

SHOP = DemoShop(sessions=1500)


@pytest.fixture(scope="module")
def shop() -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    sessions, items = generate(SHOP)
    return sessions.to_pylist(), {item["item_id"]: item for item in items.to_pylist()}


def test_the_seed_decides(shop: Any) -> None:
    assert generate(DemoShop(sessions=60))[0].equals(generate(DemoShop(sessions=60))[0])
    assert generate(DemoShop(sessions=60))[1].equals(generate(DemoShop(sessions=60))[1])
    assert not generate(DemoShop(sessions=60))[0].equals(generate(DemoShop(sessions=60, seed=1))[0])


def test_shape(shop: Any) -> None:
    sessions, items = shop
    lengths = np.array([len(s["items"]) for s in sessions])
    assert len(sessions) == SHOP.sessions
    assert len(items) == SHOP.items
    assert lengths.min() >= MIN_ITEMS
    assert lengths.max() <= MAX_ITEMS
    assert 5 < lengths.mean() < 7
    assert all(len(set(s["items"])) == len(s["items"]) for s in sessions)
    times = [s["timestamp"] for s in sessions]
    assert times == sorted(times)
    assert len({s["session_id"] for s in sessions}) == len(sessions)
    titles = [item["title"] for item in items.values()]
    assert len(set(titles)) == len(titles)
    for item in items.values():
        assert item["brand"] in item["title"]
        assert item["category"] in item["title"]
        assert item["attributes"] == [item["brand"], item["category"], item["style"]]


def test_the_short_term_need_drifts_by_the_pair_rule(shop: Any) -> None:
    sessions, items = shop
    stays = pairs = changes = 0
    for session in sessions:
        types = [items[i]["category"] for i in session["items"]]
        for one, two in pairwise(types):
            stays += one == two
            changes += one != two
            pairs += GOES_WITH[one] == two
    assert pairs / changes > 0.5  # by chance 1 in 23
    assert 0.3 < stays / (stays + changes) < 0.8


def test_the_long_term_taste_is_kept(shop: Any) -> None:
    sessions, items = shop
    rng = np.random.default_rng(0)
    clicks = [i for s in sessions for i in s["items"]]

    def same(facet: str, ordered: list[str]) -> float:
        ends = np.cumsum([len(s["items"]) for s in sessions])
        parts = np.split(np.array([items[i][facet] for i in ordered]), ends[:-1])
        return float(np.mean([part[0] == part[-1] for part in parts]))

    shuffled = [clicks[n] for n in rng.permutation(len(clicks))]
    assert same("brand", clicks) > 2 * same("brand", shuffled)
    assert same("style", clicks) > 1.8 * same("style", shuffled)


def test_popularity_has_a_long_tail(shop: Any) -> None:
    sessions, items = shop
    counts = dict.fromkeys(items, 0)
    for session in sessions:
        for item in session["items"]:
            counts[item] += 1
    ordered = np.sort(list(counts.values()))[::-1]
    assert ordered[: len(ordered) // 10].sum() > 0.3 * ordered.sum()
    assert np.median(ordered) < 0.8 * ordered.mean()
    assert ordered[-len(ordered) // 5 :].max() <= 10  # cold items among them


def test_cold_items_come_with_the_test_part(shop: Any) -> None:
    sessions, items = shop
    cold = {i for i, item in items.items() if item["cold"]}
    train_end = SHOP.sessions - round(COLD_SPAN * SHOP.sessions)
    before = {i for s in sessions[:train_end] for i in s["items"]}
    after = {i for s in sessions[train_end:] for i in s["items"]}
    assert len(cold) == round(SHOP.cold_share * SHOP.items)
    assert not cold & before
    assert len(cold & after) > len(cold) / 4
    assert {s["split"] for s in sessions[:train_end]} == {"train"}
    assert {s["split"] for s in sessions[train_end:]} == {"test"}


def test_the_smallest_shop_works() -> None:
    sessions, items = generate(DemoShop(sessions=50, items=40, cold_share=0.5))
    assert len(sessions) == 50
    assert len(items) == 40
