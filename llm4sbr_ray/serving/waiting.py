"""A bounded queue of sessions, each in it once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from llm4sbr_ray.serving.cache import session_key


class Waiter(NamedTuple):
    items: tuple[int, ...]  # item indices in click order
    since: float  # seconds of the monotonic clock


class WaitingSessions:
    """First in, first out; one that comes when it is full is dropped, as those before it have waited longer."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._waiters: dict[bytes, Waiter] = {}  # in the order they came

    def __len__(self) -> int:
        return len(self._waiters)

    def add(self, items: Sequence[int]) -> bool:
        """Whether it waits now: False where there is no room for it."""
        key = session_key(items)
        if key not in self._waiters and len(self._waiters) >= self.capacity:
            return False
        self._waiters.setdefault(key, Waiter(tuple(items), time.monotonic()))
        return True

    def first(self, n: int) -> dict[bytes, Waiter]:
        """The n that wait longest, by `cache.session_key`; they go on waiting."""
        return dict(islice(self._waiters.items(), n))

    def remove(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self._waiters.pop(key, None)
