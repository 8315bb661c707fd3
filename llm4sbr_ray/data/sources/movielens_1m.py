"""MovieLens 1M: sprees of ratings as sessions, titles and genres; LLM-DMsRec's protocol.

``ratings.dat``: UserID::MovieID::Rating::Timestamp (seconds). ``movies.dat``: MovieID::Title (Year)::Genre|Genre.
Both are Latin-1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llm4sbr_ray.data.sources.source import Source
from llm4sbr_ray.data.sources.workspace import Workspace

WINDOW_S = 5 * 60
DAY = 86_400
TRAIN_SHARE = 0.9


def convert(work: Workspace) -> None:
    db = work.db
    work.load_delimited(
        "ratings",
        work.file("ratings.dat"),
        "::",
        {"user": "id", "item": "id", "rating": "number", "time": "seconds"},
        header=False,
        encoding="latin-1",
    )
    work.load_delimited(
        "movies",
        work.file("movies.dat"),
        "::",
        {"movie": "id", "title": "any", "genres": "any"},
        header=False,
        encoding="latin-1",
    )
    db.execute(
        """CREATE TABLE kept AS SELECT *, CAST(dense_rank() OVER (ORDER BY "user", time // 86400) AS BIGINT) AS day
        FROM ratings WHERE item IN (SELECT item FROM ratings GROUP BY item HAVING count(*) >= 5)"""
    )
    work.count("ratings of rare movies", "SELECT (SELECT count(*) FROM ratings) - (SELECT count(*) FROM kept)")
    lonely = "SELECT day FROM kept GROUP BY day HAVING count(*) = 1"
    work.count("days with one rating", f"SELECT count(*) FROM ({lonely})")
    db.execute(f"DELETE FROM kept WHERE day IN ({lonely})")
    ordered = work.table("SELECT day, time, row FROM kept ORDER BY day, time, row")  # a million rows: fits
    session_N = windows(ordered["day"].to_numpy(), ordered["time"].to_numpy())
    db.register("numbers", ordered.select(["row"]).append_column("session", pa.array(session_N)))
    db.execute(
        """CREATE TABLE placed AS SELECT session, item, time, row, max(time) OVER one AS last,
        min(row) OVER one AS first, count(*) OVER one AS n
        FROM kept JOIN numbers USING (row) WINDOW one AS (PARTITION BY session);
        CREATE TABLE windows AS SELECT session, n, row_number() OVER (ORDER BY last, first) AS place
        FROM (SELECT DISTINCT session, last, first, n FROM placed)"""
    )
    n_train = int(TRAIN_SHARE * work.count("windows", "SELECT count(*) FROM windows"))
    work.count("windows of one rating", "SELECT count(*) FROM windows WHERE n = 1")
    db.execute(
        f"""CREATE TABLE clicks AS SELECT CAST(place AS VARCHAR) AS session_id, item AS item_id, last AS time,
        CASE WHEN place <= {n_train} THEN 'train' ELSE 'test' END AS split, place, time AS step, row
        FROM placed JOIN windows USING (session) WHERE windows.n > 1;
        CREATE TABLE items AS SELECT item_id, nullif(trim(any_value(title)), '') AS title,
        CAST(coalesce(string_split(nullif(trim(any_value(genres)), ''), '|'), []) AS VARCHAR[]) AS attributes
        FROM (SELECT DISTINCT item_id FROM clicks) LEFT JOIN movies ON movie = item_id GROUP BY item_id"""
    )


def windows(day_N: npt.NDArray[np.int64], time_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Number the windows of at most 5 minutes.

    Parameters
    ----------
    day_N, time_N
        Day (of one user) and second of N ratings, sorted by both.

    Returns
    -------
    session_N
        A rating opens a window when its day begins or when it is more than 5 minutes after the window's first.
    """
    session_N = np.empty(len(day_N), np.int64)
    number, day, opened = -1, None, 0
    for position, (d, t) in enumerate(zip(day_N.tolist(), time_N.tolist(), strict=True)):
        if d != day or t - opened > WINDOW_S:
            number, day, opened = number + 1, d, t
        session_N[position] = number
    return session_N


SOURCE = Source(
    title="MovieLens 1M",
    protocol="LLM-DMsRec: movies with at least 5 ratings; ratings of one user on one UTC day (days with one rating "
    "left out), sorted by time, cut into windows of at most 5 minutes from the window's first rating; windows sorted "
    "by time of the last rating, the first 90% are train; windows of one rating left out after that; the whole session "
    "but its last item -> the last item.",
    terms="research use; no redistribution and no commercial use without permission; acknowledge it",
    convert=convert,
    data={"samples": "last-item", "split": {"by": "column", "valid_by": "last"}},
)
