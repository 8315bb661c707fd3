"""Yoochoose (RecSys Challenge 2015): 33 million clicks of an online shop, ids alone; SR-GNN's protocol.

``yoochoose-clicks.dat``, without a header: session, time (2014-04-07T10:51:09.277Z), item, category. Clicks keep
the order of the file and a session is dated by its last line, as in SR-GNN.
"""

from __future__ import annotations

from functools import partial

from llm4sbr_ray.data.sources.recent_days import filter_and_split, items_without_titles
from llm4sbr_ray.data.sources.source import Source
from llm4sbr_ray.data.sources.workspace import Workspace


def convert(work: Workspace, latest_part: int) -> None:
    work.load_delimited(
        "events",
        work.file("yoochoose-clicks.dat"),
        ",",
        {"session": "id", "time": "iso", "item": "id", "category": "any"},
        header=False,
    )
    work.db.execute("ALTER TABLE events DROP COLUMN category")
    work.db.execute("ALTER TABLE events ADD COLUMN step BIGINT DEFAULT 0")  # `row` orders the clicks
    filter_and_split(work, session_time="arg_max(time, row)", test_days=1, cut_in_test=False, latest_part=latest_part)
    items_without_titles(work)


def _source(latest_part: int) -> Source:
    share = "" if latest_part == 1 else f" Of train, the sessions of the last 1/{latest_part} of its samples."
    return Source(
        title="Yoochoose (RecSys Challenge 2015)" + ("" if latest_part == 1 else f", 1/{latest_part}"),
        protocol="SR-GNN: sessions of one click and items with fewer than 5 clicks left out; the last day is test; "
        f"items unknown to (all of) train removed from test; every prefix -> its next item.{share}",
        terms="see docs/data-sources.md",
        convert=partial(convert, latest_part=latest_part),
        data={"samples": "every-prefix", "split": {"by": "column", "valid_by": "last"}},
    )


SOURCE, SOURCE_4, SOURCE_64 = _source(1), _source(4), _source(64)
