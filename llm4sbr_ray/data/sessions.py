"""The session table: checked row by row, then put together session by session.

A row of the table carries a session (layout "session") or one click of it (layout "event"). `parse_rows`
checks rows one at a time and gives each its partition, a hash of the session id; `assemble` sees all rows of
a partition, so that it can find repeated session ids and order the clicks of a session.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Container, Iterable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llm4sbr_ray.config import DataConfig
from llm4sbr_ray.data.readers import CONTENT_CHARS, RawRow
from llm4sbr_ray.data.validate import RowError, check_session, parse_id, parse_items, parse_text, parse_time

_ROWS: dict[str, pa.DataType] = {
    "part": pa.int32(),
    "source": pa.string(),
    "row": pa.int64(),
    "order": pa.int64(),  # of the row among all files
    "session_id": pa.string(),
    "items": pa.list_(pa.string()),  # layout event: one
    "time": pa.int64(),  # microseconds; 0 without a timestamp column
    "split": pa.string(),
    "reason": pa.string(),  # null: accepted so far
    "content": pa.string(),  # of refused rows
}
ROWS = pa.schema(_ROWS)
_SESSIONS: dict[str, pa.DataType] = {
    "session_id": pa.string(),
    "items": pa.list_(pa.string()),
    "time": pa.int64(),  # of the last click
    "order": pa.int64(),  # of the first row
    "split": pa.string(),
}
SESSIONS = pa.schema(_SESSIONS)


def columns_read(config: DataConfig) -> dict[str, str]:
    """Setting -> column, for all columns of the session table that this config reads."""
    names = config.columns
    columns = {"session_id": names.session_id}
    columns |= {"items": names.items} if config.layout == "session" else {"item_id": names.item_id}
    if names.timestamp is not None:
        columns["timestamp"] = names.timestamp
    if config.split.by == "column" and names.split is not None:
        columns["split"] = names.split
    return columns


def parse_rows(
    rows: Iterable[RawRow],
    source: str,
    order: int,
    config: DataConfig,
    known: Container[str] | None,
    n_parts: int,
) -> pa.Table:
    """Check rows one at a time.

    Parameters
    ----------
    source
        The file they are from.
    order
        Added to a row's number to place it among the rows of all files.
    known
        Ids of the catalogue; None without one.
    n_parts
        Number of partitions.

    Returns
    -------
    pa.Table
        Of schema `ROWS`, one row for each row given.
    """
    parsed = []
    for raw in rows:
        entry: dict[str, Any] = {"source": source, "row": raw.number, "order": order + raw.number}
        try:
            if raw.values is None:
                raise RowError(raw.reason)
            entry["session_id"] = parse_id(raw.values.get(config.columns.session_id), "session id")
            entry |= _parse(raw.values, config, known)
        except RowError as error:
            entry |= {"reason": str(error), "content": raw.content()}
        key = entry.get("session_id") or str(entry["order"])
        entry["part"] = zlib.crc32(key.encode()) % n_parts
        parsed.append(entry)
    return pa.Table.from_pylist(parsed, schema=ROWS)


def _parse(values: dict[str, Any], config: DataConfig, known: Container[str] | None) -> dict[str, Any]:
    columns = config.columns
    drop = config.unknown_items == "drop"
    if config.layout == "session":
        items = check_session(parse_items(values.get(columns.items)), known, drop, config.max_session_items)
    else:
        items = [parse_id(values.get(columns.item_id), "item id")]
        if drop and known is not None and items[0] not in known:
            raise RowError("item is not in the catalogue")
    entry: dict[str, Any] = {"items": items, "time": 0}
    if columns.timestamp is not None:
        entry["time"] = parse_time(values.get(columns.timestamp))
    if config.split.by == "column":
        entry["split"] = parse_text(values.get(columns.split or ""), "split")
        if not entry["split"]:
            raise RowError("split is missing")
    return entry


def assemble(rows: pa.Table, config: DataConfig, known: Container[str] | None) -> tuple[pa.Table, pa.Table]:
    """Make the sessions of one partition.

    Parameters
    ----------
    rows
        All rows of the partition (schema `ROWS`), in any order.

    Returns
    -------
    sessions
        Schema `SESSIONS`, in the order of the source.
    refused
        Schema `ROWS`, in the order of the source, each with a reason.
    """
    rows = rows.sort_by("order")
    accepted = rows.filter(rows["reason"].is_null())
    reasons = _duplicates(accepted) if config.layout == "session" else []
    if config.layout == "event":
        sessions, reasons = _group_events(accepted, config, known)
    else:
        sessions = accepted.filter(pa.array([reason is None for reason in reasons], pa.bool_())).select(SESSIONS.names)
    late = accepted.set_column(ROWS.get_field_index("reason"), "reason", pa.array(reasons, pa.string()))
    late = late.filter(late["reason"].is_valid())
    late = late.set_column(ROWS.get_field_index("content"), "content", pa.array(_contents(late, config), pa.string()))
    refused = pa.concat_tables([rows.filter(rows["reason"].is_valid()), late]).sort_by("order")
    return sessions, refused


def _duplicates(rows: pa.Table) -> list[str | None]:
    seen = set()
    reasons: list[str | None] = []
    for session_id in rows["session_id"].to_pylist():
        reasons.append("duplicate session id" if session_id in seen else None)
        seen.add(session_id)
    return reasons


def _group_events(
    rows: pa.Table, config: DataConfig, known: Container[str] | None
) -> tuple[pa.Table, list[str | None]]:
    """Sessions from clicks (in the order of the source), and for each click why it was refused."""
    ids = cast("list[str]", rows["session_id"].to_pylist())
    items: list[Any] = pc.list_flatten(rows["items"]).to_pylist()
    splits = rows["split"].to_pylist()
    time_N = rows["time"].to_numpy()
    order_N = rows["order"].to_numpy()
    members: dict[str, list[int]] = {}
    for number, session_id in enumerate(ids):
        members.setdefault(session_id, []).append(number)
    reasons: list[str | None] = [None] * len(ids)
    sessions = []
    for session_id, clicks in members.items():
        clicks = _in_time(clicks, time_N)
        try:
            checked = check_session([items[c] for c in clicks], known, False, config.max_session_items)
            if len({splits[c] for c in clicks}) > 1:
                raise RowError("split differs within the session")
        except RowError as error:
            for click in clicks:
                reasons[click] = str(error)
            continue
        sessions.append(
            {
                "session_id": session_id,
                "items": checked,
                "time": int(time_N[clicks[-1]]),
                "order": int(order_N[clicks].min()),
                "split": splits[clicks[0]],
            }
        )
    return pa.Table.from_pylist(sessions, schema=SESSIONS), reasons


def _in_time(clicks: list[int], time_N: npt.NDArray[np.int64]) -> list[int]:
    """Clicks by time; those of the same time stay in the order of the source."""
    order = np.argsort(time_N[clicks], kind="stable")
    return [clicks[position] for position in order]


def _contents(rows: pa.Table, config: DataConfig) -> list[str]:
    """The text of rows that were refused after they had been read."""
    columns = columns_read(config)
    contents = []
    for row in rows.select(["session_id", "items", "time", "split"]).to_pylist():
        values = {columns["session_id"]: row["session_id"]}
        if config.layout == "session":
            values[columns["items"]] = row["items"]
        else:
            values[columns["item_id"]] = row["items"][0]
        if "timestamp" in columns:
            values[columns["timestamp"]] = row["time"] / 1e6
        if "split" in columns:
            values[columns["split"]] = row["split"]
        contents.append(json.dumps(values, ensure_ascii=False)[:CONTENT_CHARS])
    return contents
