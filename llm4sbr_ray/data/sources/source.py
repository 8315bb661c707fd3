"""What a data set is to `prepare`: how it is called, what it may be used for, and how its files become two tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llm4sbr_ray.data.sources.workspace import Workspace


@dataclass(frozen=True)
class Source:
    """A public data set under one protocol.

    `convert` reads the raw files through the workspace and leaves two relations in its database:

    - ``clicks``: session_id, item_id, split ("train" or "test") text; time (seconds since the epoch, of the
      session); `place` and `step` numbers that order the sessions of a split and the clicks of a session;
    - ``items``: item_id, title text; attributes list of text; any further columns. One row an item.
    """

    title: str
    protocol: str  # what becomes a session, what is left out, how it is split
    terms: str  # in a line; docs/data-sources.md says more
    convert: Callable[[Workspace], None]
    data: dict[str, Any] = field(default_factory=dict)  # settings that the protocol asks for in the config's `data`
