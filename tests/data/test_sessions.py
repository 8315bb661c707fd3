"""The session table: no row crashes the stage, no row vanishes."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm4sbr_ray.config import Columns, DataConfig, Split
from llm4sbr_ray.data.readers import RawRow
from llm4sbr_ray.data.sessions import SESSIONS, assemble, columns_read, parse_rows

CATALOGUE = frozenset("abcdef")


def config(**settings_: Any) -> DataConfig:
    values: dict[str, Any] = {"sessions": "x", "split": Split(by="ratio"), "max_session_items": 6}
    return DataConfig(**(values | settings_))


def run(rows: list[RawRow], settings_: DataConfig, known: frozenset[str] | None = CATALOGUE) -> Any:
    """Both passes over one partition: sessions by id, and the refused rows' (number, reason)."""
    parsed = parse_rows(rows, "file", 0, settings_, known, 1)
    assert len(parsed) == len(rows)
    backwards = parsed.take(pa.array(range(len(parsed) - 1, -1, -1), pa.int64()))  # a shuffle keeps no order
    sessions, refused = assemble(backwards, settings_, known)
    assert sessions.schema.equals(SESSIONS)
    reasons = [(r["row"], r["reason"]) for r in refused.to_pylist()]
    return {s["session_id"]: s for s in sessions.to_pylist()}, reasons, refused


def raw(*values: dict[str, Any]) -> list[RawRow]:
    return [RawRow(n, v) for n, v in enumerate(values, 1)]


def test_session_layout() -> None:
    rows = raw(
        {"session_id": 1, "items": ["a", "b"]},
        {"session_id": "2", "items": ["a"]},
        {"session_id": "1", "items": ["c", "d"]},
        {"session_id": "2", "items": ["b", "c"]},
        {"items": ["a", "b"]},
        {"session_id": "3", "items": ["a", "z"]},
        {"session_id": "4", "items": list("abcdefa")},
    )
    rows.append(RawRow(8, None, "malformed JSON", "{..."))
    sessions, reasons, refused = run(rows, config())
    assert {k: v["items"] for k, v in sessions.items()} == {"1": ["a", "b"], "2": ["b", "c"]}
    assert reasons == [
        (2, "session of one item"),
        (3, "duplicate session id"),
        (5, "session id is missing"),
        (6, "item is not in the catalogue"),
        (7, "more items than data.max_session_items"),
        (8, "malformed JSON"),
    ]
    assert refused["content"].to_pylist()[1] == '{"session_id": "1", "items": ["c", "d"]}'
    assert refused["content"].to_pylist()[-1] == "{..."
    assert refused["session_id"].to_pylist()[2] is None


def test_unknown_items_can_be_dropped() -> None:
    rows = raw(
        {"session_id": "1", "items": ["a", "z", "b"]},
        {"session_id": "2", "items": ["z", "a"]},
    )
    sessions, reasons, _ = run(rows, config(unknown_items="drop"))
    assert sessions["1"]["items"] == ["a", "b"]
    assert reasons == [(2, "fewer than two items that the catalogue has")]


def test_split_column() -> None:
    rows = raw(
        {"session_id": "1", "items": ["a", "b"], "split": "test"},
        {"session_id": "2", "items": ["a", "b"], "split": None},
        {"session_id": "3", "items": ["a", "b"], "split": 1},
    )
    sessions, reasons, _ = run(rows, config(split=Split(by="column")))
    assert {k: v["split"] for k, v in sessions.items()} == {"1": "test", "3": "1"}
    assert reasons == [(2, "split is missing")]


EVENTS = Columns(timestamp="at", split=None)


def event(session: Any, item: Any, at: Any) -> dict[str, Any]:
    return {"session_id": session, "item_id": item, "at": at}


def test_event_layout_orders_by_time_then_by_row() -> None:
    rows = raw(
        event("1", "c", 30),
        event("2", "a", 5),
        event("1", "a", 10),
        event("1", "b", 30),
        event("2", "b", None),
        event("3", "a", 1),
        event("3", "z", 2),
        event("1", "d", "2x"),
    )
    sessions, reasons, refused = run(rows, config(layout="event", columns=EVENTS))
    assert sessions == {
        "1": {"session_id": "1", "items": ["a", "c", "b"], "time": 30_000_000, "order": 1, "split": None}
    }
    assert reasons == [
        (2, "session of one item"),
        (5, "timestamp is missing"),
        (6, "item is not in the catalogue"),
        (7, "item is not in the catalogue"),
        (8, "timestamp is malformed"),
    ]
    assert refused["content"].to_pylist()[0] == '{"session_id": "2", "item_id": "a", "at": 5.0}'


