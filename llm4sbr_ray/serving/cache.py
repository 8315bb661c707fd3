"""Intents of known sessions: a bounded LRU cache that also answers for a session that has gone on a little.

What an LLM says of a visitor's first n clicks still holds a click or two later. So a lookup tries the whole
session, then ever shorter prefixes of it, down to `stale_clicks` clicks less.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 16


@dataclass(frozen=True)
class CachedIntents:
    """Localised answers of an LLM about one session."""

    item_PR: NDArray[np.int32]
    weight_PR: NDArray[np.float32]
    grounded_P: NDArray[np.bool_]
    clicks: int = 0  # length of the prefix that was asked about


def prefix_keys(items: Sequence[int]) -> list[bytes]:
    """Key of every prefix: keys[n - 1] is that of the first n items. Linear in the session's length."""
    buffer = np.asarray(items, dtype="<i4").tobytes()
    state = hashlib.blake2b(digest_size=KEY_BYTES)
    keys = []
    for start, end in pairwise(range(0, len(buffer) + 4, 4)):
        state.update(buffer[start:end])
        keys.append(state.copy().digest())
    return keys


def session_key(items: Sequence[int]) -> bytes:
    """Key of a whole session: 16 bytes that depend on every item and on their order."""
    return hashlib.blake2b(np.asarray(items, dtype="<i4").tobytes(), digest_size=KEY_BYTES).digest()


class IntentCache:
    """Least-recently-used map from session keys to intents.

    Parameters
    ----------
    capacity
        Sessions kept; beyond it the one unused for longest goes.
    stale_clicks
        An answer about a prefix that is at most so many clicks shorter than the session still counts.
    """

    def __init__(self, capacity: int, stale_clicks: int) -> None:
        self.capacity, self.stale_clicks = capacity, stale_clicks
        self._entries: OrderedDict[bytes, CachedIntents] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: bytes, intents: CachedIntents) -> None:
        self._entries[key] = intents
        self._entries.move_to_end(key)
        if len(self._entries) > self.capacity:
            self._entries.popitem(last=False)

    def lookup(self, items: Sequence[int]) -> CachedIntents | None:
        """Intents of the longest known prefix, `clicks` telling how long it is; None if none is known."""
        keys = prefix_keys(items)
        oldest = max(1, len(keys) - self.stale_clicks)
        for clicks in range(len(keys), oldest - 1, -1):
            found = self._entries.get(keys[clicks - 1])
            if found is not None:
                self._entries.move_to_end(keys[clicks - 1])
                return CachedIntents(found.item_PR, found.weight_PR, found.grounded_P, clicks)
        return None

    def check(self) -> None:
        """Look at the size and at the entry used last.

        Raises
        ------
        RuntimeError
            The cache has outgrown its capacity, or the entry is broken.
        """
        if len(self._entries) > self.capacity:
            raise RuntimeError(f"embedding cache: {len(self._entries)} entries, capacity {self.capacity}")
        key = next(reversed(self._entries), None)
        if key is not None and not np.isfinite(self._entries[key].weight_PR).all():
            raise RuntimeError("embedding cache: weights are not finite")
