"""The embedding cache: LRU order, prefixes, keys."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4sbr_ray.serving.cache import CachedIntents, IntentCache, prefix_keys, session_key


def intents(mark: int) -> CachedIntents:
    return CachedIntents(np.full((2, 3), mark, np.int32), np.full((2, 3), 1 / 3, np.float32), np.ones(2, np.bool_))


def mark_of(found: CachedIntents | None) -> int | None:
    return None if found is None else int(found.item_PR[0, 0])


def test_longest_known_prefix_wins() -> None:
    cache = IntentCache(capacity=10, stale_clicks=3)
    for mark, session in [(1, [5]), (2, [5, 6, 7]), (3, [5, 6])]:
        cache.put(session_key(session), intents(mark))
    exact, longer, sibling = cache.lookup([5, 6, 7]), cache.lookup([5, 6, 7, 8, 9]), cache.lookup([5, 6, 1])
    assert (mark_of(exact), mark_of(longer), mark_of(sibling)) == (2, 2, 3)
    assert exact is not None
    assert longer is not None
    assert (exact.clicks, longer.clicks) == (3, 3)
    assert cache.lookup([6, 5]) is None  # another order is another session


def test_answers_grow_stale() -> None:
    cache = IntentCache(capacity=10, stale_clicks=2)
    cache.put(session_key([1, 2]), intents(1))
    assert mark_of(cache.lookup([1, 2, 3, 4])) == 1
    assert cache.lookup([1, 2, 3, 4, 5]) is None
    assert IntentCache(10, 0).lookup([1]) is None


def test_longest_unused_goes_first() -> None:
    cache = IntentCache(capacity=2, stale_clicks=0)
    cache.put(session_key([1]), intents(1))
    cache.put(session_key([2]), intents(2))
    assert mark_of(cache.lookup([1])) == 1  # now [2] is the one unused for longest
    cache.put(session_key([3]), intents(3))
    assert [mark_of(cache.lookup([n])) for n in (1, 2, 3)] == [1, None, 3]
    assert len(cache) == 2


def test_put_again_replaces() -> None:
    cache = IntentCache(capacity=2, stale_clicks=0)
    cache.put(session_key([1]), intents(1))
    cache.put(session_key([1]), intents(9))
    assert (len(cache), mark_of(cache.lookup([1]))) == (1, 9)


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=40),
)
def test_cache_equals_a_naive_lru(capacity: int, steps: list[tuple[bool, int]]) -> None:
    cache, naive = IntentCache(capacity, stale_clicks=0), OrderedDict[int, int]()
    for number, (is_put, item) in enumerate(steps):
        if is_put:
            cache.put(session_key([item]), intents(number))
            naive[item] = number
            naive.move_to_end(item)
            while len(naive) > capacity:
                del naive[next(iter(naive))]
        else:
            assert mark_of(cache.lookup([item])) == naive.get(item)
            if item in naive:
                naive.move_to_end(item)


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=30))
def test_prefix_keys_are_the_keys_of_the_prefixes(items: list[int]) -> None:
    assert prefix_keys(items) == [session_key(items[: n + 1]) for n in range(len(items))]
    assert len(set(prefix_keys(items))) == len(items)


def test_check_finds_broken_entries() -> None:
    cache = IntentCache(capacity=2, stale_clicks=0)
    cache.check()
    cache.put(session_key([1]), intents(1))
    cache.check()
    broken = intents(2)
    broken.weight_PR[0, 0] = np.nan
    cache.put(session_key([2]), broken)
    with pytest.raises(RuntimeError, match="not finite"):
        cache.check()