def test_event_layout_drops_events_into_the_quarantine() -> None:
    rows = raw(event("1", "a", 1), event("1", "z", 2), event("1", "b", 3))
    sessions, reasons, _ = run(rows, config(layout="event", columns=EVENTS, unknown_items="drop"))
    assert sessions["1"]["items"] == ["a", "b"]
    assert reasons == [(2, "item is not in the catalogue")]


def test_events_of_a_session_share_their_split() -> None:
    rows = raw(
        {"session_id": "1", "item_id": "a", "split": "train"},
        {"session_id": "1", "item_id": "b", "split": "test"},
        {"session_id": "2", "item_id": "b", "split": "test"},
        {"session_id": "2", "item_id": "a", "split": "test"},
    )
    sessions, reasons, _ = run(rows, config(layout="event", split=Split(by="column")))
    assert sessions["2"]["items"] == ["b", "a"]
    assert reasons == [(1, "split differs within the session"), (2, "split differs within the session")]


def test_only_the_columns_in_use_are_read() -> None:
    assert columns_read(config()) == {"session_id": "session_id", "items": "items"}
    assert columns_read(config(split=Split(by="column"), columns=Columns(timestamp="t"))) == {
        "session_id": "session_id",
        "items": "items",
        "timestamp": "t",
        "split": "split",
    }


ITEM = st.sampled_from(["a", "b", "c", "z", None, "", 1.5, b"\xff", "a"])
SESSION_ID = st.sampled_from(["1", "2", "3", 1, None, "", [], b"4"])
BROKEN = st.just(None)


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(
        BROKEN
        | st.fixed_dictionaries(
            {"session_id": SESSION_ID, "items": st.lists(ITEM, max_size=8) | st.none() | st.text(max_size=6)},
            optional={"at": st.integers() | st.none() | st.text(max_size=3)},
        ),
        max_size=12,
    ),
    drop=st.booleans(),
    catalogue=st.booleans(),
)
def test_refused_and_accepted_sessions_are_all_rows(
    values: list[dict[str, Any] | None], drop: bool, catalogue: bool
) -> None:
    rows = [RawRow(n, v, None if v else "malformed JSON") for n, v in enumerate(values, 1)]
    settings_ = config(columns=EVENTS, unknown_items="drop" if drop else "quarantine")
    sessions, reasons, _ = run(rows, settings_, CATALOGUE if catalogue else None)
    accepted = [s["order"] for s in sessions.values()]
    assert sorted(accepted + [number for number, _ in reasons]) == [r.number for r in rows]
    assert all(reason for _, reason in reasons)
    assert all(2 <= len(s["items"]) <= 6 for s in sessions.values())


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(
        BROKEN
        | st.fixed_dictionaries({"session_id": SESSION_ID, "item_id": ITEM, "at": st.sampled_from([1, 2, 3, None])}),
        max_size=25,
    ),
    drop=st.booleans(),
)
def test_refused_and_accepted_events_are_all_rows(values: list[dict[str, Any] | None], drop: bool) -> None:
    rows = [RawRow(n, v, None if v else "malformed JSON") for n, v in enumerate(values, 1)]
    settings_ = config(layout="event", columns=EVENTS, unknown_items="drop" if drop else "quarantine")
    sessions, reasons, _ = run(rows, settings_)
    assert sum(len(s["items"]) for s in sessions.values()) + len(reasons) == len(rows)
    assert len({number for number, _ in reasons}) == len(reasons)
    refused = {number for number, _ in reasons}
    for session_id, session in sessions.items():
        kept = [v for n, v in enumerate(values, 1) if n not in refused and v and text(v["session_id"]) == session_id]
        kept.sort(key=lambda v: int(v["at"]))
        assert session["items"] == [text(v["item_id"]) for v in kept]


def text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@pytest.mark.parametrize("layout", ["session", "event"])
def test_a_partition_may_have_no_usable_row(layout: str) -> None:
    sessions, reasons, _ = run([RawRow(1, None, "malformed JSON")], config(layout=layout))
    assert sessions == {}
    assert reasons == [(1, "malformed JSON")]
