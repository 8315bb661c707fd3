"""Values of raw rows: what is taken, and the reason for what is not."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4sbr_ray.data.validate import (
    Microseconds,
    RowError,
    check_session,
    parse_attributes,
    parse_id,
    parse_items,
    parse_text,
    parse_time,
)

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(("value", "expected"), [("a b", "a b"), (7, "7"), (b"x", "x"), (-1, "-1"), (10.0, "10")])
def test_ids(value: Any, expected: str) -> None:
    assert parse_id(value, "item id") == expected


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "item id is missing"),
        (" ", "item id is missing"),
        (1.5, "item id has a wrong type"),
        (float("nan"), "item id is missing"),
        (float("inf"), "item id has a wrong type"),
        (2.0**53, "item id has a wrong type"),  # the integer it was may have been another
        (True, "item id has a wrong type"),
        (["a"], "item id has a wrong type"),
        (b"\xff", "not valid UTF-8"),
        ("\ud800", "not valid UTF-8"),
    ],
)
def test_refused_ids(value: Any, reason: str) -> None:
    with pytest.raises(RowError, match=rf"^{reason}$"):
        parse_id(value, "item id")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["a", 2], ["a", "2"]),
        ("a  b\tc", ["a", "b", "c"]),
        ('["a b", 2]', ["a b", "2"]),
        (b"a b", ["a", "b"]),
        ("", []),
        ([], []),
    ],
)
def test_items(value: Any, expected: list[str]) -> None:
    assert parse_items(value) == expected


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "items are missing"),
        (3, "items have a wrong type"),
        ({"a": 1}, "items have a wrong type"),
        ('["a"', "malformed list"),
        (["a", None], "item id is missing"),
        (["a", ["b"]], "item id has a wrong type"),
    ],
)
def test_refused_items(value: Any, reason: str) -> None:
    with pytest.raises(RowError, match=rf"^{reason}$"):
        parse_items(value)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0),
        (1_700_000_000, 1_700_000_000),
        ("1700000000", 1_700_000_000),
        (1.5, 1.5),
        ("1.5", 1.5),
        ("2024-01-01", 1_704_067_200),
        ("2024-01-01T00:00:00Z", 1_704_067_200),
        (b"2024-01-01 01:00:00+01:00", 1_704_067_200),
        (datetime(2024, 1, 1), 1_704_067_200),
        (datetime(2024, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))), 1_704_067_200),
        (Microseconds(5), 5e-6),
        (99_999_999_999, 99_999_999_999),  # the last second
        (1_700_000_000_123, 1_700_000_000.123),  # milliseconds
        ("1700000000123", 1_700_000_000.123),
        (1_700_000_000_123.0, 1_700_000_000.123),
        (1_700_000_000_123_456, 1_700_000_000.123456),
        (1_700_000_000_123_456_789, 1_700_000_000.123456),
        (-1_700_000_000_123, -1_700_000_000.123),
    ],
)
def test_times(value: Any, seconds: float) -> None:
    assert parse_time(value) == round(seconds * 1e6)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "timestamp is missing"),
        (" ", "timestamp is missing"),
        ("soon", "timestamp is malformed"),
        ([1], "timestamp has a wrong type"),
        (False, "timestamp has a wrong type"),
        (float("nan"), "timestamp is out of range"),
        ("inf", "timestamp is out of range"),
        (10**400, "timestamp is out of range"),
        (Microseconds(2**64), "timestamp is out of range"),
    ],
)
def test_refused_times(value: Any, reason: str) -> None:
    with pytest.raises(RowError, match=rf"^{reason}$"):
        parse_time(value)


def test_texts_and_attributes() -> None:
    assert parse_text(1984, "title") == "1984"
    assert parse_text(None, "title") is None
    assert parse_attributes(["a", 2, None, ""]) == ["a", "2"]
    assert parse_attributes("red wine") == ["red wine"]
    assert parse_attributes(b'["red", "wine"]') == ["red", "wine"]
    assert parse_attributes(None) == []
    with pytest.raises(RowError, match=r"^title has a wrong type$"):
        parse_text(1.5, "title")
    with pytest.raises(RowError, match=r"^attributes have a wrong type$"):
        parse_attributes({"a": 1})


def test_sessions() -> None:
    known = {"a", "b", "c"}
    assert check_session(["a", "x", "b"], known, True, 3) == ["a", "b"]
    assert check_session(["a", "x"], None, False, 3) == ["a", "x"]
    for items, drop, reason in (
        ([], False, "empty session"),
        (["a"], False, "session of one item"),
        (["a", "x"], False, "item is not in the catalogue"),
        (["a", "x"], True, "fewer than two items that the catalogue has"),
        (["a", "b", "c", "a"], False, "more items than data.max_session_items"),
    ):
        with pytest.raises(RowError, match=rf"^{reason}$"):
            check_session(items, known, drop, 3)


@given(ANYTHING)
def test_anything_is_parsed_or_refused(value: Any) -> None:
    for parse in (
        lambda v: parse_id(v, "x"),
        parse_items,
        parse_time,
        lambda v: parse_text(v, "x"),
        parse_attributes,
    ):
        try:
            result = parse(value)
        except RowError:
            continue
        else:
            for text in result if isinstance(result, list) else [result]:
                assert not isinstance(text, str) or text.encode().decode() == text
                assert not isinstance(text, int) or -(2**63) <= text < 2**63
