"""The k-core of a table of clicks: every user and every item left has at least k rows."""

from __future__ import annotations

import duckdb


def k_core(db: duckdb.DuckDBPyConnection, table: str, k: int) -> None:
    """Delete rows of `table` (columns user, item) until the k-core is left; it is unique, whatever the order."""
    before = -1
    while (rows := len_of(db, table)) != before:
        before = rows
        for column in ("user", "item"):
            db.execute(
                f"""CREATE OR REPLACE TABLE {table} AS SELECT * FROM {table} WHERE "{column}" IN
                (SELECT "{column}" FROM {table} GROUP BY "{column}" HAVING count(*) >= {k})"""
            )


def len_of(db: duckdb.DuckDBPyConnection, table: str) -> int:
    row = db.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert row is not None  # count always answers
    return int(row[0])
