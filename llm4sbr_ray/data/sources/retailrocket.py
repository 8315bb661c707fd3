"""RetailRocket: 2.8 million events of an online shop, ids and category numbers; session-rec's protocol.

``events.csv``: timestamp (ms),visitorid,event,itemid,transactionid, in no order. A visitor's events (of all
kinds) more than 30 minutes apart begin a new session; its views are the clicks. The category of an item is the
newest ``categoryid`` in ``item_properties_part1.csv`` and ``_part2.csv`` (optional), all other properties are hashed.
"""

from __future__ import annotations

from llm4sbr_ray.data.sources.recent_days import filter_and_split
from llm4sbr_ray.data.sources.source import Source
from llm4sbr_ray.data.sources.workspace import Kind, Workspace

GAP_S = 30 * 60
EVENTS: dict[str, Kind] = {"timestamp": "milliseconds", "visitorid": "id", "event": "text", "itemid": "id"}
PROPERTIES: dict[str, Kind] = {"timestamp": "milliseconds", "itemid": "id", "property": "text", "value": "text"}


def convert(work: Workspace) -> None:
    db = work.db
    work.load_delimited("raw", work.file("events.csv"), ",", EVENTS, header=True)
    # Whole seconds decide what a gap is, as in session-rec; milliseconds order the events.
    db.execute(
        f"""CREATE TABLE events AS WITH gaps AS
        (SELECT *, timestamp // 1000 - lag(timestamp // 1000) OVER visits > {GAP_S} AS apart FROM raw
         WINDOW visits AS (PARTITION BY visitorid ORDER BY timestamp, row)),
        numbered AS (SELECT *, sum(CASE WHEN apart THEN 1 ELSE 0 END) OVER
         (PARTITION BY visitorid ORDER BY timestamp, row ROWS UNBOUNDED PRECEDING) AS number FROM gaps)
        SELECT visitorid || '-' || CAST(number AS BIGINT) AS session, itemid AS item, timestamp // 1000 AS time,
        timestamp AS step, row FROM numbered WHERE event = 'view'"""
    )
    work.count("events that are no views", "SELECT count(*) FROM raw WHERE event <> 'view'")
    filter_and_split(work, session_time="max(time)", test_days=1, cut_in_test=True)
    db.execute("CREATE TABLE categories (item VARCHAR, category VARCHAR, moment BIGINT, part INTEGER, row BIGINT)")
    for part in (1, 2):
        path = work.optional(f"item_properties_part{part}.csv")
        if path is not None:
            work.load_delimited("properties", path, ",", PROPERTIES, header=True, where="property = 'categoryid'")
            db.execute(f"INSERT INTO categories SELECT itemid, value, timestamp, {part}, row FROM properties")
            db.execute("DROP TABLE properties")
    db.execute(
        """CREATE TABLE items AS WITH newest AS
        (SELECT item, arg_max(category, (moment, part, row)) AS category FROM categories GROUP BY item)
        SELECT item_id, CAST(NULL AS VARCHAR) AS title, category,
        CASE WHEN category IS NULL THEN CAST([] AS VARCHAR[]) ELSE ['category ' || category] END AS attributes
        FROM (SELECT DISTINCT item_id FROM clicks) LEFT JOIN newest ON item = item_id"""
    )


SOURCE = Source(
    title="RetailRocket",
    protocol="session-rec: a visitor's events more than 30 minutes apart begin a new session; views alone; sessions "
    "of one view and items with fewer than 5 views left out; the last day is test; items unknown to train removed "
    "from test; every prefix -> its next item.",
    terms="see docs/data-sources.md",
    convert=convert,
    data={"samples": "every-prefix", "split": {"by": "column", "valid_by": "last"}},
)
