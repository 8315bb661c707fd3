"""Diginetica (CIKM Cup 2016): views of an online shop, ids alone; SR-GNN's protocol.

``train-item-views.csv``: sessionId;userId;itemId;timeframe;eventdate (SR-GNN's copy writes session_id ...).
`timeframe` is milliseconds since the session began and orders its views; a session is dated by its last line.
"""

from __future__ import annotations

from llm4sbr_ray.data.sources.recent_days import filter_and_split, items_without_titles
from llm4sbr_ray.data.sources.source import Source
from llm4sbr_ray.data.sources.workspace import Workspace


def convert(work: Workspace) -> None:
    work.load_delimited(
        "events",
        work.file("train-item-views.csv"),
        ";",
        {"session_id": "id", "item_id": "id", "timeframe": "number", "eventdate": "day"},
        header=True,
    )
    for old, new in {"session_id": "session", "item_id": "item", "timeframe": "step", "eventdate": "time"}.items():
        work.db.execute(f"ALTER TABLE events RENAME COLUMN {old} TO {new}")
    filter_and_split(work, session_time="arg_max(time, row)", test_days=7, cut_in_test=False)
    items_without_titles(work)


SOURCE = Source(
    title="Diginetica (CIKM Cup 2016)",
    protocol="SR-GNN: sessions of one view and items with fewer than 5 views left out; the last 7 days are test; "
    "items unknown to train removed from test; every prefix -> its next item. Sessions of one day keep the order "
    "of the file.",
    terms="published for CIKM Cup 2016; no open licence known",
    convert=convert,
    data={"samples": "every-prefix", "split": {"by": "column", "valid_by": "last"}},
)
