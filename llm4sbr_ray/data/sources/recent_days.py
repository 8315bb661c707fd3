"""Filters and split of the session papers: rare items left out, the last days are the test part.

The rules of SR-GNN's preprocessing (Wu et al., AAAI 2019; CRIPAC-DIG/SR-GNN datasets/preprocess.py), which
session-rec shares: sessions of one click are left out; then items with fewer than 5 clicks; then sessions that
have fewer than 2 clicks left. Sessions of the last days are test; of those, items that no train session holds
are left out, and then sessions with fewer than 2 clicks.
"""

from __future__ import annotations

from llm4sbr_ray.data.sources.workspace import Workspace
from llm4sbr_ray.errors import UserError

MIN_ITEM_CLICKS = 5
DAY = 86_400


def filter_and_split(
    work: Workspace, *, session_time: str, test_days: int, cut_in_test: bool, latest_part: int = 1
) -> None:
    """Make ``clicks`` from the table ``events`` (session, item, time in seconds, step, row).

    Parameters
    ----------
    session_time
        SQL aggregate over the session's events: when the session was.
    cut_in_test
        Whether a session exactly `test_days` before the last one is test; False: it is in no part, as in SR-GNN.
    latest_part
        Keep the train sessions that give the last 1/latest_part of the train samples (Yoochoose 1/64).
    """
    db = work.db
    db.execute(
        f"""CREATE TABLE sessions AS SELECT session, {session_time} AS time, min(row) AS place, count(*) AS n
        FROM events GROUP BY session"""
    )
    work.count("sessions of one click", "SELECT count(*) FROM sessions WHERE n < 2")
    db.execute("DELETE FROM sessions WHERE n < 2")
    db.execute(
        f"""CREATE TABLE frequent AS SELECT item FROM events SEMI JOIN sessions USING (session)
        GROUP BY item HAVING count(*) >= {MIN_ITEM_CLICKS}"""
    )
    db.execute(
        """CREATE TABLE kept AS SELECT session, item, step, row FROM events
        SEMI JOIN sessions USING (session) SEMI JOIN frequent USING (item)"""
    )
    _drop_short(work, "sessions that rare items leave with one click or none")
    newest = work.value("SELECT max(time) FROM sessions")
    cut = newest - test_days * DAY
    db.execute(
        f"""ALTER TABLE sessions ADD COLUMN split VARCHAR;
        UPDATE sessions SET split = CASE WHEN time < {cut} THEN 'train'
        WHEN time {">=" if cut_in_test else ">"} {cut} THEN 'test' END"""
    )
    work.count("sessions at the cut, in no part", "SELECT count(*) FROM sessions WHERE split IS NULL")
    db.execute("DELETE FROM sessions WHERE split IS NULL")
    work.count("days", f"SELECT ({newest} - min(time)) // {DAY} FROM sessions")
    if not work.value("SELECT count(*) FROM sessions WHERE split = 'train'"):
        raise UserError(
            f"{work.raw}: no session is more than {test_days} days before the last one: nothing to train with"
        )
    db.execute(
        """CREATE TABLE known AS SELECT DISTINCT item FROM kept
        JOIN sessions USING (session) WHERE split = 'train';
        DELETE FROM kept WHERE item NOT IN (SELECT item FROM known)"""  # every item of a train session is known
    )
    _drop_short(work, "test sessions that items unknown to train leave with one click or none")
    if latest_part > 1:
        _keep_latest(work, latest_part)
    db.execute(
        """CREATE TABLE clicks AS SELECT session AS session_id, item AS item_id, split, time, (time, place) AS place,
        step, kept.row FROM kept JOIN sessions USING (session)"""
    )


def _drop_short(work: Workspace, name: str) -> None:
    work.db.execute("CREATE OR REPLACE TABLE long AS SELECT session FROM kept GROUP BY session HAVING count(*) >= 2")
    work.count(name, "SELECT count(*) FROM sessions ANTI JOIN long USING (session)")
    work.db.execute("DELETE FROM sessions WHERE session NOT IN (SELECT session FROM long)")
    work.db.execute("DELETE FROM kept WHERE session NOT IN (SELECT session FROM long)")


def _keep_latest(work: Workspace, part: int) -> None:
    """Drop early train sessions: those of which no sample is among the last int(samples / part)."""
    work.db.execute(
        """CREATE TABLE ranked AS SELECT session, sum(n - 1) OVER (ORDER BY time DESC, place DESC) - (n - 1) AS later,
        sum(n - 1) OVER () AS total FROM
        (SELECT session, time, place, count(*) AS n FROM kept JOIN sessions USING (session)
         WHERE split = 'train' GROUP BY ALL)"""
    )
    work.count("train sessions before the latest part", f"SELECT count(*) FROM ranked WHERE later >= total // {part}")
    work.db.execute(
        f"""DELETE FROM sessions WHERE session IN (SELECT session FROM ranked WHERE later >= total // {part});
        DELETE FROM kept WHERE session NOT IN (SELECT session FROM sessions)"""
    )
    if not work.value("SELECT count(*) FROM sessions WHERE split = 'train'"):
        raise UserError(f"{work.raw}: too few sessions for the last 1/{part} of them")


def items_without_titles(work: Workspace) -> None:
    """A catalogue of ids: what the sessions hold."""
    work.db.execute(
        """CREATE TABLE items AS SELECT DISTINCT item_id, CAST(NULL AS VARCHAR) AS title,
        CAST([] AS VARCHAR[]) AS attributes FROM clicks"""
    )
