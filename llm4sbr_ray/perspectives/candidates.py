"""The candidates of a sample: what followed its last clicks in the train sessions, then the most popular items.

    score(j) = sum over the last `REACH` distinct clicks i, s steps before the last:  n_ij / (s + 1)

with n_ij the train sessions in which j stood at most `REACH` clicks after i: sequential rules (Ludewig and Jannach,
UMUAI 2018) with a session counted once, known before any LLM is asked. A train sample is among the sessions that were
counted, so it takes itself out of the count of its own target: else the target would stand among its candidates more
often than among those of the sessions to come, and a model would learn to trust the answers too much.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import pyarrow as pa

from llm4sbr_ray.artifacts import Store
from llm4sbr_ray.perspectives import relational
from llm4sbr_ray.perspectives.prompts import UNTITLED

REACH = 3


def count_followers(data: Store, keep: int) -> pa.Table:
    """The `keep` most frequent followers of each item: item, next and sessions (n_ij), sorted by item.

    Of equal counts the more popular is first. Counted over the train sessions in `data`, never validation or test.
    """
    database = relational.connect()
    database.register("train", relational.dataset(data, "train"))
    database.register("items", data.read_table("items.parquet", columns=["item_idx", "train_count"]))
    database.execute(
        "CREATE VIEW whole AS SELECT sample_key, list_append(items, target) AS clicks FROM train WHERE is_last"
    )
    pairs = " UNION ".join(  # which drops what a session has twice
        f"SELECT sample_key, unnest(clicks[:-{d + 1}]) AS item, unnest(clicks[{d + 1}:]) AS next "
        f"FROM whole WHERE len(clicks) > {d}"
        for d in range(1, REACH + 1)
    )
    counted: pa.Table = database.sql(
        "SELECT item, next, sessions FROM "
        f"(SELECT item, next, count(*) AS sessions FROM ({pairs}) WHERE item <> next GROUP BY item, next) "
        "JOIN items ON next = item_idx QUALIFY row_number() OVER "
        f"(PARTITION BY item ORDER BY sessions DESC, train_count DESC, next) <= {keep} ORDER BY item"
    ).to_arrow_table()
    return counted


class Candidates:
    """Finds the candidates of one perspective's samples.

    Parameters
    ----------
    followers
        As of `count_followers`.
    data
        Has items.parquet.
    lines
        V lines, one an item, as prompts show them: of candidates with the same line the first stands for all, and an
        item without a title is none.
    n
        How many a sample has, where the catalogue has as many distinct lines.
    """

    def __init__(self, followers: pa.Table, data: Store, lines: Sequence[str], n: int) -> None:
        self.lines, self.n = lines, n
        clicks_V = data.read_table("items.parquet", columns=["train_count"])["train_count"].to_numpy()
        self.popular = np.argsort(-clicks_V, kind="stable").tolist()
        self.rank_V = np.argsort(self.popular).tolist()
        self.next_X, self.sessions_X = (followers[name].to_numpy() for name in ("next", "sessions"))
        self.offset_V1 = np.searchsorted(followers["item"].to_numpy(), np.arange(len(lines) + 1)).tolist()

    def find(self, clicks: Sequence[int], target: int | None = None) -> list[int]:
        """Candidates by falling score.

        Parameters
        ----------
        clicks
            Items in click order, at least one.
        target
            Of a train sample, whose session was counted; None for all others.
        """
        steps: dict[int, int] = {}
        for step, item in enumerate(reversed(clicks[-REACH:])):
            steps.setdefault(item, step)
        scores: dict[int, float] = {}
        for item, step in steps.items():
            for other, sessions in self._followers(item):
                others = sessions - (other == target)
                if others:
                    scores[other] = scores.get(other, 0.0) + others / (step + 1)
        ranked = sorted(scores, key=lambda j: (-scores[j], self.rank_V[j]))
        found: dict[str, int] = {}
        for item in chain(ranked, self.popular):
            if len(found) == self.n:
                break
            if self.lines[item] != UNTITLED:
                found.setdefault(self.lines[item], item)
        return list(found.values())

    def _followers(self, item: int) -> Iterator[tuple[int, int]]:
        links = slice(self.offset_V1[item], self.offset_V1[item + 1])
        return zip(self.next_X[links].tolist(), self.sessions_X[links].tolist(), strict=True)
